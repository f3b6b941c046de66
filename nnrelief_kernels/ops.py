"""The custom ops of the package: what torch.compile sees of a scoring call, whichever backend serves it."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose, get, refusals_conv, refusals_linear, result_dtype
from .geometry import ConvGeometry


@torch.library.custom_op("nnrelief_kernels::score_conv", mutates_args=())
def conv_signal(
    weight: Tensor,
    acts: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    variant: str,
    backend: str,
) -> Tensor:
    """Dispatch checked arguments to a backend; `padding` is (before, after) of each dimension in one flat list."""
    geometry = ConvGeometry(
        tuple(acts.shape[2:]),
        tuple(weight.shape[2:]),
        tuple(stride),
        tuple(zip(padding[::2], padding[1::2])),
        tuple(dilation),
        groups,
        padding_mode,
    )
    name = choose(backend, refusals_conv(weight, acts, geometry, variant))
    return get(name).score_conv(weight, acts, geometry, variant)


@conv_signal.register_fake
def _(
    weight: Tensor,
    acts: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    padding_mode: str,
    variant: str,
    backend: str,
) -> Tensor:
    return acts.new_empty(weight.shape[:2], dtype=result_dtype(weight, acts))


@torch.library.custom_op("nnrelief_kernels::score_linear", mutates_args=())
def linear_signal(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    """Dispatch checked arguments to a backend."""
    name = choose(backend, refusals_linear(weight, acts))
    return get(name).score_linear(weight, acts)


@linear_signal.register_fake
def _(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    return acts.new_empty(weight.shape, dtype=result_dtype(weight, acts))

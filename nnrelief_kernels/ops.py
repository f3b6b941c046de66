"""The custom ops of the package: what torch.compile sees of a scoring call, whichever backend serves it.

They are registered below `torch.library.custom_op`, whose wrappers for autograd cost a small layer more than its scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose, get, refusals_conv, refusals_linear, result_dtype
from .geometry import ConvGeometry

torch.library.define(
    "nnrelief_kernels::score_conv",
    "(Tensor weight, Tensor acts, int[] stride, int[] padding, int[] dilation, int groups, str padding_mode, str variant, "
    "str backend) -> Tensor",
)
torch.library.define("nnrelief_kernels::score_linear", "(Tensor weight, Tensor acts, str backend) -> Tensor")


@torch.library.impl("nnrelief_kernels::score_conv", "CompositeExplicitAutograd")
def _conv_signal(
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


def _conv_shape(
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


@torch.library.impl("nnrelief_kernels::score_linear", "CompositeExplicitAutograd")
def _linear_signal(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    """Dispatch checked arguments to a backend."""
    name = choose(backend, refusals_linear(weight, acts))
    return get(name).score_linear(weight, acts)


def _linear_shape(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    return acts.new_empty(weight.shape, dtype=result_dtype(weight, acts))


torch.library.register_fake("nnrelief_kernels::score_conv", _conv_shape)
torch.library.register_fake("nnrelief_kernels::score_linear", _linear_shape)
conv_signal = torch.ops.nnrelief_kernels.score_conv.default
linear_signal = torch.ops.nnrelief_kernels.score_linear.default

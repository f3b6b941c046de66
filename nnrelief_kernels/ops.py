"""The custom ops of the package: what torch.compile sees of a scoring call, whichever backend serves it.

They are registered below `torch.library.custom_op`, whose wrappers for autograd cost a small layer more than its scores; and
a call that nothing but Python sees goes straight to its backend, since the dispatcher costs a small layer a tenth of its own.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .backends import choose, conv_refusal, get, linear_refusal, result_dtype
from .geometry import ConvGeometry

torch.library.define(
    "nnrelief_kernels::score_conv",
    "(Tensor weight, Tensor acts, int[] stride, int[] padding, int[] dilation, int groups, str padding_mode, str variant, "
    "str backend) -> Tensor",
)
torch.library.define("nnrelief_kernels::score_linear", "(Tensor weight, Tensor acts, str backend) -> Tensor")


def conv_signal(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str, backend: str) -> Tensor:
    """sum_n || |K_ij| * |x_ni| || of checked arguments, as `Backend.score_conv` returns it."""
    if not _seen(weight, acts):
        return _choose_conv(weight, acts, geometry, variant, backend)
    return conv_op(  # type: ignore[no-any-return]
        weight,
        acts,
        list(geometry.stride),
        [p for before_after in geometry.padding for p in before_after],
        list(geometry.dilation),
        geometry.groups,
        geometry.padding_mode,
        variant,
        backend,
    )


def linear_signal(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    """sum_n |w_ij x_ni| of checked arguments, as `Backend.score_linear` returns it."""
    call = linear_op if _seen(weight, acts) else _choose_linear
    return cast(Tensor, call(weight, acts, backend))


def _seen(weight: Tensor, acts: Tensor) -> bool:
    """Whether a compiler, a tensor subclass (fake tensors) or the meta device has to see the call as one op."""
    return torch.compiler.is_compiling() or not type(weight) is type(acts) is Tensor or acts.is_meta


def _choose_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str, backend: str) -> Tensor:
    name = choose(backend, conv_refusal(weight, acts, geometry, variant))
    return get(name).score_conv(weight, acts, geometry, variant)


def _choose_linear(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    name = choose(backend, linear_refusal(weight, acts))
    return get(name).score_linear(weight, acts)


def _conv_from_numbers(
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
    """`padding` is (before, after) of each dimension in one flat list."""
    geometry = ConvGeometry(
        tuple(acts.shape[2:]),
        tuple(weight.shape[2:]),
        tuple(stride),
        tuple(zip(padding[::2], padding[1::2])),
        tuple(dilation),
        groups,
        padding_mode,
    )
    return _choose_conv(weight, acts, geometry, variant, backend)


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


def _linear_shape(weight: Tensor, acts: Tensor, backend: str) -> Tensor:
    return acts.new_empty(weight.shape, dtype=result_dtype(weight, acts))


torch.library.impl("nnrelief_kernels::score_conv", "CompositeExplicitAutograd", _conv_from_numbers)
torch.library.impl("nnrelief_kernels::score_linear", "CompositeExplicitAutograd", _choose_linear)
torch.library.register_fake("nnrelief_kernels::score_conv", _conv_shape)
torch.library.register_fake("nnrelief_kernels::score_linear", _linear_shape)
conv_op = torch.ops.nnrelief_kernels.score_conv.default
linear_op = torch.ops.nnrelief_kernels.score_linear.default

"""What the backends of the compiled library share: its operators, which torch dispatches by the tensors' device."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..geometry import PADDING_MODES, ConvGeometry

VARIANTS = ("paper", "norm_of_mean", "l1")
PATHS = ("norms", "lags", "gram", "dual", "direct", "window sums")
"""Named in the order of csrc/conv.h; csrc/plan.cpp and csrc/plan_cuda.cpp say what each is and when it is taken."""


def operators() -> Any:
    return torch.ops.nnrelief


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    """None where no path serves the call."""
    index = cast(int, operators().conv_path(weight, acts, numbers(geometry, variant)))
    return PATHS[index] if index >= 0 else None


def score_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
    return cast(Tensor, operators().score_conv(weight, acts, numbers(geometry, variant)))


def score_linear(weight: Tensor, acts: Tensor) -> Tensor:
    return cast(Tensor, operators().score_linear(weight, acts))


def numbers(geometry: ConvGeometry, variant: str) -> list[int]:
    """The geometry as csrc/tensors.h takes it."""
    before = (p for p, _ in geometry.padding)
    modes = (geometry.groups, PADDING_MODES.index(geometry.padding_mode), VARIANTS.index(variant))
    return [*geometry.out, *geometry.stride, *before, *geometry.dilation, *modes]

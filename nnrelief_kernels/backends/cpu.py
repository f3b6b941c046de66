"""The compiled C++ kernels (csrc/): both phases fused per channel and block of samples, on torch's own threads."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .. import extension
from ..geometry import PADDING_MODES, ConvGeometry

VARIANTS = ("paper", "norm_of_mean", "l1")
PATHS = ("norms", "lags", "gram", "dual", "direct", "window sums")
"""Named in the order of csrc/conv.h; csrc/plan.cpp says what each is and when it is taken."""


def unavailable() -> str | None:
    return extension.unavailable()


def describe() -> str:
    return f"C++ extension, {torch.ops.nnrelief_cpu.level()} kernels, {torch.get_num_threads()} threads"


def refuses_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    if reason := _refuses_device(acts):
        return reason
    if _path(weight, acts, geometry, variant) < 0:
        return f"a kernel of {geometry.taps} elements on a map of {geometry.size} needs more working memory than it takes"
    return None


def refuses_linear(weight: Tensor, acts: Tensor) -> str | None:
    return _refuses_device(acts)


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
    return PATHS[_path(weight, acts, geometry, variant)]


def score_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
    return cast(Tensor, torch.ops.nnrelief_cpu.score_conv(weight, acts, _numbers(geometry, variant)))


def score_linear(weight: Tensor, acts: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.nnrelief_cpu.score_linear(weight, acts))


def _refuses_device(acts: Tensor) -> str | None:
    return None if acts.device.type == "cpu" else f"the tensors are on {acts.device}, it serves the CPU"


def _path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> int:
    return cast(int, torch.ops.nnrelief_cpu.conv_path(weight, acts, _numbers(geometry, variant)))


def _numbers(geometry: ConvGeometry, variant: str) -> list[int]:
    """The geometry as csrc/library.cpp takes it."""
    before = (p for p, _ in geometry.padding)
    modes = (geometry.groups, PADDING_MODES.index(geometry.padding_mode), VARIANTS.index(variant))
    return [*geometry.out, *geometry.stride, *before, *geometry.dilation, *modes]

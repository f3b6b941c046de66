"""The compiled C++ kernels (csrc/): both phases fused per channel and block of samples, on torch's own threads."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .. import extension
from ..geometry import ConvGeometry
from . import compiled
from .compiled import score_conv as score_conv
from .compiled import score_linear as score_linear


def unavailable() -> str | None:
    return extension.unavailable()


def describe() -> str:
    return f"C++ extension, {torch.ops.nnrelief.level()} kernels, {torch.get_num_threads()} threads"


def refuses_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    if reason := _refuses_device(acts):
        return reason
    if compiled.conv_path(weight, acts, geometry, variant) is None:
        return f"a kernel of {geometry.taps} elements on a map of {geometry.size} needs more working memory than it takes"
    return None


def refuses_linear(weight: Tensor, acts: Tensor) -> str | None:
    return _refuses_device(acts)


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
    return cast(str, compiled.conv_path(weight, acts, geometry, variant))  # refuses_conv has asked before


def _refuses_device(acts: Tensor) -> str | None:
    return None if acts.device.type == "cpu" else f"the tensors are on {acts.device}, it serves the CPU"

"""The compiled CUDA kernels (csrc/*.cu): what serves CUDA tensors without Triton.

One read of the activations, the same bits every run, no wait for the device. Built where nvcc is found, for the chips that
NNRELIEF_CUDA_ARCHS names; a chip is served by code of its own generation, or by PTX of the last one where it is newer.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from .. import extension
from ..geometry import ConvGeometry
from . import compiled
from .compiled import score_conv as score_conv
from .compiled import score_linear as score_linear


def unavailable() -> str | None:
    if reason := extension.unavailable():
        return reason
    if not architectures():
        return f"the compiled extension has no CUDA kernels: {extension.note()}"
    kernels = f"the kernels are for {_names()}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA ({kernels})"
    return None if torch.cuda.is_available() else f"no CUDA device, torch {torch.__version__} ({kernels})"


def describe() -> str:
    return f"C++ extension, kernels for {_names()}"


def refuses_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    if reason := _refuses_device(acts):
        return reason
    if max(math.prod(geometry.size), geometry.positions) >= 2**31:
        return f"a map of {geometry.size} has more than 2^31 pixels"
    return None


def refuses_linear(weight: Tensor, acts: Tensor) -> str | None:
    return _refuses_device(acts)


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
    return cast(str, compiled.conv_path(weight, acts, geometry, variant))  # plan_cuda.cpp has a path for everything


def architectures() -> list[int]:
    """The chips that this build's kernels are compiled for: 90 stands for sm_90; empty without CUDA."""
    return [int(chip) for chip in torch.ops.nnrelief.cuda_architectures().split(";") if chip]


def serves(capability: tuple[int, int]) -> bool:
    """Whether the kernels run on a chip: code of its major version and at most its minor one, or older PTX."""
    chip, built = 10 * capability[0] + capability[1], architectures()
    return any(chip // 10 == a // 10 and a <= chip for a in built) or built[-1] <= chip


def _names() -> str:
    built = architectures()
    return " ".join(f"sm_{a}" for a in built) + f" and newer than sm_{built[-1]}"


def _refuses_device(acts: Tensor) -> str | None:
    if acts.device.type != "cuda":
        return f"the tensors are on {acts.device}, it serves CUDA devices"
    capability = torch.cuda.get_device_capability(acts.device)
    return None if serves(capability) else f"{acts.device} is sm_{10 * capability[0] + capability[1]}, below {_names()}"

"""Fused Triton kernels for CUDA and ROCm tensors: phase 1 and phase 2 in one launch, one read of the activations.

plan.py chooses a kernel and its blocks, score.py fills in its arguments; each kernel has a file. The first launch leaves
float64 sums per chunk of samples, and finish.py adds them in a fixed order: no float atomics, the same bits every run. With
TRITON_INTERPRET=1 in the environment before Triton is imported, CPU tensors are served by its interpreter, for tests.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ...geometry import ConvGeometry
from . import plan


def unavailable() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton is not installed: {error}"
    if _interpreted() or torch.cuda.is_available():
        return None
    return f"triton {triton.__version__} is here, but no CUDA or ROCm device (torch {torch.__version__})"


def describe() -> str:
    import triton

    if _interpreted():
        return f"triton {triton.__version__}, interpreted on the CPU"
    targets = dict.fromkeys(plan.current_target(index) for index in range(torch.cuda.device_count()))
    return ", ".join([f"triton {triton.__version__}", *(f"{t.backend}:{t.arch}" for t in targets)])


def refuses_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    if reason := _refuses_device(acts):
        return reason
    if conv_path(weight, acts, geometry, variant) == "matrix" and geometry.taps > plan.MOST_TAPS:
        return f"a kernel of {geometry.taps} elements is above its {plan.MOST_TAPS}"
    return None


def refuses_linear(weight: Tensor, acts: Tensor) -> str | None:
    return _refuses_device(acts)


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
    return plan.conv_path(weight, acts, geometry, variant, plan.current_target(acts.device.index))


def score_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
    from . import score

    return score.score_conv(weight, acts, geometry, variant)


def score_linear(weight: Tensor, acts: Tensor) -> Tensor:
    from . import score

    return score.score_linear(weight, acts)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _refuses_device(acts: Tensor) -> str | None:
    served = "cpu" if _interpreted() else "cuda"
    return None if acts.device.type == served else f"the tensors are on {acts.device}, it serves {served} devices"

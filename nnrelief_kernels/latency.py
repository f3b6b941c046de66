"""How long a forward pass takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .collect import Forward, call_model, evaluating


def latency(model: nn.Module, batch: Any, forward: Forward | None = None, seconds: float = 0.5) -> float:
    """Median seconds of one forward pass on `batch` in evaluation mode, over passes that take `seconds` together.

    Args:
        batch: in any form `prune` takes.
        forward: runs the model on a batch.
    """
    from torch.utils.benchmark import Timer  # which looks for CUDA, and complains, as soon as it is imported

    timer = Timer("run()", globals={"run": lambda: call_model(model, batch, forward)}, num_threads=torch.get_num_threads())
    with evaluating(model):
        return float(timer.blocked_autorange(min_run_time=seconds).median)

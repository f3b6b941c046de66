"""Interleaved timing: contenders take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SECONDS = 0.5
"""What the turns of one contender may take together, once it has had `LEAST` of them."""
LEAST, MOST = 3, 50
SLOW = 20.0
"""Seconds of one run from which on one is enough."""
FLUSH = 256 << 20
"""Bytes written between runs on a GPU: more than any L2 cache holds."""


@dataclass(frozen=True)
class Timing:
    """Quantiles of one contender's runs, in seconds."""

    p20: float
    p50: float
    p80: float
    runs: int


def measure(contenders: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Timing]:
    """Time contenders that are warm: each has been called before."""
    clock = _gpu_clock(device) if device.type == "cuda" else _wall_clock
    times = {name: [clock(run)] for name, run in contenders.items()}
    further = {name: _runs(first) - 1 for name, (first,) in times.items()}
    turns = max(further.values())
    for turn in range(turns):
        for name, run in contenders.items():
            # the few turns of a slow contender are spread over those of the fast ones
            if (turn + 1) * further[name] // turns > turn * further[name] // turns:
                times[name].append(clock(run))
    return {name: _timing(t) for name, t in times.items()}


def _timing(times: list[float]) -> Timing:
    p20, p50, p80 = np.quantile(times, (0.2, 0.5, 0.8)).tolist()
    return Timing(p20, p50, p80, len(times))


def _runs(seconds: float) -> int:
    return 1 if seconds > SLOW else max(LEAST, min(MOST, int(SECONDS / seconds)))


def _wall_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gpu_clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    event: Any = torch.cuda.Event
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device)

    def clock(run: Callable[[], object]) -> float:
        start, end = (event(enable_timing=True) for _ in range(2))
        flush.zero_()  # also keeps the GPU busy until the run is queued
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3

    return clock

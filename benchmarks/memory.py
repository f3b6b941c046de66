"""Peak memory of a call above its inputs and result, each measurement in a process of its own: python -m benchmarks.memory"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from nnrelief_kernels.backends import ORDER, conv_refusal

from .baselines import Contender, score
from .suites import Layer

LIMIT = 64 << 20
CASES = (
    (Layer("3x3, many samples", (64, 64, 3, 3), (32, 32), padding=1), 256),
    (Layer("3x3, many filters", (2048, 512, 3, 3), (7, 7), padding=1), 8),
    (Layer("7x7 stem", (64, 3, 7, 7), (224, 224), stride=2, padding=3), 16),
    (Layer("1x1", (2048, 512, 1, 1), (7, 7)), 256),
    (Layer("depthwise", (144, 1, 3, 3), (56, 56), padding=1, groups=144), 64),
    (Layer("linear", (4096, 4096)), 1024),
)
"""Layers and samples; a copy of the activations, of the weight or of all feature maps would show in one of them."""


def peak(contender: Contender, layer: Layer, samples: int, device: str) -> int:
    """Bytes that one call takes above its inputs and result at its peak; device is "cpu" or "cuda"."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the child's threads do not spin where others use the cores
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_peak_here, contender, layer, samples, device).result()


def _peak_here(contender: Contender, layer: Layer, samples: int, device: str) -> int:
    contender(layer, *layer.inputs(1, device=device))  # threads, allocators and compiled code are there from now on
    weight, acts = layer.inputs(samples, device=device)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = contender(layer, weight, acts)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - result.nbytes
    ctypes.CDLL(None).malloc_trim(0)  # pages that earlier calls freed would hide what this one takes
    with contextlib.suppress(OSError):  # where the peak cannot be reset, it is that of making the inputs, in place
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    result = contender(layer, weight, acts)
    return _status("VmHWM") - before - result.nbytes


def places() -> list[tuple[str, str]]:
    """The backends that are here, each with a device that it serves."""
    tiny = Layer("tiny", (1, 1, 1, 1), (1, 1))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    refusals = {device: conv_refusal(*tiny.inputs(1, device=device), tiny.geometry, "paper") for device in devices}
    return [(name, device) for device, refusal in refusals.items() for name in ORDER if refusal(name) is None]


def _status(field: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> int:
    """Print the peak of every case on every backend and device that is here; 1 if one is above `LIMIT`."""
    most = 0
    for name, device in places():
        for layer, samples in CASES:
            found = peak(partial(score, backend=name), layer, samples, device)
            most = max(most, found)
            print(f"{name:7} {device:5} {layer.name:18} {samples:5} samples  {found / 2**20:7.1f} MiB", flush=True)
    print(f"at most {LIMIT >> 20} MiB above inputs and result are allowed")
    return int(most > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

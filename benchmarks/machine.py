"""What the figures were measured on: names, versions, and the two roofs of its roofline."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from .timing import measure


@dataclass(frozen=True)
class Machine:
    """The device and the versions of a run."""

    device: str
    threads: int
    torch: str
    package: str


def machine(device: torch.device) -> Machine:
    """The machine this runs on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Machine(name, torch.get_num_threads(), torch.__version__, _package())


def _package() -> str:
    try:
        return importlib.metadata.version("nnrelief-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "from its source"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum over 256 MiB."""
    values = torch.ones(64 << 20, device=device)
    values.sum()
    return values.nbytes / measure({"sum": values.sum}, device)["sum"].p20


def peak(device: torch.device) -> float:
    """Multiply-adds per second of a float32 matrix product (without tf32, PyTorch's default)."""
    side = 4096 if device.type == "cuda" else 2048
    matrix = torch.ones(side, side, device=device)
    matrix.mm(matrix)
    return side**3 / measure({"product": lambda: matrix.mm(matrix)}, device)["product"].p20

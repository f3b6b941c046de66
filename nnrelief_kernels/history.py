"""The history of an iterative pruning run, one line of JSON per iteration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .files import atomic_write


@dataclass(frozen=True)
class Iteration:
    """One line of a pruning history. Iteration 0 is the network before pruning; errors are what `evaluate` returned."""

    iteration: int
    error_before: float | None
    """After pruning, before retraining."""
    error_after: float | None
    parameters: int
    kept: int
    kept_percent: float
    compression: float
    flops_pruned_percent: float
    active: dict[str, int]
    """Units with at least one connection in and one out (`measure`)."""
    kept_per_layer: dict[str, float]
    """Percent of each layer's connections and biases."""
    seconds: float


def to_lines(history: Iterable[Iteration]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(dataclasses.asdict(iteration)) + "\n" for iteration in history)


def from_lines(lines: str) -> list[Iteration]:
    """The history in `to_lines`' text."""
    return [Iteration(**json.loads(line)) for line in lines.splitlines()]


def write_history(history: Iterable[Iteration], path: str | Path) -> None:
    """The history as JSON lines, atomically."""
    with atomic_write(path) as file:
        file.write(to_lines(history).encode())


def read_history(path: str | Path) -> list[Iteration]:
    """The history in a JSON-lines file."""
    return from_lines(Path(path).read_text())

"""The experiments of Dekhovich et al. 2024 (appendix A) as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .training import LENET, Recipe


@dataclass(frozen=True)
class Experiment:
    """What is trained, how it is pruned and which iteration the publication reports."""

    model: str
    data: str
    training: Recipe
    retraining: Recipe
    iterations: int
    chosen: int
    """The iteration that the publication reports."""
    alpha_conv: float = 0.95
    alpha_fc: float = 0.95
    rewind: bool = False
    """Retrain from the initial parameters."""
    samples: int = 1000
    options: dict[str, Any] = field(default_factory=dict)
    """Of `prune`."""


def _sgd(*rates: tuple[float, int]) -> Recipe:
    return Recipe(rates, optimizer="sgd", augment=True)


def _adam(*rates: tuple[float, int]) -> Recipe:
    return Recipe(rates, augment=True)


LENET_300_100 = Experiment("lenet300-100", "mnist", LENET, LENET, 15, 11, rewind=True)
LENET_5 = Experiment("lenet5", "mnist", LENET, LENET, 20, 20, alpha_conv=0.9, rewind=True)

EXPERIMENTS = {
    "lenet300-100": LENET_300_100,
    "lenet5": LENET_5,
}

"""One pruning step on a trained network by several rules, for Tables 6 and 7 and the authors' scripts beside the text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..authors import residual_masks, silent_masks
from ..dead import remove_dead
from ..magnitude import magnitude_masks
from ..masks import Masks, apply_masks, get_masks
from ..measure import jaccard, measure
from ..pruning import prune
from .data import Dataset
from .experiments import Experiment
from .training import error


@dataclass(frozen=True)
class Outcome:
    """What a rule leaves of a network, before any retraining."""

    masks: Masks
    """Of all weights and biases, in their shapes."""
    kept_percent: float
    active: dict[str, int]
    error: float
    """Test error, percent."""

    def per_layer(self, other: Outcome) -> dict[str, float]:
        """Jaccard indices of the layers' weights, by layer."""
        return {
            name.removesuffix(".weight"): jaccard(mask, other.masks[name])
            for name, mask in self.masks.items()
            if name.endswith(".weight")
        }


def by_importance(
    model: nn.Module,
    experiment: Experiment,
    data: Dataset,
    seed: int = 0,
    *,
    silent: bool = False,
    residual: bool = False,
    **options: Any,
) -> Outcome:
    """The first step of an experiment.

    Args:
        silent, residual: with the authors' two rules for whole units, by the activations before pruning.
        options: of `prune`, over the experiment's.
    """
    batches = data.pruning_set(experiment.samples, seed)
    alphas = {"alpha_conv": experiment.alpha_conv, "alpha_fc": experiment.alpha_fc}

    def mask(copied: nn.Module) -> Masks:
        masks = prune(copied, batches, **{**alphas, **experiment.options, **options})
        if silent:
            apply_masks(copied, silent_masks(model, batches))
        if residual:
            apply_masks(copied, residual_masks(model, batches, experiment.alpha_conv))
        if silent or residual:
            remove_dead(copied, batches[0])
        found = get_masks(copied)
        return {name: found[name] for name in masks}  # without BatchNorm's

    return _outcome(model, data, mask)


def by_magnitude(model: nn.Module, kept_percent: float, data: Dataset, scope: str) -> Outcome:
    """As many parameters by their magnitudes, within each layer or over all ("layer", "global")."""

    def mask(copied: nn.Module) -> Masks:
        masks = magnitude_masks(copied, kept_percent / 100, scope=scope)
        apply_masks(copied, masks)
        return masks

    return _outcome(model, data, mask)


def _outcome(model: nn.Module, data: Dataset, mask: Callable[[nn.Module], Masks]) -> Outcome:
    copied = copy.deepcopy(model)
    shapes: dict[str, Tensor] = dict(copied.named_parameters())
    with torch.no_grad():
        masks = {name: m.expand_as(shapes[name]).clone() for name, m in mask(copied).items()}
        left = measure(copied, data.x_test[:1])
    return Outcome(masks, left.kept_percent, left.active, error(copied, data.x_test, data.y_test))

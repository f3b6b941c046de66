"""fasterai: a criterion for kernels, filters, connections and neurons, calibrated on data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, cast

import torch
from fasterai.core.criteria import Criteria
from torch import Tensor, nn

from ..collect import batch_input
from ..selection import keep_mask, keep_rank
from .calibration import by_module, collect

GRANULARITIES = {nn.Conv2d: {"connection": "kernel", "unit": "filter"}, nn.Linear: {"connection": "weight", "unit": "row"}}


class ReliefCriteria(Criteria):  # type: ignore[misc,unused-ignore]
    """The values of `keep_rank` of the connections of each unit, or of the units of each layer.

    Granularity "kernel" of Conv2d and "weight" of Linear rank connections by Eqs. 2 and 1 of Dekhovich et al. 2024, the bias
    counted where there is one; ranks of different units and layers compare, so that context "global" prunes by one alpha.
    Granularity "filter" of Conv2d and "row" of Linear rank whole units among those of their layer by S_j, the signal that
    enters them. ``Sparsifier(..., criteria=ReliefCriteria(), data=batches)`` calibrates it.

    Args:
        batches: how many batches of the data to calibrate on; None for all.
        options: `Collector`'s variant and backend.
    """

    def __init__(self, batches: int | None = None, **options: Any) -> None:
        super().__init__(torch.abs, needs_data=True)
        self.batches, self.options = batches, options
        self.scores: dict[nn.Module, Tensor] = {}
        self.signal: dict[nn.Module, Tensor] = {}
        self.names: dict[str, nn.Module] = {}

    def calibrate(
        self, model: nn.Module, data: Iterable[Any], layer_type: type[nn.Module] = nn.Conv2d, n_batches: int | None = None
    ) -> None:
        """Score the layers of `layer_type` as they are now, on `n_batches` of the data or what the criterion was made for.

        Raises:
            ValueError: the model has no such layer, or there is no batch.
        """
        batches = [data] if isinstance(data, Tensor) else itertools.islice(data, n_batches or self.batches)
        collector = collect(model, (_plain(batch) for batch in batches), layers=[layer_type], **self.options)
        signal = {name: collector.accumulators[name].signal() for name in collector.scores()}
        self.scores, self.signal = by_module(collector, collector.scores()), by_module(collector, signal)
        self.names = {name: m for name, m in model.named_modules() if m in self.scores}

    @torch.no_grad()
    def __call__(self, m: nn.Module, g: str, squeeze: bool = False) -> Tensor:
        """Importance of the layer's parts, larger is kept, 0 where its mask has pruned.

        Args:
            m: a layer that has been scored.
            g: a granularity of the class's docstring.
            squeeze: without the dimensions of size 1.

        Returns:
            float64, (O, I, 1, 1) for "kernel", (O, 1, 1, 1) for "filter", (O, I) for "weight", (O, 1) for "row".

        Raises:
            ValueError: the granularity is another, or the layer has not been scored.
        """
        rank = self._rank(m, g)
        weight = cast(Tensor, m.weight)
        rank = rank.reshape(*rank.shape, *(1,) * (weight.ndim - rank.ndim))
        if isinstance(mask := getattr(m, "_mask", None), Tensor):
            rank = rank * mask
        return rank.squeeze() if squeeze else rank

    def sparsities(self, alpha: float, g: str) -> dict[str, float]:
        """By layer name, the sparsity at which ``Sparsifier(..., context="local")`` keeps what `keep_mask` keeps at alpha.

        Raises:
            ValueError: alpha is out of range, or the granularity is not one of the layers'.
        """
        keep_mask(torch.ones(1, 1), alpha)  # refuses an alpha out of range
        found = {}
        for name, layer in self.names.items():
            pruned = self._rank(layer, g) <= 1 - alpha
            # the Sparsifier keeps what reaches the k-th least score, k the integer part of sparsity times their number
            found[name] = min(1.0, (int(pruned.sum()) + 1.5) / pruned.numel())
        return found

    def _rank(self, m: nn.Module, g: str) -> Tensor:
        kinds = next((kinds for kind, kinds in GRANULARITIES.items() if isinstance(m, kind)), {})
        if g not in kinds.values():
            raise ValueError(f"granularity of {type(m).__name__} must be one of {sorted(kinds.values())}, got {g!r}")
        if m not in self.scores:
            raise ValueError(f"{m} has not been scored: call calibrate(model, data, {type(m).__name__}) first")
        if g == kinds["connection"]:
            return keep_rank(self.scores[m])[:, : cast(Tensor, m.weight).shape[1]].contiguous()
        entering = self.signal[m].sum(1)
        return keep_rank(entering / entering.sum().clamp(min=torch.finfo(torch.float64).tiny))[:, None]


def _plain(batch: Any) -> Any:
    """The input of a batch as a plain tensor: fastai's are subclasses."""
    x = batch_input(batch)
    return x.as_subclass(Tensor) if isinstance(x, Tensor) else x

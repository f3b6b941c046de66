"""Torch-Pruning: channels ranked by the signal their readers take from them, and removed by the share alpha."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..collect import Forward
from ..layers import CONVS, Layer
from ..masks import get_masks
from ..selection import keep_mask
from .calibration import by_module, collect, input_shares

READS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


class ReliefImportance(tp.importance.Importance):  # type: ignore[misc,unused-ignore]
    """How much of its readers' signal a channel carries: ``mean_j s_ij`` over the filters or neurons j that follow it.

    ``s_ij`` are the scores of Eqs. 1 and 2 of Dekhovich et al. 2024, so over the channels of one group they sum to 1 less the
    share of the biases. Several readers (a residual connection) are averaged; the inputs of a linear layer after a flatten
    add up to their channel; filters of a grouped convolution carry nothing from other groups' channels. Any pruner of
    Torch-Pruning takes it as its ``importance``.

    Args:
        model: the network to prune, not masked.
        batches, forward: the pruning set as in `prune`; a tensor is one batch.
        options: `Collector`'s, for instance variant and exclude.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None, **options: Any) -> None:
        self.calibrate(model, batches, forward, **options)

    def calibrate(self, model: nn.Module, batches: Iterable[Any], forward: Forward | None = None, **options: Any) -> None:
        """Score the network again; between the steps of an iterative pruner it must be, as its layers have changed."""
        collector = collect(model, batches, forward, **options)
        self.scores = by_module(collector, collector.scores())

    def __call__(self, group: Any) -> Tensor | None:
        """`shares` in units of the average channel, comparable between groups for ``global_pruning``; None as there."""
        shares = self.shares(group)
        return shares * len(shares) if shares is not None else None

    def shares(self, group: Any) -> Tensor | None:
        """Each channel's part of the signal of the group's readers.

        Args:
            group: of ``DependencyGraph.get_pruning_group`` or ``get_all_groups``.

        Returns:
            float64, as long as the indices the group was made for; None where nothing in the network reads the channels,
            or they are its output: a pruner leaves such a group alone.

        Raises:
            ValueError: a reader has changed since it was scored, or Torch-Pruning cannot tell which channel it reads.
        """
        readers = _readers(group)
        scored = [(layer, idxs, places) for layer, idxs, places in readers if layer in self.scores]
        if not scored or _is_output(group):
            return None
        total = torch.zeros(len(group[0].idxs), dtype=torch.float64)
        for layer, idxs, places in scored:
            total.index_add_(0, places, self._by_input(layer)[idxs])
        return total / len(scored)

    def _by_input(self, layer: Layer) -> Tensor:
        """(C_in,): the mean over all filters of the share that an input channel carries."""
        scores = self.scores[layer]
        out, columns = layer.weight.shape[:2]
        if scores.shape[0] != out or scores.shape[1] - columns not in (0, 1):
            raise ValueError(f"{layer} has changed since it was scored: call calibrate(model, batches) first")
        return input_shares(scores.double().cpu(), layer)


def prune_channels(
    model: nn.Module, example_inputs: Any, importance: ReliefImportance, alpha: float, ignored_layers: Iterable[nn.Module] = ()
) -> dict[str, list[int]]:
    """Remove the channels outside the share alpha of each group's signal: alpha decides how many, group by group.

    The rule of `keep_mask` with `ReliefImportance.shares` in place of one unit's scores: on average over the units that read
    a group, the channels removed carried at most 1 - alpha of the signal. (What `prune` leaves unread, `shrink` removes.)

    Args:
        model: changed in place; not masked.
        example_inputs: as in ``DependencyGraph.build_dependency``.
        importance: scores of this model.
        alpha: in (0, 1].
        ignored_layers: layers whose outputs stay whole; an output of the network that is also read inside it needs this.

    Returns:
        What was removed: the name of a group's first layer to its output channels. At least one channel of a group stays.

    Raises:
        ValueError: alpha is out of range, or the model is masked.
    """
    keep_mask(torch.ones(1, 1), alpha)  # refuses an alpha out of range before the graph is built
    if get_masks(model):
        raise ValueError("model must not be masked: call fold_masks(model) first")
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example_inputs)
    chosen = []
    for group in graph.get_all_groups(ignored_layers=list(ignored_layers), root_module_types=(*CONVS, nn.Linear)):
        shares = importance.shares(group)
        if shares is None:
            continue
        groups = _channel_groups(group)
        units = shares.reshape(groups, -1).sum(0)
        biases = (1 - units.sum()).clamp(min=0)
        kept = keep_mask(torch.cat([units, biases[None]]), alpha)[:-1]
        kept[units.argmax()] = True  # also where the biases alone carry the share alpha
        removed = (~kept).repeat(groups).nonzero().flatten().tolist()
        if removed:
            chosen.append((group[0].dep.target.module, group[0].dep.handler, removed))
    for layer, function, removed in chosen:
        graph.get_pruning_group(layer, function, removed).prune()
    return {names[layer]: removed for layer, _, removed in chosen}


def _readers(group: Any) -> list[tuple[Layer, Tensor, Tensor]]:
    """The layers that take the group's channels in, the inputs they take, and each input's place among the channels."""
    place = {channel: k for k, channel in enumerate(group[0].idxs)}
    found = []
    for item in group.items:
        layer = item.dep.target.module
        if item.dep.handler not in READS:
            continue
        if any(root not in place for root in item.root_idxs):
            source = group[0].dep.target.name
            raise ValueError(f"Torch-Pruning cannot tell which channels of {source} {layer} reads: ignore the first of them")
        found.append((cast(Layer, layer), torch.tensor(item.idxs), torch.tensor([place[root] for root in item.root_idxs])))
    return found


def _is_output(group: Any) -> bool:
    return any(item.dep.target.type == tp.ops.OPTYPE.OUTPUT for item in group.items)


def _channel_groups(group: Any) -> int:
    """Groups of the grouped convolutions that read or make the channels: each must lose the same number."""
    layers = [item.dep.target.module for item in group.items if item.dep.handler in (*READS, tp.prune_conv_out_channels)]
    return max((layer.groups for layer in layers if isinstance(layer, CONVS)), default=1)

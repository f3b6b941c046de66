"""Two rules of the authors' released scripts that prune whole units by their activations over the pruning set.

Both give masks for `apply_masks`, after which `remove_dead` takes off what they leave without use. Where a unit goes, so do the
scale and shift of its BatchNorm, so that exactly 0 remains of it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from .collect import as_batches, batch_input
from .layers import Layer, find_layers, unwrap
from .liveness import POINTWISE, aten, packet
from .masks import Masks, fold_masks
from .tracing import Trace, trace

SAMPLES = 32


def silent_masks(model: nn.Module, batches: Iterable[Any]) -> Masks:
    """The dead-activation rule: units of which nothing is left after the nonlinearity, on any of the samples, go.

    On those samples the outputs stay what they were.

    Args:
        model: stays as it is.
        batches: tensors, or tuples or lists whose first element is the input; or one tensor.

    Raises:
        NotTraceable: torch.export cannot follow the model.
    """
    network = _Network(model, batches)
    chains = {
        node: chain
        for node in network.traced.graph.nodes
        if node.op == "call_function" and _is_activation(node) and (chain := network.chain(node)) is not None
    }
    peaks: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, value: Tensor) -> None:
        peak = _per_unit(value.abs(), chains[node].axis).amax(1)
        peaks[node] = torch.maximum(peaks.get(node, peak), peak)

    network.visit(chains, look)
    return _merged(chain.without(peaks[node] == 0) for node, chain in chains.items())


def residual_masks(model: nn.Module, batches: Iterable[Any], alpha: float) -> Masks:
    """The residual rule: of two branches that are added, a unit goes where the other branch carries alpha of the signal.

    Branch a's unit goes where ``|| mean_n |a_n| || / || mean_n |b_n| || < (1 - alpha) / alpha``, norms over the map, and b's
    where the inverse ratio is: in the layer that ends the branch, if nothing else reads it. An identity shortcut stays.

    Args:
        model, batches: as in `silent_masks`.
        alpha: in (0, 1].

    Raises:
        NotTraceable: torch.export cannot follow the model.
        ValueError: alpha is out of range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha!r}")
    network = _Network(model, batches)
    sums = [
        (a, b)
        for a, b in (node.all_input_nodes for node in network.traced.graph.nodes if _is_sum(node))
        if a not in network.traced.state and b not in network.traced.state and a.meta["val"].shape == b.meta["val"].shape
    ]
    chains = {node: network.chain(node) for pair in sums for node in pair}
    means: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, value: Tensor) -> None:
        means[node] = means.get(node, 0) + value.abs().sum(0, dtype=torch.float64)

    network.visit(chains, look)
    found = []
    for pair in sums:
        for own, other in (pair, pair[::-1]):
            if (chain := chains[own]) is not None and len(own.users) == 1:
                mine, others = (_per_unit(means[node][None], chain.axis).norm(dim=1) for node in (own, other))
                found.append(chain.without(alpha * mine < (1 - alpha) * others))
    return _merged(found)


class _Chain:
    """A layer and what follows it unit by unit, up to a node: the parameters that make its units 0 together."""

    def __init__(self, parameters: dict[str, Tensor], axis: int) -> None:
        self.parameters, self.axis = parameters, axis

    def without(self, units: Tensor) -> Masks:
        if not units.any():
            return {}
        return {name: ~units.reshape(-1, *(1,) * (value.ndim - 1)) for name, value in self.parameters.items()}


class _Network:
    """The traced model on a pruning set that is read once."""

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.model = copy.deepcopy(unwrap(model))
        fold_masks(self.model)
        self.samples = torch.cat([batch_input(batch) for batch in as_batches(batches)])
        self.traced: Trace = trace(self.model, self.samples[:SAMPLES])
        self.names = {id(value): name for name, value in self.model.named_parameters()}
        self.layers = {id(tied[0].weight): tied[0] for tied in find_layers(self.model).values() if len(tied) == 1}

    def visit(self, nodes: Iterable[fx.Node], look: Callable[[fx.Node, Tensor], None]) -> None:
        """Show the values of the nodes, some samples at a time."""
        wanted = set(nodes)
        for part in torch.split(self.samples, SAMPLES):
            count = len(part)
            filled = torch.cat([part, self.samples[: min(SAMPLES, len(self.samples)) - count]])  # the trace's own number
            for node, value in self.traced.run(filled):
                if node in wanted:
                    look(node, value[:count])

    def chain(self, node: fx.Node) -> _Chain | None:
        """What ends in `node`; None where that is not a layer's units, one by one and read by nothing else, that are 0 if the
        layer's parameters are."""
        calls = []
        while (layer := self._layer(node)) is None:
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or len(before.users) != 1:
                return None
            if packet(node) is aten._native_batch_norm_legit_no_training:
                if node.args[1] is None or node.args[2] is None:
                    return None
                calls.append(node)
            elif not (node.target is operator.getitem or (_is_activation(node) and _of_zero(node) == 0)):
                return None
            node = before
        calls.append(node)
        values = [self.traced.state[source] for call in calls for source in call.all_input_nodes if source in self.traced.state]
        parameters = {self.names[id(value)]: value for value in values if id(value) in self.names}
        return _Chain(parameters, -1 if isinstance(layer, nn.Linear) else 1)

    def _layer(self, node: fx.Node) -> Layer | None:
        weight = node.args[1] if len(node.args) > 1 else None
        held = isinstance(weight, fx.Node) and weight in self.traced.state and len(weight.users) == 1
        return self.layers.get(id(self.traced.state[cast(fx.Node, weight)])) if held else None


def _is_activation(node: fx.Node) -> bool:
    known = packet(node) in POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())
    return known and len(node.all_input_nodes) == 1 and node.all_input_nodes[0] is node.args[0]


def _is_sum(node: fx.Node) -> bool:
    return packet(node) is aten.add and len(node.all_input_nodes) == 2


def _of_zero(node: fx.Node) -> float:
    """The activation's value at 0."""
    return float(cast(Callable[..., Tensor], node.target)(torch.zeros(1), *node.args[1:], **node.kwargs))


def _per_unit(value: Tensor, axis: int) -> Tensor:
    return value.movedim(axis, 0).flatten(1)


def _merged(found: Iterable[Masks]) -> Masks:
    masks: Masks = {}
    for each in found:
        for name, mask in each.items():
            masks[name] = masks[name] & mask if name in masks else mask
    return masks

"""What pruning can change at most, and what it does change: Section 5.2 of Dekhovich et al. 2024."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .accumulate import accumulator_of
from .collect import Collector, Forward, as_batches, batch_input, call_model, device_of, evaluating, watching
from .layers import CONVS, Layer, Which, unwrap
from .masks import Masks, apply_masks
from .measure import trace
from .propagation import Lipschitz, Propagation, difference, operate, removed
from .pruning import check_rereadable, layer_masks
from .selection import keep_mask

ALPHAS = [1 - 2 ** -(1 + k / 2) for k in range(40)] + [1.0]
"""What `alpha_for_bound` chooses from: 1/2 to 1, each step divides 1 - alpha by the square root of 2."""


@dataclass(frozen=True)
class Bounds:
    """Over samples, per unit, (units,) each: how far its output may move, and how far it does.

    A filter's output is a map, which moves by the Frobenius norm of its change. Rounding aside, nothing exceeds its bound.
    """

    average_bound: Tensor
    average_change: Tensor
    largest_bound: Tensor
    """Of any one sample."""
    largest_change: Tensor
    tightest: float
    """The largest ratio of a change and its bound, over samples and units; 0 where nothing changes."""


@dataclass(frozen=True)
class LayerBounds(Bounds):
    """`Bounds` of a layer's outputs before the activation, its inputs being those of the original network."""

    signal: Tensor
    """S_j, the mean over samples of what enters unit j."""
    removed: Tensor
    """What of it was pruned: the bound on the average that scores alone give (Eqs. 4 and 9), at most S_j (1 - alpha).
    `average_bound` is at most this: it adds a map's signals position by position."""


@dataclass(frozen=True)
class Certificate:
    """What `certify` found."""

    layers: dict[str, LayerBounds]
    """Of every masked layer that was called."""
    outputs: Bounds | None
    """Of the network's outputs, flattened, with all layers pruned; None where `reason` says why they are not bounded."""
    reason: str


def layer_bounds(
    layer: Layer,
    pruned: Layer,
    acts: Tensor,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    lipschitz: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Bound and change of each unit's output on each sample (Eqs. 5 to 8, 10 and 11 of Dekhovich et al. 2024).

    ``|z_j - z'_j| <= sum over the pruned of |w_ij x_ni|``, and ``+ |b_j|`` where the bias went; for a filter, the Frobenius
    norm of the map of these sums. The mean over samples bounds the average change, the maximum that of every sample.

    Args:
        layer, pruned: the layer as it was, and with some weights and biases 0.
        acts: what enters it: (N, C_in, *spatial), or (..., in) where every leading dimension counts as samples.
        activation: applied to the outputs before they are compared; None for none.
        lipschitz: its Lipschitz constant (ReLU, ELU: 1).

    Returns:
        Bound and change, (N, units) each.
    """
    with torch.no_grad():
        bound = lipschitz * removed(layer, pruned, acts)
        if activation is None:
            change = operate(layer, *difference(layer, pruned), acts)  # exact where the outputs nearly agree
        else:
            change = activation(layer(acts)) - activation(pruned(acts))
    return _by_unit(layer, bound), _by_unit(layer, change)


def certify(
    model: nn.Module,
    masks: Masks,
    batches: Iterable[Any],
    *,
    lipschitz: Lipschitz | None = None,
    forward: Forward | None = None,
) -> Certificate:
    """Bounds on what `masks` change in `model`, per layer and at its outputs, beside what they do change on `batches`.

    At the outputs (Eqs. 12 to 14, for any number of pruned layers): where a layer's inputs change by at most e, and its
    pruned connections carry at most r, its outputs change by at most ``|W'| e + r``, W' being what is left of W. An activation
    passes on its Lipschitz constant times e; BatchNorm, pooling, sums and concatenations what they make of it. All this is
    done element by element and sample by sample.

    Args:
        model: the network before the pruning, in any mode; read, not changed.
        masks: what `prune` returned for a copy of it.
        batches: inputs to certify the pruning on, as in `prune`.
        lipschitz: constants of further activations, by module type, function or method name.
        forward: runs the model it is handed on a batch; the outputs are bounded only without it.

    Raises:
        ValueError: a mask does not fit the model, or there is no batch.
    """
    model = unwrap(model)
    pruned = copy.deepcopy(model)
    apply_masks(pruned, masks)
    masked = {path: m for path, m in model.named_modules() if parametrize.is_parametrized(pruned.get_submodule(path))}
    layers = {path: m for path, m in masked.items() if isinstance(m, (nn.Linear, *CONVS))}
    records = {path: _Record(layer, cast(Layer, pruned.get_submodule(path))) for path, layer in layers.items()}
    outputs, reason, empty = _Running(), "", True
    propagation: Propagation | None = None
    with evaluating(model), evaluating(pruned):
        try:
            if forward is not None:
                raise ValueError("the model is run by forward=")
            propagation = _propagation(model, masked, {record.layer: record.pruned for record in records.values()}, lipschitz)
        except ValueError as refusal:
            reason = str(refusal)
        with watching(model, {path: (layer,) for path, layer in layers.items()}, lambda path, _, x: records[path].see(x)):
            for batch in as_batches(batches):
                empty = False
                if propagation is not None and isinstance(batch, Mapping):
                    propagation, reason = None, "batches hold keyword arguments"
                if propagation is None:
                    call_model(model, batch, forward)
                    continue
                out = propagation.run(batch_input(batch).to(device_of(model)))
                if propagation.refusal:
                    reason, propagation = propagation.refusal, None
                    continue
                change = (out - call_model(pruned, batch)).abs()
                outputs.add(propagation.output_bound.flatten(1), change.flatten(1))
    if empty:
        raise ValueError("batches must hold at least one batch, got none")
    found = {path: record.bounds() for path, record in records.items() if record.running.samples}
    return Certificate(found, Bounds(*outputs.found()) if propagation is not None else None, reason)


def alpha_for_bound(
    model: nn.Module,
    batches: Iterable[Any],
    budget: float,
    *,
    layers: Iterable[Which] | None = None,
    exclude: Iterable[Which] = (),
    lipschitz: Lipschitz | None = None,
) -> dict[str, float]:
    """The alpha of each layer, for ``prune(alphas=...)``, that keeps the average change of every output within `budget`.

    From the last layer to the first: the k-th of L takes the least of `ALPHAS` with which it and those after it, pruned
    together, are bounded (as in `certify`) by k/L of the budget. The time is that of about nine forward passes over
    `batches` per layer.

    Args:
        model: read, not changed; `torch.fx` must be able to trace it.
        batches: the pruning set as in `prune`, iterable more than once; the average is over its samples.
        budget: in units of the outputs, at least 0.
        layers, exclude, lipschitz: as in `prune` and `certify`.

    Raises:
        TypeError: `batches` can be read only once.
        ValueError: budget is negative, or the outputs of this network cannot be bounded (the cause is given).
    """
    if not budget >= 0:
        raise ValueError(f"budget must be at least 0, got {budget!r}")
    check_rereadable(batches)
    model = unwrap(model)
    batches = as_batches(batches)
    with Collector(model, layers, exclude) as collector:
        collector.run(batches)
    alphas: dict[str, float] = {}
    with evaluating(model):
        called = {name: layer for name in collector.order for layer in collector.layers[name]}
        pruned: dict[nn.Module, Layer] = {}
        propagation = _propagation(model, called, pruned, lipschitz)
        for place, name in enumerate(reversed(collector.order), 1):
            scores = collector.accumulators[name].scores()
            low, high = 0, len(ALPHAS) - 1  # alpha = 1 prunes what carries nothing
            while low < high:
                middle = (low + high) // 2
                pruned |= _thinned(collector.layers[name], keep_mask(scores, ALPHAS[middle]))
                if _average_bound(propagation, model, batches) <= budget * place / len(collector.order):
                    high = middle
                else:
                    low = middle + 1
            pruned |= _thinned(collector.layers[name], keep_mask(scores, ALPHAS[high]))
            alphas[name] = ALPHAS[high]
    return alphas


class _Running:
    """Sums and maxima over samples, of bounds and of changes."""

    def __init__(self) -> None:
        self.samples, self.tightest = 0, 0.0
        self.totals, self.maxima = torch.zeros(()), torch.zeros(())
        """(2, units) once there are samples."""

    def add(self, bound: Tensor, change: Tensor) -> None:
        """Both (N, units)."""
        both = torch.stack([bound, change]).double()
        self.totals = self.totals.to(both) + both.sum(1)
        self.maxima = torch.maximum(self.maxima.to(both), both.amax(1))
        ratios = torch.where(both[1] > 0, both[1] / both[0], 0.0)
        self.tightest = max(self.tightest, float(ratios.max()))
        self.samples += both.shape[1]

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """The fields of `Bounds`."""
        averages = self.totals / self.samples
        return averages[0], averages[1], self.maxima[0], self.maxima[1], self.tightest


class _Record:
    """What enters one masked layer, and what of it the pruning removes."""

    def __init__(self, layer: Layer, pruned: Layer) -> None:
        self.layer, self.pruned = layer, pruned
        self.running, self.accumulator = _Running(), accumulator_of([layer])

    def see(self, acts: Tensor) -> None:
        self.running.add(*layer_bounds(self.layer, self.pruned, acts))
        self.accumulator.update(acts)

    def bounds(self) -> LayerBounds:
        signal = self.accumulator.signal() / self.accumulator.samples
        weight, bias = difference(self.layer, self.pruned)
        gone = weight.reshape(*weight.shape[:2], -1).any(2)
        if self.layer.bias is not None:
            gone = torch.cat([gone, cast(Tensor, bias).bool()[:, None]], 1)
        return LayerBounds(*self.running.found(), signal=signal.sum(1), removed=(signal * gone).sum(1))


def _by_unit(layer: Layer, values: Tensor) -> Tensor:
    """(N, units): magnitudes of a fully connected layer's outputs, norms of a convolution's maps."""
    if isinstance(layer, nn.Linear):
        return values.abs().reshape(-1, values.shape[-1])
    norms: Tensor = torch.linalg.vector_norm(values.flatten(2 - layer.weight.ndim), dim=-1)
    return norms.reshape(-1, len(layer.weight))


def _propagation(
    model: nn.Module, masked: Mapping[str, nn.Module], pruned: Mapping[nn.Module, Layer], lipschitz: Lipschitz | None
) -> Propagation:
    """For a model whose modules `masked` may be pruned; a ValueError where it cannot be told how that changes the outputs."""
    graph = trace(model)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for path, module in masked.items():
        if not isinstance(module, (nn.Linear, *CONVS)):
            raise ValueError(f"{path!r} is masked and no Linear or convolution")
        if path not in called or any(f"{owner}.".startswith(f"{path}.") for owner in read):
            raise ValueError(f"the weight of {path!r} is used otherwise than by calling the layer")
    return Propagation(fx.GraphModule(model, graph), pruned, lipschitz or {})


def _thinned(tied: Iterable[Layer], keep: Tensor) -> dict[nn.Module, Layer]:
    """Copies of the layers with `keep` in force."""
    thinned: dict[nn.Module, Layer] = {}
    for layer in tied:
        copied = copy.deepcopy(layer)
        apply_masks(copied, layer_masks(copied, "", (copied,), keep))
        thinned[layer] = copied
    return thinned


def _average_bound(propagation: Propagation, model: nn.Module, batches: Iterable[Any]) -> float:
    """Over samples, of the output for which it is largest."""
    total, samples = torch.zeros(()), 0
    for batch in batches:
        propagation.run(batch_input(batch).to(device_of(model)))
        if propagation.refusal:
            raise ValueError(f"the outputs of this network cannot be bounded: {propagation.refusal}")
        bound = propagation.output_bound.flatten(1).double()
        total, samples = total.to(bound) + bound.sum(0), samples + len(bound)
    return float(total.max()) / samples

"""What pruning left: parameters, FLOPs and active units as Section 4 and appendix B of Dekhovich et al. 2024 count them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn

from .collect import Forward, call_model, evaluating, unfused
from .layers import CONVS, Layer, behind, unwrap


@dataclass(frozen=True)
class Measurement:
    """Counts over Linear and convolution weights and their biases, a shared one once; BatchNorm is not counted."""

    parameters: int
    kept: int
    """Parameters that are not 0."""
    dense_flops: int
    """Of one sample: 2 H W (C_in K² + 1) C_out for a convolution, (2 I - 1) O for a fully connected layer."""
    flops: int
    """The same over the units still active."""
    active: dict[str, int]
    """Per layer, units with a connection in and one out. A chain of layers starts with "input", the inputs still read; where
    the network is no chain, a unit's outgoing connections are not looked for."""
    kept_per_layer: dict[str, float]
    """Percent of each layer's parameters."""

    @property
    def kept_percent(self) -> float:
        return 100 * self.kept / self.parameters

    @property
    def compression(self) -> float:
        """|w| / |w != 0|."""
        return self.parameters / self.kept if self.kept else math.inf

    @property
    def flops_pruned_percent(self) -> float:
        return 100 * (1 - self.flops / self.dense_flops)


def measure(model: nn.Module, example: Any, forward: Forward | None = None) -> Measurement:
    """Count what is left of `model`.

    Args:
        model: masked, folded or dense.
        example: one batch, in any form `prune` takes; it tells the sizes of the maps.
        forward: runs the model on a batch.

    Raises:
        ValueError: the model calls no Linear or convolution on `example`.
    """
    model = unwrap(model)
    positions = _positions(model, example, forward)
    layers = {name: cast(Layer, model.get_submodule(name)) for name in positions}
    if not layers:
        raise ValueError("model must call at least one Linear or Conv1d/2d/3d layer on example, it calls none")
    alive = {name: (layer.weight != 0).flatten(2).any(2) if layer.weight.ndim > 2 else layer.weight != 0
             for name, layer in layers.items()}  # fmt: skip
    receives = {name: connections.any(1) for name, connections in alive.items()}
    feeds = {name: inputs_in_use(layers[name], connections) for name, connections in alive.items()}

    active: dict[str, int] = {}
    inputs = {name: feeds[name] for name in layers}
    outputs = dict(receives)
    chain = layer_chain(model, layers)
    if chain:
        active["input"] = int(feeds[chain[0]].sum())
        for name, following in itertools.pairwise(chain):
            outputs[name] = receives[name] & feeds[following].reshape(len(receives[name]), -1).any(1)
            per_unit = len(feeds[following]) // len(outputs[name])
            inputs[following] = feeds[following] & outputs[name].repeat_interleave(per_unit)
    active |= {name: int(outputs[name].sum()) for name in layers}

    counts = {
        name: {id(behind(layer, key)): (int((p != 0).sum()), p.numel())
               for key in ("weight", "bias") if (p := getattr(layer, key)) is not None}
        for name, layer in layers.items()
    }  # fmt: skip
    once = dict(item for parameters in counts.values() for item in parameters.items())
    kept = {name: sum(n for n, _ in parameters.values()) for name, parameters in counts.items()}
    total = {name: sum(n for _, n in parameters.values()) for name, parameters in counts.items()}
    return Measurement(
        parameters=sum(n for _, n in once.values()),
        kept=sum(n for n, _ in once.values()),
        dense_flops=sum(_flops(layers[n], positions[n], len(feeds[n]), len(receives[n])) for n in layers),
        flops=sum(_flops(layers[n], positions[n], int(inputs[n].sum()), int(outputs[n].sum())) for n in layers),
        active=active,
        kept_per_layer={name: 100 * kept[name] / total[name] for name in layers},
    )


def jaccard(a: Tensor | Mapping[str, Tensor], b: Tensor | Mapping[str, Tensor]) -> float:
    """|a and b| / |a or b| of two masks, or of two sets of masks taken together; 1 where both are empty.

    Raises:
        ValueError: names or shapes differ.
    """
    a, b = ({"mask": m} if isinstance(m, Tensor) else dict(m) for m in (a, b))
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        raise ValueError("a and b must hold masks of the same names and shapes")
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    return both / either if either else 1.0


def _positions(model: nn.Module, example: Any, forward: Forward | None) -> dict[str, int]:
    """How often each layer's kernel or matrix is applied per sample, for the layers that `example` reaches."""
    found: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(module, nn.MultiheadAttention):  # (N, L, E) or (L, N, E), and weights that are not asked for
                out = out[0] if module.batch_first or out[0].ndim == 2 else out[0].movedim(1, 0)
            linear = isinstance(module, (nn.Linear, nn.MultiheadAttention))
            found[name] = found.get(name, 0) + math.prod(out.shape[1:-1] if linear else out.shape[2:])

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                projection = f"{name}.out_proj" if name else "out_proj"  # which attention never calls as a module
                stack.callback(module.register_forward_hook(record(projection)).remove)
            elif isinstance(module, (nn.Linear, *CONVS)):
                stack.callback(module.register_forward_hook(record(name)).remove)
        stack.enter_context(unfused())
        stack.enter_context(evaluating(model))
        call_model(model, example, forward)
    return found


def inputs_in_use(layer: Layer, connections: Tensor) -> Tensor:
    """Which of the layer's inputs have a connection left: (C_out, C_in/groups) to (C_in,)."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return connections.reshape(groups, -1, connections.shape[1]).any(1).flatten()


def _flops(layer: Layer, positions: int, inputs: int, outputs: int) -> int:
    if isinstance(layer, nn.Linear):
        return max(2 * inputs - 1, 0) * outputs * positions
    taps = math.prod(layer.kernel_size)
    return 2 * positions * (inputs * taps // layer.groups + 1) * outputs


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Linear, *CONVS)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The model's graph of calls with its Linear and convolution layers whole, masked or not.

    Raises:
        ValueError: torch.fx cannot trace the model; the cause is given.
    """
    try:
        return _LayerTracer().trace(model)
    except Exception as error:  # whatever a model's own code raises under tracing
        raise ValueError(f"torch.fx cannot trace the model: {error}") from error


def layer_chain(model: nn.Module, layers: dict[str, Layer]) -> list[str]:
    """The layers' names in order where each feeds the next and nothing else; [] where the network is not such a chain."""
    try:
        graph = trace(model)
    except ValueError:  # then its units are counted per layer
        return []
    order: list[str] = []
    source: dict[fx.Node, str | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        origins = {source[n] for n in node.all_input_nodes if n in source}
        if node.op == "call_method" and node.target in ("size", "dim"):
            continue  # a number, not a signal
        if node.op == "get_attr" or (node.op == "call_function" and node.target is getattr):
            continue
        if node.op == "placeholder":
            source[node] = None
        elif len([n for n in node.all_input_nodes if n in source]) != 1:
            return []
        elif node.op == "call_module" and str(node.target) in layers:
            if origins != {order[-1] if order else None}:
                return []
            order.append(str(node.target))
            source[node] = order[-1]
        else:
            source[node] = origins.pop()
    if sorted(order) != sorted(layers):
        return []
    for before, after in itertools.pairwise(order):
        units, inputs = layers[before].weight.shape[0], _inputs(layers[after])
        flattens = isinstance(layers[after], nn.Linear) and not isinstance(layers[before], nn.Linear)
        if inputs != units and not (flattens and inputs % units == 0):
            return []
    return order


def _inputs(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

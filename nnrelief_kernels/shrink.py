"""A smaller dense network in place of one with dead channels, by Torch-Pruning's dependency graph."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .collect import Forward, call_model, evaluating, unfused
from .dead import remove_dead
from .latency import latency
from .layers import CONVS, unwrap
from .liveness import liveness
from .masks import fold_masks
from .measure import measure
from .tracing import first_sample, trace

LAYERS = (nn.Linear, *CONVS)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OPERATORS = {"_ConcatOp", "_SplitOp", "_ReshapeOp", "_ExpandOp", "_UnbindOp", "_SliceOp", "_ElementWiseOp"}
"""Torch-Pruning's, which have no parameters and hand channels on."""


@dataclass(frozen=True)
class Shrunk:
    """A smaller network and what it saves: pairs of before and after."""

    model: nn.Module
    error: float
    """max|Δ output| / max|output|, over the example and as many random inputs."""
    parameters: tuple[int, int]
    """All of them, zeros too."""
    flops: tuple[int, int]
    """Of one sample, as `measure` counts a dense network's."""
    seconds: tuple[float, float]
    """Median time of a forward pass on the example."""
    left: dict[str, int]
    """Units that nothing reads and that stay, by layer: the code or a layer behind them is made for their number, they are
    tied to others by a sum, or their BatchNorm turns them into a constant that is read."""


def shrink(
    model: nn.Module,
    example: Any,
    *,
    forward: Forward | None = None,
    tolerance: float = 1e-5,
    seconds: float = 0.5,
) -> Shrunk:
    """Take dead units out of a copy of the network; its outputs in evaluation mode stay what they were, up to rounding.

    Masks are folded; constants go into biases, new ones where a layer has none (`remove_dead`). A channel goes when nothing
    reads any of the units that it is tied to, through sums and concatenations. Each layer's are taken out by themselves, the
    outputs are compared, and what the model's own code does not bear is put back.

    Args:
        model: masked, folded or dense; stays as it is. Of DistributedDataParallel, the module inside.
        example: one batch, in any form `prune` takes.
        forward: runs the model on a batch.
        tolerance: the largest `error`.
        seconds: how long to time each of the two networks.

    Raises:
        NotTraceable: torch.export cannot follow the model.
        RuntimeError: the outputs differ by more than `tolerance`.
        ValueError: torch-pruning is not installed.
    """
    require_torch_pruning()
    dense = copy.deepcopy(unwrap(model))
    fold_masks(dense)
    small = copy.deepcopy(dense)
    trained = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    remove_dead(small, example, new_biases=True, forward=forward)
    fold_masks(small)
    one = example if forward is not None else first_sample(small, example)
    with evaluating(small), unfused():
        small, left = _without_dead(small, one, forward, tolerance)
    modes = {name: module.training for name, module in dense.named_modules()}
    for name, module in small.named_modules():
        module.training = modes[name]
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(trained.get(name, True)).grad = None
    error = _Check(dense, example, forward).error(small)
    if not error <= tolerance:
        raise RuntimeError(f"the smaller network's outputs differ by {error:.2e} of the largest, tolerance is {tolerance:.0e}")
    return Shrunk(
        small,
        error,
        (_size(dense), _size(small)),
        (measure(dense, example, forward).dense_flops, measure(small, example, forward).dense_flops),
        (latency(dense, example, forward, seconds), latency(small, example, forward, seconds)),
        left,
    )


def require_torch_pruning() -> Any:
    """The module torch_pruning; a ValueError says how to install what is missing."""
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError("shrink needs torch-pruning: pip install 'nnrelief-kernels[shrink]'") from error
    return torch_pruning


class _Check:
    """What a network must still compute, on a batch and on random inputs like it."""

    def __init__(self, model: nn.Module, batch: Any, forward: Forward | None) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(x: Any) -> Any:
            if not (isinstance(x, Tensor) and x.is_floating_point()):
                return x
            return torch.randn(x.shape, generator=generator).to(x)

        self.batches, self.forward = (batch, pytree.tree_map(drawn, batch)), forward
        self.expected = self.outputs(model)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            results = [call_model(model, batch, self.forward) for batch in self.batches]
        return [leaf.double() for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]

    def error(self, model: nn.Module) -> float:
        """max|Δ output| / max|output|, the worst of the outputs; NaN where an output is NaN."""
        errors = [0.0]
        for expected, found in zip(self.expected, self.outputs(model), strict=True):
            if found.shape != expected.shape:
                return math.inf
            difference = float((expected - found).abs().max())
            errors.append(difference / float(expected.abs().max()) if difference else 0.0)
        return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _without_dead(model: nn.Module, batch: Any, forward: Forward | None, tolerance: float) -> tuple[nn.Module, dict[str, int]]:
    """The model without its dead channels, and how many of a layer's stay. `model` itself may be left half done."""
    check, unread = _Check(model, batch, forward), _unread(model, batch, forward)
    graph = _graph(model, batch, forward)
    layers = [name for name in unread if isinstance(model.get_submodule(name), LAYERS)]
    for name in layers:
        group = _dead_group(graph, model, name, unread)
        if group is None:
            continue
        before = copy.deepcopy(model)
        paths = {module: path for path, module in model.named_modules()}
        try:
            group.prune(record_history=False)
            fits = check.error(model) <= tolerance
        except Exception:  # whatever the model's own code raises where it is made for a number of channels
            fits = False
        if fits:
            for dependency, indices in group:
                path = paths.get(dependency.target.module)
                if path in unread and graph.is_out_channel_pruning_fn(dependency.handler):
                    unread[path] = _without(unread[path], indices)
        else:
            model = before
            graph = _graph(model, batch, forward)
    return model, {name: int(unread[name].sum()) for name in layers if unread[name].any()}


def _graph(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # Torch-Pruning traces by autograd

    def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
        leaves = pytree.tree_leaves(call_model(model, batch, forward))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]

    with torch.enable_grad():
        return require_torch_pruning().DependencyGraph().build_dependency(model, batch, forward_fn=outputs, verbose=False)


def _unread(model: nn.Module, batch: Any, forward: Forward | None) -> dict[str, Tensor]:
    """(C_out,) of each layer and BatchNorm that has a weight of its own and one call: which of its units nothing reads."""
    traced = trace(model, batch, forward)
    live = liveness(traced, batch)
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (*LAYERS, *NORMS)):
            continue
        held = [node for node, value in traced.state.items() if value is module.weight]
        calls = [call for node in held for call in node.users]
        if len(held) == len(calls) == 1 and calls[0].args[1] is held[0]:
            if isinstance(module, NORMS):
                needed, at = live.needed[calls[0]][0], 1
            else:
                needed, at = live.needed[calls[0]], -1 if isinstance(module, nn.Linear) else 1 - module.weight.ndim
            found[name] = ~needed.movedim(at, 0).reshape(len(module.weight), -1).any(1)
    return found


def _dead_group(graph: Any, model: nn.Module, name: str, unread: dict[str, Tensor]) -> Any:
    """What goes together with the layer's dead units, without those tied to anything live; None where nothing goes."""
    root = model.get_submodule(name)
    if root not in graph.module2node:
        return None
    paths = {module: path for path, module in model.named_modules()}
    units = unread[name].nonzero().flatten().tolist()
    while units:
        group = graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, units)
        tied = set()
        for item in group:
            dead = _dead_members(graph, item.dep, item.idxs, paths, unread)
            tied |= {unit for unit, gone in zip(item.root_idxs, dead) if not gone}
        if not tied:
            if graph.check_pruning_group(group):
                return group
            tied = {units[0]}  # one has to stay
        units = [unit for unit in units if unit not in tied]
    return None


def _dead_members(
    graph: Any, dependency: Any, indices: list[int], paths: dict[nn.Module, str], unread: dict[str, Tensor]
) -> list[bool]:
    """Which of a member's channels can go: outputs that nothing reads, inputs that are not read."""
    module, out = dependency.target.module, graph.is_out_channel_pruning_fn(dependency.handler)
    if isinstance(module, (*LAYERS, *NORMS)) and module.weight is not None:
        if max(indices) >= module.weight.shape[0 if out else 1]:
            return [False] * len(indices)  # an operator between changes the number of channels unknown to Torch-Pruning
        groups = getattr(module, "groups", 1)
        depthwise = groups == module.weight.shape[0] and module.weight.shape[1] == 1 if groups > 1 else False
        if groups == 1 and not out:
            return (~module.weight[:, indices].transpose(0, 1).flatten(1).any(1)).tolist()
        if (depthwise or groups == 1) and paths[module] in unread:
            return unread[paths[module]][indices].tolist()
    elif isinstance(module, (*NORMS, nn.PReLU)) or type(module).__name__ in OPERATORS:
        return [True] * len(indices)
    return [False] * len(indices)


def _without(flags: Tensor, indices: list[int]) -> Tensor:
    keep = torch.ones_like(flags)
    keep[indices] = False
    return flags[keep]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

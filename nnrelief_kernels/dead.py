"""Dead units: what a network computes without, found from its traced forward pass and taken off without changing it.

The rules of the authors' scripts, generalised: forwards, a unit that no live input reaches is a constant, which goes into
the biases of the layers that read it; backwards, a unit that nothing reads is not needed, nor are its own connections.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from .collect import Forward
from .layers import Layer, Which, behind, find_layers, unwrap
from .liveness import CONVS, Liveness, aten, liveness, packet
from .masks import Masks, apply_masks, fold_masks, get_masks
from .tracing import Trace, first_sample, trace

CONSTANT = 1e-13
"""Of the largest value: what float64 sums of the same terms in another order may differ by."""


@dataclass(frozen=True)
class Dead:
    """What `find_dead` found. Units are those of the scored layers that the trace calls, by layer name: bool (C_out,)."""

    masks: Masks
    """Of weights and biases, True where they stay."""
    biases: dict[str, Tensor]
    """The biases that take up constants, with them."""
    constant: dict[str, Tensor]
    """Units whose output is the same for every input."""
    unread: dict[str, Tensor]
    """Units whose output the network's output does not depend on."""


def remove_dead(
    model: nn.Module,
    example: Any,
    *,
    layers: Iterable[Which] | None = None,
    exclude: Iterable[Which] = (),
    fold: bool = True,
    new_biases: bool = False,
    forward: Forward | None = None,
) -> Dead:
    """Prune the connections of dead units; in evaluation mode the outputs stay what they were, up to rounding.

    Masks only shrink. Where a constant reaches a layer that has a bias of its own in force, its connections go and the bias
    takes it up; where it cannot do so exactly (a constant other than 0 beside zero padding, a pruned bias, a weight that
    several layers share) the connections stay. Zero counts as pruned, masked or not.

    Args:
        model: changed in place; masked, folded or dense. Of DistributedDataParallel, the module inside.
        example: one batch, in any form `prune` takes; one sample of it is used. What is removed is dead for
            inputs of its shape.
        layers, exclude: as in `prune`; other layers keep their connections.
        fold: False leaves the biases as they are, and with them the connections from constants other than 0: the masks alone
            then do all that is done.
        new_biases: give a layer that has no bias one, where that lets it take up a constant.
        forward: runs the model on a batch, which is then used whole.

    Raises:
        NotTraceable: torch.export cannot follow the model; nothing is removed.
        ValueError: a layer or pattern is unknown.
    """
    found = find_dead(model, example, layers=layers, exclude=exclude, fold=fold, new_biases=new_biases, forward=forward)
    apply_dead(model, found)
    return found


def find_dead(
    model: nn.Module,
    example: Any,
    *,
    layers: Iterable[Which] | None = None,
    exclude: Iterable[Which] = (),
    fold: bool = True,
    new_biases: bool = False,
    forward: Forward | None = None,
) -> Dead:
    """What `remove_dead` would do; the model stays as it is."""
    model = unwrap(model)
    if forward is None:
        example = first_sample(model, example)
    plain = copy.deepcopy(model)
    fold_masks(plain)
    found = find_layers(plain, layers, exclude)
    without = {layer for tied in found.values() for layer in tied if layer.bias is None}
    if fold and new_biases:
        for bare in without:
            bare.bias = nn.Parameter(bare.weight.new_zeros(len(bare.weight)))
    traced = trace(plain, example, forward)
    calls = {name: _calls(traced, tied[0].weight) for name, tied in found.items()}
    paths = {layer: name for name, layer in plain.named_modules()}
    parameters = {_join(name, "weight"): tied[0].weight for name, tied in found.items()}
    parameters |= {
        _join(paths[layer], "bias"): layer.bias for tied in found.values() for layer in tied if layer.bias is not None
    }
    masks = {name: torch.ones_like(_kernels(value), dtype=torch.bool) for name, value in parameters.items()}
    in_force, absorbed, left = get_masks(model), set(), -1
    while left != (left := sum(int(mask.sum()) for mask in masks.values())):
        live = liveness(traced, example)
        needed = {name: _kernels(_needed(traced, live, value)) for name, value in parameters.items()}
        for name, tied in found.items():
            weight, bias = _join(name, "weight"), _join(name, "bias")
            if fold and len(calls[name]) == 1 and _is_own(traced, tied[0], calls[name][0]):
                taken = _absorb(live, tied[0], calls[name][0], needed[weight], in_force.get(bias))
                needed[weight] &= ~taken
                absorbed |= {bias} if taken.any() else set()
        for name, value in parameters.items():
            masks[name] &= needed[name]
            with torch.no_grad():
                value.mul_(_over(masks[name], value))
    for layer in without:
        if (name := _join(paths[layer], "bias")) in masks and name not in absorbed:
            del masks[name]
    return Dead(
        {name: _over(mask, parameters[name]) for name, mask in masks.items() if not mask.all()},
        {name: parameters[name].detach() for name in sorted(absorbed)},
        {name: ~_units(live.varies, found[name][0], nodes) for name, nodes in calls.items() if nodes},
        {name: ~_units(live.needed, found[name][0], nodes) for name, nodes in calls.items() if nodes},
    )


def apply_dead(model: nn.Module, found: Dead) -> None:
    """Write the biases and mask what is dead; `found` may be of another copy of the model."""
    model = unwrap(model)
    for name, value in found.biases.items():
        layer = cast(Layer, model.get_submodule(name.rpartition(".")[0]))
        with torch.no_grad():
            if layer.bias is None:
                layer.bias = nn.Parameter(value.clone(), requires_grad=behind(layer, "weight").requires_grad)
            else:
                behind(layer, "bias").copy_(value)
    apply_masks(model, found.masks)


def _calls(traced: Trace, weight: Tensor) -> list[fx.Node]:
    """The convolutions and products with this weight as it is."""
    held = [node for node, value in traced.state.items() if value is weight]
    return [
        use
        for node in held
        for use in node.users
        if (packet(use) in CONVS or packet(use) is aten.linear) and len(use.args) > 1 and use.args[1] is node
    ]


def _is_own(traced: Trace, layer: Layer, call: fx.Node) -> bool:
    """Whether this call alone reads the layer's weight and bias."""
    parameters = [node for node in call.all_input_nodes if node in traced.state]
    values = [value for value in traced.state.values() if value is layer.weight or value is layer.bias]
    return len(values) == 2 == len(parameters) and all(len(node.users) == 1 for node in parameters)


def _absorb(live: Liveness, layer: Layer, call: fx.Node, needed: Tensor, in_force: Tensor | None) -> Tensor:
    """Add to the bias what constants contribute: the kernels that it came through, (C_out, C_in/groups)."""
    exact, constant = _contributions(live, layer, call)
    taken = exact & needed & _kernels(layer.weight != 0)
    if in_force is not None:
        taken &= in_force[:, None] | (constant == 0)
    with torch.no_grad():
        layer.bias.add_(constant.where(taken, 0.0).sum(1))  # type: ignore[union-attr]
    return taken


def _contributions(live: Liveness, layer: Layer, call: fx.Node) -> tuple[Tensor, Tensor]:
    """(C_out, C_in/groups) each: whether an input adds the same to all of a unit's outputs, and how much (float64)."""
    source = cast(fx.Node, call.args[0])
    acts, weight = live.value[source].double(), layer.weight.detach().double()
    varies = live.varies[source]
    if isinstance(layer, nn.Linear):
        acts, varies = (x.reshape(-1, layer.in_features) for x in (acts, varies))
        still = ~varies.any(0) & (acts == acts[:1]).all(0)
        return still.expand_as(weight), weight * acts[0].where(still, 0.0)
    exact, constant = torch.zeros_like(_kernels(weight != 0)), weight.new_zeros(weight.shape[:2])
    if acts.ndim != weight.ndim:
        return exact, constant
    still = ~varies.movedim(1, 0).flatten(1).any(1)
    acts = acts.where(still.reshape(-1, *(1,) * (acts.ndim - 2)), 0.0)
    filters, per_group = weight.shape[0] // layer.groups, weight.shape[1]
    for i in range(per_group):  # the i-th channel of every group at once
        mine = acts[:, i::per_group]
        if not mine.any():
            continue
        maps = call.target(mine, weight[:, i : i + 1], None, *call.args[3:]).movedim(1, 0).flatten(1)  # type: ignore[operator]
        low, high = maps.amin(1), maps.amax(1)
        constant[:, i] = (low + high) / 2
        exact[:, i] = high - low <= CONSTANT * mine.abs().max() * weight[:, i].flatten(1).abs().sum(1)
        exact[:, i] &= still[i::per_group].repeat_interleave(filters)
    return exact, constant


def _units(of: dict[fx.Node, Any], layer: Layer, calls: list[fx.Node]) -> Tensor:
    """(C_out,): the units in whose outputs `of` is true anywhere."""
    at = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
    return torch.stack([of[call].movedim(at, 0).reshape(len(layer.weight), -1).any(1) for call in calls]).any(0)


def _needed(traced: Trace, live: Liveness, parameter: Tensor) -> Tensor:
    held = [live.needed[node] for node, value in traced.state.items() if value is parameter and node.users]
    return torch.stack(held).any(0) if held else torch.ones_like(parameter, dtype=torch.bool)


def _kernels(elements: Tensor) -> Tensor:
    """(C_out, C_in/groups), the kernels that any of the elements is in; a vector as it is."""
    return elements.flatten(2).any(2) if elements.ndim > 2 else elements


def _over(kernels: Tensor, parameter: Tensor) -> Tensor:
    """In the shape that broadcasts to the parameter."""
    return kernels.reshape(*kernels.shape, *(1,) * (parameter.ndim - kernels.ndim))


def _join(layer: str, attribute: str) -> str:
    return f"{layer}.{attribute}" if layer else attribute

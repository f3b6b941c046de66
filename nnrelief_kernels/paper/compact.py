"""A masked network as the small plain one that trains in its place: the same steps, less arithmetic."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import CONVS, Layer, unwrap
from ..masks import Masks, apply_masks, fold_masks, get_masks
from ..measure import inputs_in_use, layer_chain


@dataclass(frozen=True)
class Compact:
    """A network without parametrizations; if `masks` multiply it after each step, it trains as the masked one would."""

    model: nn.Module
    masks: Masks
    """Of its parameters, in their shapes."""
    inputs: Tensor | None = None
    """Indices of the flattened inputs that it takes; None for images as they are."""


@contextlib.contextmanager
def compact(model: nn.Module) -> Iterator[Compact]:
    """Take a network's masks off, and where it is a chain of layers also the units that nothing reads, while the block runs.

    What nothing reads changes no output and no gradient of what is read, so the steps are those of the masked network up to
    rounding. A chain with other parameters (BatchNorm) or groups, and a network that is no chain, keep all their units. After
    the block the network holds what its compact form has learnt, and its masks.
    """
    model = unwrap(model)
    masks = get_masks(model)
    fold_masks(model)
    parameters = dict(model.named_parameters())
    full = {name: mask.expand_as(parameters[name]) for name, mask in masks.items()}
    try:
        layers: dict[str, Layer] = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS))}
        others = len(model.state_dict()) - sum(len(layer.state_dict()) for layer in layers.values())
        grouped = any(not isinstance(layer, nn.Linear) and layer.groups > 1 for layer in layers.values())
        chain = [] if others or grouped or not masks else layer_chain(model, layers)
        if not chain:
            yield Compact(model, full)
            return
        slices: dict[str, tuple[Tensor, ...]] = {}
        for name, (rows, columns) in zip(chain, _read(chain, layers, full)):
            slices |= {f"{name}.weight": (rows[:, None], columns), f"{name}.bias": (rows,)}
        small = copy.deepcopy(model)
        for name in chain:
            layer = small.get_submodule(name)
            for attribute, parameter in list(layer.named_parameters()):
                setattr(layer, attribute, nn.Parameter(parameter.detach()[slices[f"{name}.{attribute}"]]))
        inputs = slices[f"{chain[0]}.weight"][1] if isinstance(layers[chain[0]], nn.Linear) else None
        yield Compact(small, {name: mask[slices[name]] for name, mask in full.items()}, inputs)
        with torch.no_grad():
            for name, parameter in small.named_parameters():
                parameters[name][slices[name]] = parameter
    finally:
        apply_masks(model, masks)


def _read(chain: list[str], layers: dict[str, Layer], masks: Masks) -> list[tuple[Tensor, Tensor]]:
    """Indices of each layer's units that the next one reads, and of the inputs that are then left."""
    left = {name: masks.get(f"{name}.weight", torch.ones_like(layers[name].weight, dtype=torch.bool)) for name in chain}
    read = {n: inputs_in_use(layers[n], mask.flatten(2).any(2) if mask.ndim > 2 else mask) for n, mask in left.items()}
    columns = read[chain[0]] if isinstance(layers[chain[0]], nn.Linear) else torch.ones_like(read[chain[0]])
    found = []
    for name, following in itertools.pairwise(chain):
        rows = read[following].reshape(len(left[name]), -1).any(1)
        found.append((rows.nonzero()[:, 0], columns.nonzero()[:, 0]))
        columns = rows.repeat_interleave(len(read[following]) // len(rows))  # of a flattened map all positions of a channel
    found.append((torch.arange(len(left[chain[-1]]), device=columns.device), columns.nonzero()[:, 0]))
    return found

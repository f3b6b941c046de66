"""Which layers of a model are scored: chosen by name or type, those that share a weight as one."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | Conv
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
Which = str | type[nn.Module]
"""A layer's name, a glob pattern of names ("layer1.*"), or a module type."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel or DistributedDataParallel, which is what is scored, masked and named."""
    while isinstance(model, WRAPPERS):
        model = cast(nn.Module, model.module)
    return model


def find_layers(
    model: nn.Module, layers: Iterable[Which] | None = None, exclude: Iterable[Which] = ()
) -> dict[str, tuple[Layer, ...]]:
    """The layers to score: the name of the first of each weight's holders, to all of its holders.

    Args:
        model: not a wrapper.
        layers: which ones; None for all Linear and Conv1d/2d/3d.
        exclude: which not; a weight that one of them holds is left out wherever else it is held.

    Raises:
        ValueError: a name or pattern fits no such layer, or a transposed convolution is among the chosen.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS, *TRANSPOSED))}
    chosen = _fitting(found, layers, "layers") if layers is not None else set(found)
    excluded = _fitting(found, exclude, "exclude")
    holders: dict[int, list[str]] = {}
    for name, module in found.items():
        holders.setdefault(id(behind(module, "weight")), []).append(name)
    groups = [names for names in holders.values() if chosen.intersection(names) and not excluded.intersection(names)]
    for name in (name for names in groups for name in names):
        if isinstance(found[name], TRANSPOSED):
            kind = type(found[name]).__name__
            raise ValueError(f"layer {name!r} is a {kind}, which cannot be scored: leave it out with exclude=[{name!r}]")
    return {names[0]: tuple(cast(Layer, found[name]) for name in names) for names in groups}


def matching(patterns: Mapping[str, float], names: Iterable[str], what: str) -> dict[str, float]:
    """The value of the first pattern that fits each name; names that none fits are left out.

    Raises:
        ValueError: a pattern fits no name.
    """
    names = list(names)
    for pattern in patterns:
        _check_fits(pattern, names, what)
    return {
        name: value
        for name in names
        for value in [next((v for pattern, v in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)]
        if value is not None
    }


def behind(layer: nn.Module, attribute: str) -> Tensor:
    """The parameter itself, masked or not: the object that tied layers share."""
    if parametrize.is_parametrized(layer, attribute):
        chain = cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[attribute])
        return cast(Tensor, chain.original if chain.is_tensor else chain.original0)
    return cast(Tensor, getattr(layer, attribute))


def _fitting(found: Mapping[str, nn.Module], wanted: Iterable[Which], what: str) -> set[str]:
    wanted = list(wanted)
    patterns = [w for w in wanted if isinstance(w, str)]
    types = tuple(w for w in wanted if not isinstance(w, str))
    for pattern in patterns:
        _check_fits(pattern, list(found), what)
    return {
        name
        for name, module in found.items()
        if isinstance(module, types) or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _check_fits(pattern: str, names: list[str], what: str) -> None:
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
        near = difflib.get_close_matches(pattern, names) or names
        raise ValueError(f"{what} names {pattern!r}, which fits no Linear or convolution of the model; near it: {near}")

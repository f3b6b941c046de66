"""Masks on a model's parameters: True where a connection stays, exactly 0 elsewhere, whatever an optimizer does.

A parameter that several modules hold has one mask, in force in all of them. Every function takes a model that
DistributedDataParallel or DataParallel wraps as the module inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .files import read_tensors, save_tensors
from .layers import behind, unwrap

Masks = dict[str, Tensor]
"""Parameter name ("fc1.weight") to a bool tensor that broadcasts to the parameter; True where it stays."""


class Masked(nn.Module):
    """A parametrization that zeroes what its mask prunes; the parameter behind it stays the optimizer's own object."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, parameter: Tensor) -> Tensor:
        return torch.where(self.mask, parameter, 0.0)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Mask parameters in the forward pass; where a mask is already in force, only what both keep stays.

    Raises:
        TypeError: a mask is not a bool tensor.
        ValueError: a name is not one of the model's parameters, or a mask does not broadcast to its parameter. Nothing is
            masked then.
    """
    model = unwrap(model)
    slots = {name: _slot(model, name) for name in sorted(masks)}  # the order of the parameters is then always the same
    for name, (layer, attribute) in slots.items():
        mask, parameter = masks[name], getattr(layer, attribute)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"masks[{name!r}] must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
        shape = tuple(parameter.shape)
        fits = mask.ndim == len(shape) and all(m in (1, p) for m, p in zip(mask.shape, shape))
        if not fits:
            raise ValueError(f"masks[{name!r}] must broadcast to {tuple(parameter.shape)}, got shape {tuple(mask.shape)}")
    holders = _holders(model)
    for name, (layer, attribute) in slots.items():
        held = holders[id(behind(layer, attribute))]
        present = next((m for at in held if (m := _mask_of(*at)) is not None), None)
        mask = masks[name].to(behind(layer, attribute).device)
        if present is not None:
            present.mask = present.mask & mask
        else:
            present = Masked(mask.clone())
        for at in held:
            if _mask_of(*at) is None:
                _register(*at, present)
    _zero_pruned(model)


def get_masks(model: nn.Module) -> Masks:
    """Copies of the masks in force; a parameter held under several names is given under the first."""
    first: dict[Masked, str] = {}
    for name, masked in _masked(unwrap(model)).items():
        first.setdefault(masked, name)
    return {name: masked.mask.clone() for masked, name in first.items()}


def save_masks(masks: Mapping[str, Tensor], path: str | Path) -> None:
    """Write masks as safetensors, atomically.

    Raises:
        OSError: the file cannot be written; what it held before is still there.
        ValueError: safetensors is not installed.
    """
    save_tensors(path, masks)


def load_masks(path: str | Path) -> Masks:
    """What `save_masks` wrote, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file, or safetensors is not installed.
    """
    return read_tensors(Path(path).read_bytes(), str(path))


def fold_masks(model: nn.Module) -> None:
    """Write the zeros into the parameters and take the masks off: plain parameter names, the same outputs."""
    model = unwrap(model)
    for name, masked in _masked(model).items():
        layer, attribute = _slot(model, name)
        original, alone = behind(layer, attribute), _only_masked(layer, attribute)
        if alone:
            with torch.no_grad():
                original.mul_(masked.mask)
            _chain(layer, attribute).original = _alias(original)
        _separate(layer)
        parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
        if alone:
            layer._parameters[attribute] = cast(nn.Parameter, original)


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy on the CPU of the parameters and buffers under their plain names, masked or not."""
    model = unwrap(model)
    masked = _masked(model)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith(".mask") and ".parametrizations." in f".{key}" and _plain(key) in masked:
            continue
        state[_plain(key)] = value.detach().cpu().clone()
    return state


def load_dense(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load plain names into a model whose parameters may be masked; masks stay in force.

    Raises:
        ValueError: names are missing or unexpected, or a shape differs.
    """
    model = unwrap(model)
    target = {}
    masked = _masked(model)
    for key, value in model.state_dict(keep_vars=True).items():
        if key.endswith(".mask") and ".parametrizations." in f".{key}" and _plain(key) in masked:
            continue
        target[_plain(key)] = value
    missing, unexpected = sorted(target.keys() - state.keys()), sorted(state.keys() - target.keys())
    if missing or unexpected:
        raise ValueError(f"state does not fit the model: missing {missing}, unexpected {unexpected}")
    for name, value in state.items():
        if target[name].shape != value.shape:
            raise ValueError(f"state[{name!r}] must have shape {tuple(target[name].shape)}, got {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in state.items():
            target[name].copy_(value)
    _zero_pruned(model)


def _zero_pruned(model: nn.Module) -> None:
    """Zeros behind the masks too: weight decay would shrink what is pruned through subnormal numbers, which are slow."""
    with torch.no_grad():
        for name, masked in _masked(model).items():
            layer, attribute = _slot(model, name)
            if _only_masked(layer, attribute):
                behind(layer, attribute).mul_(masked.mask)


def _slot(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module and attribute that hold the parameter called `name`."""
    path, _, attribute = name.rpartition(".")
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if layer is None or not (attribute in layer._parameters or parametrize.is_parametrized(layer, attribute)):
        raise ValueError(f"masks names {name!r}, which is not a parameter of the model")
    return layer, attribute


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules and attributes that hold each parameter, by its id."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        masked = list(cast(nn.ModuleDict, module.parametrizations)) if parametrize.is_parametrized(module) else []
        for attribute in (*module._parameters, *masked):
            if (parameter := behind(module, attribute)) is not None:
                found.setdefault(id(parameter), []).append((module, attribute))
    return found


def _register(layer: nn.Module, attribute: str, masked: Masked) -> None:
    """Masks a parameter that stays the same object with the same hooks: torch's own way takes those of DDP off it."""
    _separate(layer)
    if parametrize.is_parametrized(layer, attribute):  # by something else: the mask goes over its result
        parametrize.register_parametrization(layer, attribute, masked, unsafe=True)
        return
    original = behind(layer, attribute)
    layer._parameters[attribute] = _alias(original)
    parametrize.register_parametrization(layer, attribute, masked, unsafe=True)
    _chain(layer, attribute).original = cast(nn.Parameter, original)


def _separate(layer: nn.Module) -> None:
    """A class of its own for a parametrized layer: torch keeps the attributes in one that deep copies share."""
    if parametrize.is_parametrized(layer):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _alias(parameter: Tensor) -> nn.Parameter:
    """Another parameter of the same memory."""
    return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def _chain(layer: nn.Module, attribute: str) -> parametrize.ParametrizationList:
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[attribute])


def _only_masked(layer: nn.Module, attribute: str) -> bool:
    return len(_chain(layer, attribute)) == 1


def _mask_of(layer: nn.Module, attribute: str) -> Masked | None:
    if not parametrize.is_parametrized(layer, attribute):
        return None
    return next((p for p in _chain(layer, attribute) if isinstance(p, Masked)), None)


def _masked(model: nn.Module) -> dict[str, Masked]:
    found = {}
    for path, layer in model.named_modules():
        if parametrize.is_parametrized(layer):
            for attribute in cast("nn.ModuleDict", layer.parametrizations):
                if (masked := _mask_of(layer, attribute)) is not None:
                    found[f"{path}.{attribute}" if path else attribute] = masked
    return found


def _plain(key: str) -> str:
    """ "fc.parametrizations.weight.original" (or ".0.mask") to "fc.weight"; other names as they are."""
    head, found, tail = f".{key}".partition(".parametrizations.")
    return f"{head}.{tail.split('.')[0]}"[1:] if found else key

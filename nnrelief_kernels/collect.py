"""Scores of a whole model from a stream of batches; nothing but sums is kept between them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .geometry import ConvGeometry, conv_geometry
from .scoring import VARIANTS, bias_factor, score_conv, score_linear, share

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LinearAccumulator:
    """sum_n |x_ni| of a fully connected layer: Eq. 1 of Dekhovich et al. 2024 without the weight, which factors out."""

    def __init__(self, layer: nn.Linear, backend: str = "auto") -> None:
        self.layer, self.backend = layer, backend
        device = layer.weight.device
        self.sums = {
            "signal": torch.zeros(layer.in_features, dtype=torch.float64, device=device),
            "samples": torch.zeros((), dtype=torch.float64, device=device),
        }

    def update(self, acts: Tensor) -> None:
        """Add a batch, (..., in)."""
        ones = acts.new_ones(1, acts.shape[-1])
        self.sums["signal"] += score_linear(ones, acts, normalize=False, backend=self.backend)[0]
        self.sums["samples"] += acts.numel() // acts.shape[-1]

    def scores(self) -> Tensor:
        """As `score_linear` on all samples at once."""
        signal = self.layer.weight.detach().double().abs() * self.sums["signal"]
        if self.layer.bias is not None:
            signal = torch.cat([signal, (self.layer.bias.detach().double().abs() * self.sums["samples"])[:, None]], 1)
        return _rounded(share(signal), self.layer.weight)


class ConvAccumulator:
    """The numerators of Eq. 2 of Dekhovich et al. 2024, or for "norm_of_mean" sum_n |x_n|; the weight must not change."""

    def __init__(self, layer: Conv, variant: str = "paper", backend: str = "auto") -> None:
        self.layer, self.variant, self.backend = layer, variant, backend
        weight = layer.weight
        self.sums = {
            "signal": torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device),
            "samples": torch.zeros((), dtype=torch.float64, device=weight.device),
            "bias_factor": torch.zeros((), dtype=torch.float64, device=weight.device),
        }
        if variant == "norm_of_mean":
            self.sums["signal"] = torch.zeros(0, dtype=torch.float64, device=weight.device)

    def update(self, acts: Tensor) -> None:
        """Add a batch, (N, C_in, *spatial) or one sample without N."""
        if acts.ndim == self.layer.weight.ndim - 1:
            acts = acts[None]
        geometry = self.geometry(acts)
        if self.variant == "norm_of_mean":
            total = acts.detach().abs().sum(0, dtype=torch.float64)
            if not self.sums["signal"].numel():
                self.sums["signal"] = total
            elif self.sums["signal"].shape != total.shape:
                raise ValueError(
                    f"acts must keep the map size {tuple(self.sums['signal'].shape[1:])} under variant='norm_of_mean', "
                    f"got {tuple(total.shape[1:])}"
                )
            else:
                self.sums["signal"] += total
        else:
            self.sums["signal"] += self._score(acts)
        self.sums["samples"] += acts.shape[0]
        self.sums["bias_factor"] += acts.shape[0] * bias_factor(geometry, self.variant)

    def scores(self) -> Tensor:
        """As `score_conv` on all samples at once."""
        signal = self.sums["signal"]
        if self.variant == "norm_of_mean":
            signal = self._score(signal[None])
        if self.layer.bias is not None:
            signal = torch.cat([signal, (self.layer.bias.detach().double().abs() * self.sums["bias_factor"])[:, None]], 1)
        return _rounded(share(signal), self.layer.weight)

    def geometry(self, acts: Tensor) -> ConvGeometry:
        return conv_geometry(tuple(acts.shape[2:]), tuple(self.layer.weight.shape[2:]), **self._options())

    def _options(self) -> dict[str, Any]:
        return {key: getattr(self.layer, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}

    def _score(self, acts: Tensor) -> Tensor:
        return score_conv(
            self.layer.weight, acts, **self._options(), variant=self.variant, normalize=False, backend=self.backend
        )


Accumulator = LinearAccumulator | ConvAccumulator


class Collector:
    """Hooks that score a model's Linear and Conv1d/2d/3d layers while batches run through it; use it as a context manager.

    Args:
        model: any module. A layer reached under two names is scored once, under the first.
        layers: names and/or module types to score; None for all.
        variant, backend: as in `score_conv`.

    Raises:
        ValueError: a name is not a Linear or convolution of the model, or the variant is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str | type[nn.Module]] | None = None,
        *,
        variant: str = "paper",
        backend: str = "auto",
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
        self.model = model
        self.accumulators: dict[str, Accumulator] = {}
        for name, layer in _chosen(model, layers).items():
            if isinstance(layer, nn.Linear):
                self.accumulators[name] = LinearAccumulator(layer, backend)
            else:
                self.accumulators[name] = ConvAccumulator(cast(Conv, layer), variant, backend)
        self._hooks: list[Any] = []

    def __enter__(self) -> Collector:
        for accumulator in self.accumulators.values():
            self._hooks.append(accumulator.layer.register_forward_pre_hook(_hook(accumulator)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def run(self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None) -> None:
        """Run the model over `batches` in evaluation mode without gradients; every module's own mode is restored.

        A batch is a tensor, a tuple or list whose first element is the input, a dict of keyword arguments, or whatever
        `forward(model, batch)` takes. Tensors are moved to the model's device.

        Raises:
            ValueError: there is no batch.
        """
        modes = {module: module.training for module in self.model.modules()}
        parameter = next(self.model.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        empty = True
        try:
            self.model.eval()
            with torch.no_grad():
                for batch in batches:
                    empty = False
                    call_model(self.model, batch, device, forward)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if empty:
            raise ValueError("batches must hold at least one batch, got none")

    @property
    def counts(self) -> dict[str, int]:
        """Samples seen by each layer."""
        return {name: int(accumulator.sums["samples"]) for name, accumulator in self.accumulators.items()}

    @property
    def uncalled(self) -> list[str]:
        """Layers that have seen no sample."""
        return [name for name, count in self.counts.items() if not count]

    def scores(self) -> dict[str, Tensor]:
        """Scores of each layer that has seen samples: (C_out, C_in/groups), one more column where it has a bias."""
        return {name: self.accumulators[name].scores() for name, count in self.counts.items() if count}

    def merge(self, other: Collector) -> None:
        """Add the sums of another collector of the same layers."""
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The sums, per layer."""
        return {name: {k: v.clone() for k, v in a.sums.items()} for name, a in self.accumulators.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from saved sums.

        Raises:
            ValueError: the layers differ.
        """
        self._check_layers(state)
        for name, accumulator in self.accumulators.items():
            device = accumulator.layer.weight.device
            accumulator.sums = {key: value.to(device, copy=True) for key, value in state[name].items()}

    def all_reduce(self, group: Any = None) -> None:
        """Add the sums of all ranks; a rank that has seen nothing takes part as well.

        Raises:
            RuntimeError: torch.distributed is not initialised.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError("all_reduce needs torch.distributed.init_process_group first")
        sums = [(a, key) for a in self.accumulators.values() for key in sorted(a.sums)]
        # only "norm_of_mean" has sums whose shape a rank learns from its data
        shapes: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(shapes, [tuple(a.sums[key].shape) for a, key in sums], group)
        for (a, key), ranks in zip(sums, zip(*shapes)):
            known = {shape for shape in ranks if 0 not in shape} or {ranks[0]}
            if len(known) > 1:
                raise ValueError(f"map sizes differ between ranks: {sorted(known)}")
            if a.sums[key].shape != (shape := known.pop()):
                a.sums[key] = a.sums[key].new_zeros(shape)
        if not sums:
            return
        flat = torch.cat([a.sums[key].flatten() for a, key in sums])
        torch.distributed.all_reduce(flat, group=group)
        for (a, key), part in zip(sums, torch.split(flat, [a.sums[key].numel() for a, key in sums])):
            a.sums[key] = part.reshape(a.sums[key].shape).clone()

    def _check_layers(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.accumulators.keys():
            raise ValueError(f"state must hold the layers {sorted(self.accumulators)}, got {sorted(state)}")

    def _add(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._check_layers(state)
        for name, accumulator in self.accumulators.items():
            for key, value in state[name].items():
                mine, value = accumulator.sums[key], value.to(accumulator.sums[key].device)
                if mine.shape != value.shape and mine.numel() and value.numel():
                    raise ValueError(f"layer {name!r}: map sizes differ, {tuple(mine.shape)} and {tuple(value.shape)}")
                accumulator.sums[key] = mine + value if mine.shape == value.shape else (value if value.numel() else mine)


def call_model(
    model: nn.Module, batch: Any, device: torch.device, forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Hand one batch of `Collector.run` to the model."""
    if forward is not None:
        forward(model, batch)
    elif isinstance(batch, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
    else:
        model((batch[0] if isinstance(batch, (tuple, list)) else batch).to(device))


def _hook(accumulator: Accumulator) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def update(module: nn.Module, args: tuple[Any, ...]) -> None:
        accumulator.update(args[0])

    return update


def _rounded(scores: Tensor, weight: Tensor) -> Tensor:
    return scores if weight.dtype == torch.float64 else scores.float()


def _chosen(model: nn.Module, layers: Iterable[str | type[nn.Module]] | None) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, *CONVS))
    }
    if layers is None:
        return found
    wanted = list(layers)
    for name in (w for w in wanted if isinstance(w, str)):
        if name not in found:
            near = difflib.get_close_matches(name, found) or list(found)
            raise ValueError(f"layers names {name!r}, which is no Linear or convolution of the model; near it: {near}")
    types = tuple(w for w in wanted if not isinstance(w, str))
    return {name: module for name, module in found.items() if name in wanted or isinstance(module, types)}

"""Scores of a whole model from a stream of batches; nothing but sums is kept between them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .accumulate import CONVS, Accumulator, Conv, ConvAccumulator, LinearAccumulator, all_reduce
from .scoring import VARIANTS


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
        return {name: accumulator.samples for name, accumulator in self.accumulators.items()}

    @property
    def uncalled(self) -> list[str]:
        """Layers that have seen no sample."""
        return [name for name, count in self.counts.items() if not count]

    def scores(self) -> dict[str, Tensor]:
        """Scores of each layer that has seen samples: (C_out, C_in/groups), one more column where it has a bias."""
        return {name: self.accumulators[name].scores() for name, count in self.counts.items() if count}

    def merge(self, other: Collector) -> None:
        """Add the sums of another collector of the same layers.

        Raises:
            ValueError: the layers, variants or map sizes differ.
        """
        self._check_layers(other.accumulators)
        for name, accumulator in self.accumulators.items():
            accumulator.merge(other.accumulators[name])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The sums, per layer."""
        return {name: accumulator.state_dict() for name, accumulator in self.accumulators.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from saved sums.

        Raises:
            ValueError: the layers, variants or map sizes differ.
        """
        self._check_layers(state)
        for name, accumulator in self.accumulators.items():
            accumulator.load_state_dict(state[name])

    def all_reduce(self, group: Any = None) -> None:
        """Add the sums of all ranks in one exchange; a rank that has seen nothing takes part as well.

        Raises:
            RuntimeError: torch.distributed is not initialised.
            ValueError: map sizes differ between ranks ("norm_of_mean").
        """
        all_reduce(list(self.accumulators.values()), group)

    def _check_layers(self, layers: Mapping[str, Any]) -> None:
        if layers.keys() != self.accumulators.keys():
            raise ValueError(f"state must hold the layers {sorted(self.accumulators)}, got {sorted(layers)}")


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

"""Scores of a whole model from a stream of batches; nothing but sums is kept between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .accumulate import accumulator_of, all_reduce
from .layers import Layer, Which, find_layers, unwrap
from .scoring import VARIANTS

Forward = Callable[[nn.Module, Any], Any]


class Collector:
    """Hooks that score a model's Linear and Conv1d/2d/3d layers while batches run through it; use it as a context manager.

    A layer that is called several times in one forward pass, or reached under two names, is scored once on all that enters
    it; so is a weight that several layers share. What enters the output projection of `nn.MultiheadAttention`, which never
    calls it as a module, is worked out from the attention's own inputs.

    Args:
        model: any module; of DataParallel and DistributedDataParallel, the module inside.
        layers, exclude: names, patterns of names ("layer1.*") and module types to score and not to score; None for all.
        variant, backend: as in `score_conv`.

    Raises:
        ValueError: a name or pattern fits no Linear or convolution of the model, a transposed convolution is among the
            chosen, or the variant is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[Which] | None = None,
        exclude: Iterable[Which] = (),
        *,
        variant: str = "paper",
        backend: str = "auto",
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
        self.model = unwrap(model)
        self.layers = find_layers(self.model, layers, exclude)
        self.accumulators = {name: accumulator_of(tied, variant, backend) for name, tied in self.layers.items()}
        self.order: list[str] = []
        """The layers in the order in which they were first called."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Collector:
        self._stack.enter_context(watching(self.model, self.layers, self._see))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def run(self, batches: Iterable[Any], forward: Forward | None = None, *, allow_empty: bool = False) -> None:
        """Run the model over `batches` in evaluation mode without gradients; every module's own mode is restored.

        A batch is a tensor, a tuple or list whose first element is the input, a dict of keyword arguments, or whatever
        `forward(model, batch)` takes. Tensors are moved to the model's device.

        Raises:
            ValueError: there is no batch, unless `allow_empty` (a process without samples of its own).
        """
        empty = True
        with evaluating(self.model), parametrize.cached():
            for batch in batches:
                empty = False
                call_model(self.model, batch, forward)
        if empty and not allow_empty:
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

    def _see(self, name: str, layer: Layer, acts: Tensor) -> None:
        if name not in self.order:
            self.order.append(name)
        self.accumulators[name].update(acts, layer)

    def _check_layers(self, layers: Mapping[str, Any]) -> None:
        if layers.keys() != self.accumulators.keys():
            raise ValueError(f"state must hold the layers {sorted(self.accumulators)}, got {sorted(layers)}")


@contextlib.contextmanager
def watching(
    model: nn.Module, layers: Mapping[str, tuple[Layer, ...]], see: Callable[[str, Layer, Tensor], None]
) -> Iterator[None]:
    """Calls ``see(name, layer, acts)`` whenever activations enter one of the layers, by hooks that are then taken off."""
    attentions = {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}

    def hook(name: str, layer: Layer, acts: Callable[..., Tensor]) -> Callable[..., None]:
        return lambda module, args, kwargs: see(name, layer, acts(module, args, kwargs))

    with contextlib.ExitStack() as stack:
        for name, tied in layers.items():
            for layer in tied:
                called, acts = (layer, _first) if layer not in attentions else (attentions[layer], _heads)
                stack.callback(called.register_forward_pre_hook(hook(name, layer, acts), with_kwargs=True).remove)
        stack.enter_context(unfused())
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """No fused attention and transformer layers, which run none of the modules inside them and so none of their hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def call_model(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """What the model returns for one batch of `Collector.run`."""
    device = device_of(model)
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, Mapping):
        return model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
    return model(batch_input(batch).to(device))


def as_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """One tensor is one batch."""
    return [batches] if isinstance(batches, Tensor) else batches


def batch_input(batch: Any) -> Any:
    """The input of a batch that is a tensor, or a tuple or list of it and whatever else."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def device_of(model: nn.Module) -> torch.device:
    """Where its first parameter is; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return cast(Tensor, args[0] if args else kwargs["input"])


def _heads(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What enters the output projection: the attention's own forward pass with the identity in its place."""
    projection = cast(nn.Linear, attention.out_proj)
    identity = nn.Linear(projection.in_features, projection.in_features, device="meta")
    identity.weight = nn.Parameter(torch.eye(projection.in_features).to(projection.weight), requires_grad=False)
    identity.bias = nn.Parameter(projection.weight.new_zeros(projection.in_features), requires_grad=False)
    shadow = object.__new__(type(attention))  # a copy of a masked module is refused
    shadow.__dict__ = {**attention.__dict__, "_modules": {**attention._modules, "out_proj": identity}}
    return cast(Tensor, shadow.forward(*args, **kwargs)[0])

"""Running sums of one layer's scores: they add over batches, over ranks and over interrupted runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .geometry import conv_geometry
from .layers import Conv, Layer
from .scoring import bias_factor, score_conv, score_linear, share

Sums = dict[str, Tensor]


class Accumulator:
    """What the accumulators of both kinds of layer share: float64 sums on the layer's device, and nothing else."""

    layer: Layer
    has_bias: bool
    sums: Sums

    def update(self, acts: Tensor, layer: Layer | None = None) -> None:
        """Add a batch of the activations that enter the layer, or that enter `layer`, another holder of its weight."""
        raise NotImplementedError

    def signal(self) -> Tensor:
        """The numerators of the scores: (C_out, C_in/groups), one more column with a bias, summed over samples, float64."""
        signal = self._weight_signal()
        return torch.cat([signal, self.sums["bias"][:, None]], 1) if self.has_bias else signal

    def scores(self) -> Tensor:
        """What the scoring function of the layer's kind gives on all samples at once."""
        scores = share(self.signal())
        return scores if self.layer.weight.dtype == torch.float64 else scores.float()

    @property
    def samples(self) -> int:
        """Samples seen."""
        return int(self.sums["samples"])

    def merge(self, other: Accumulator) -> None:
        """Add what another accumulator of the same layer has seen.

        Raises:
            ValueError: the sums are not of the same layer, variant and map size.
        """
        self._check(other.sums)
        for key, value in other.sums.items():
            mine, value = self.sums[key], value.to(self.sums[key].device)
            if not mine.numel():  # "norm_of_mean" knows the map size from its first batch on
                self.sums[key] = value.clone()
            elif value.numel():
                self.sums[key] = mine + value

    def state_dict(self) -> Sums:
        """A copy of the sums."""
        return {key: value.clone() for key, value in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved sums.

        Raises:
            ValueError: the sums are not of the same layer, variant and map size.
        """
        self._check(state)
        self.sums = {key: state[key].to(mine.device, torch.float64, copy=True) for key, mine in self.sums.items()}

    def all_reduce(self, group: Any = None) -> None:
        """Add the sums of all ranks; a rank that has seen nothing takes part as well.

        Raises:
            RuntimeError: torch.distributed is not initialised.
            ValueError: map sizes differ between ranks ("norm_of_mean").
        """
        all_reduce([self], group)

    def _weight_signal(self) -> Tensor:
        raise NotImplementedError

    def _count(self, samples: int, factor: float, layer: Layer | None) -> None:
        called = layer or self.layer
        self.sums["samples"] += samples
        if called.bias is not None:
            self.sums["bias"] += called.bias.detach().double().abs() * (samples * factor)

    def _check(self, state: Mapping[str, Tensor]) -> None:
        if state.keys() != self.sums.keys():
            raise ValueError(f"state must hold {sorted(self.sums)}, got {sorted(state)}")
        for key, mine in self.sums.items():
            value = state[key]
            if value.shape != mine.shape and value.numel() and mine.numel():
                raise ValueError(f"state[{key!r}] must have shape {tuple(mine.shape)}, got {tuple(value.shape)}")


def all_reduce(accumulators: Sequence[Accumulator], group: Any = None) -> None:
    """`Accumulator.all_reduce` of many layers in one exchange; every rank passes the same layers in the same order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError("all_reduce needs torch.distributed.init_process_group first")
    if not accumulators:
        return
    sums = [(a, key) for a in accumulators for key in sorted(a.sums)]
    # only "norm_of_mean" has sums whose shape a rank learns from its data
    shapes: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(shapes, [tuple(a.sums[key].shape) for a, key in sums], group)
    for (a, key), ranks in zip(sums, zip(*shapes)):
        known = {shape for shape in ranks if 0 not in shape} or {ranks[0]}
        if len(known) > 1:
            raise ValueError(f"map sizes differ between ranks: {sorted(known)}")
        if a.sums[key].shape != (shape := known.pop()):
            a.sums[key] = a.sums[key].new_zeros(shape)
    flat = torch.cat([a.sums[key].flatten() for a, key in sums])
    torch.distributed.all_reduce(flat, group=group)
    for (a, key), part in zip(sums, torch.split(flat, [a.sums[key].numel() for a, key in sums])):
        a.sums[key] = part.reshape(a.sums[key].shape).clone()


class LinearAccumulator(Accumulator):
    """sum_n |x_ni| of a fully connected layer: Eq. 1 of Dekhovich et al. 2024 without the weight, which factors out."""

    def __init__(self, layer: nn.Linear, backend: str = "auto") -> None:
        self.layer: nn.Linear = layer
        self.backend = backend
        self.has_bias = layer.bias is not None
        device = layer.weight.device
        self.sums = {
            "signal": torch.zeros(layer.in_features, dtype=torch.float64, device=device),
            "bias": torch.zeros(layer.out_features, dtype=torch.float64, device=device),
            "samples": torch.zeros((), dtype=torch.float64, device=device),
        }

    def update(self, acts: Tensor, layer: Layer | None = None) -> None:
        """Add a batch, (..., in)."""
        ones = acts.new_ones(1, acts.shape[-1])
        self.sums["signal"] += score_linear(ones, acts, normalize=False, backend=self.backend)[0]
        self._count(acts.numel() // acts.shape[-1], 1.0, layer)

    def _weight_signal(self) -> Tensor:
        return self.layer.weight.detach().double().abs() * self.sums["signal"]


class ConvAccumulator(Accumulator):
    """The numerators of Eq. 2 of Dekhovich et al. 2024, or for "norm_of_mean" sum_n |x_n|; the weight must not change."""

    def __init__(self, layer: Conv, variant: str = "paper", backend: str = "auto") -> None:
        self.layer: Conv = layer
        self.variant, self.backend = variant, backend
        self.has_bias = layer.bias is not None
        weight = layer.weight
        self.sums = {
            "signal": torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device),
            "bias": torch.zeros(len(weight), dtype=torch.float64, device=weight.device),
            "samples": torch.zeros((), dtype=torch.float64, device=weight.device),
        }
        if variant == "norm_of_mean":
            self.sums["signal"] = torch.zeros(0, dtype=torch.float64, device=weight.device)

    def update(self, acts: Tensor, layer: Layer | None = None) -> None:
        """Add a batch, (N, C_in, *spatial) or one sample without N."""
        called = cast(Conv, layer) if layer is not None else self.layer
        if acts.ndim == called.weight.ndim - 1:
            acts = acts[None]
        geometry = conv_geometry(tuple(acts.shape[2:]), tuple(called.weight.shape[2:]), **conv_options(called))
        if self.variant == "norm_of_mean":
            total = acts.new_zeros(acts.shape[1:], dtype=torch.float64)
            for block in torch.split(acts.detach(), max(1, (1 << 20) // total.numel())):  # |acts| is never held whole
                total += block.abs().sum(0, dtype=torch.float64)
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
            self.sums["signal"] += self._score(acts, called)
        self._count(len(acts), bias_factor(geometry, self.variant), called)

    def _weight_signal(self) -> Tensor:
        if self.variant == "norm_of_mean":
            return self._score(self.sums["signal"][None], self.layer)
        return self.sums["signal"]

    def _score(self, acts: Tensor, layer: Conv) -> Tensor:
        return score_conv(
            layer.weight, acts, **conv_options(layer), variant=self.variant, normalize=False, backend=self.backend
        )


def accumulator_of(tied: Sequence[Layer], variant: str = "paper", backend: str = "auto") -> Accumulator:
    """A fresh accumulator for the layers that share one weight."""
    first = tied[0]
    found = LinearAccumulator(first, backend) if isinstance(first, nn.Linear) else ConvAccumulator(first, variant, backend)
    found.has_bias = any(layer.bias is not None for layer in tied)
    return found


def conv_options(layer: Conv) -> dict[str, Any]:
    """A convolution's own arguments of `score_conv`."""
    return {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}

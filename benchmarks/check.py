"""No time is reported for a wrong result."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nnrelief_kernels import reference

from .suites import Layer

CHANNELS = 16
"""Per filter; the reference takes one convolution for each."""


class Oracle(NamedTuple):
    """Numerators in float64 over all samples, `values` (filters, channels), for some connections [filters, channels]."""

    filters: Tensor
    channels: Tensor
    values: Tensor


def oracle(layer: Layer, weight: Tensor, acts: Tensor) -> Oracle:
    """The first, middle and last filter with channels from the first to the last."""
    c_out, members = layer.weight[:2]
    filters = torch.tensor(sorted({0, c_out // 2, c_out - 1}))
    channels = torch.linspace(0, members - 1, min(members, CHANNELS)).long()
    rows = []
    for j in filters.tolist():
        kernel = weight[j : j + 1, channels]
        x = acts[:, channels + j // (c_out // layer.groups) * members]
        if layer.size:
            row = reference.score_conv(kernel, x, stride=layer.stride, padding=layer.padding, normalize=False)
        else:
            row = reference.score_linear(kernel, x, normalize=False)
        rows.append(row)
    return Oracle(filters[:, None], channels, torch.cat(rows))


def check_oracle(layer: Layer, contender: str, got: Tensor, known: Oracle, tolerance: float) -> None:
    """Raise RuntimeError unless `got` agrees with the oracle where that is known."""
    check(layer, contender, got[known.filters, known.channels], known.values, "the float64 reference", tolerance)


def check(layer: Layer, contender: str, got: Tensor, want: Tensor, origin: str, tolerance: float) -> None:
    """Raise RuntimeError unless every element of `got` is within `tolerance` of `want`, relative to it."""
    difference = (got.double() - want.double()).abs()
    error = float(torch.where(difference == 0, 0.0, difference / want.double().abs()).max())
    if not error <= tolerance:  # NaN fails as well
        raise RuntimeError(
            f"layer {layer.name}: {contender!r} is off {origin} by {error:.1e} relative, {tolerance:.1e} allowed; not timed"
        )

"""The registry of backends and the choice between them.

A backend is one module of this package that offers the names of :class:`Backend`. A module that is new here is added to
`ORDER` and to nothing else: validation, normalisation, torch.compile support and the tests' list of backends follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor, dtype, float32, float64  # not `torch`: that name belongs to the backend here

from ..geometry import ConvGeometry

ORDER = ("triton", "cuda", "cpu", "torch")
"""Fastest first: ``backend="auto"`` takes the first that is available and does not refuse the call."""

Refusal = Callable[[str], str | None]


class Backend(Protocol):
    """What a backend module offers. A reason is one sentence for the user; None stands for "nothing against it"."""

    def unavailable(self) -> str | None:
        """Why this backend cannot serve anything here, or None."""

    def describe(self) -> str:
        """Versions and build, one line, for ``nnrelief info``."""

    def refuses_conv(self, weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
        """Why this call cannot be served, or None."""

    def refuses_linear(self, weight: Tensor, acts: Tensor) -> str | None:
        """Why this call cannot be served, or None."""

    def conv_path(self, weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
        """The name of the algorithm this call takes."""

    def score_conv(self, weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
        """sum_n || |K_ij| * |x_ni| ||, shape (C_out, C_in/groups), float32 (float64 for float64 input)."""

    def score_linear(self, weight: Tensor, acts: Tensor) -> Tensor:
        """sum_n |w_ij x_ni|, shape (out, in), float32 (float64 for float64 input)."""


@cache
def get(name: str) -> Backend:
    return cast(Backend, import_module(f".{name}", __name__))


def result_dtype(weight: Tensor, acts: Tensor) -> dtype:
    """float64 if either input is, else float32."""
    return float64 if float64 in (weight.dtype, acts.dtype) else float32


def row_views(acts: Tensor) -> Iterator[Tensor]:
    """Two-dimensional views (rows, in) that together cover (..., in); nothing is copied, whatever the strides."""
    try:
        yield acts.view(-1, acts.shape[-1])
    except RuntimeError:  # leading dimensions that cannot be viewed as one go one by one
        for part in acts:
            yield from row_views(part)


def conv_refusal(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Refusal:
    """Asks a backend by its name for why it cannot serve this call; None where it can."""
    return lambda name: get(name).unavailable() or get(name).refuses_conv(weight, acts, geometry, variant)


def linear_refusal(weight: Tensor, acts: Tensor) -> Refusal:
    """Asks a backend by its name for why it cannot serve this call; None where it can."""
    return lambda name: get(name).unavailable() or get(name).refuses_linear(weight, acts)


def choose(backend: str, refusal: Refusal) -> str:
    """The backend that serves a call: the one asked for, or the first of `ORDER` that does not refuse."""
    if backend == "auto":
        return next(name for name in ORDER if refusal(name) is None)
    if backend not in ORDER:
        raise ValueError(f"backend must be 'auto' or one of {ORDER}, got {backend!r}")
    if reason := refusal(backend):
        raise RuntimeError(f"backend={backend!r} cannot serve this call: {reason}")
    return backend

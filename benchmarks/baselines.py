"""Other ways to the numerators of Eqs. 1 and 2, and two yardsticks; each takes (layer, weight, acts)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnrelief_kernels import score_conv, score_linear

from .suites import Layer

Contender = Callable[[Layer, Tensor, Tensor], Tensor]
BUDGET = {"cpu": 1 << 30, "cuda": 4 << 30}
"""Bytes of feature maps that `naive` and `compiled` hold at once."""
ROUNDING = 2.0**-24


def score(layer: Layer, weight: Tensor, acts: Tensor, backend: str = "auto") -> Tensor:
    """What is timed: the numerators from the package, (C_out, C_in/groups)."""
    if not layer.size:
        return score_linear(weight, acts, normalize=False, backend=backend)
    return score_conv(
        weight,
        acts,
        stride=layer.stride,
        padding=layer.padding,
        groups=layer.groups,
        normalize=False,
        backend=backend,
    )


def gram(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """The same method in plain PyTorch."""
    return score(layer, weight, acts, "torch")


def cuda(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """The CUDA kernels of the compiled extension, beside those of Triton; on CUDA tensors only."""
    return score(layer, weight, acts, "cuda")


def naive(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """Every feature map is formed, in float32, by a grouped convolution; as many samples at once as `BUDGET` takes."""
    return _in_chunks(layer, weight, acts, _linear_chunk, _conv_chunk)


def compiled(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """`naive` with its chunks under torch.compile; call torch.compiler.reset() between layers, or it stops compiling."""
    return _in_chunks(layer, weight, acts, _compile(_linear_chunk), _compile(_conv_chunk))


def forward(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """The layer itself."""
    if not layer.size:
        return F.linear(acts, weight)
    return F.conv2d(acts, weight, stride=layer.stride, padding=layer.padding, groups=layer.groups)


def floor(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """The least that reads every activation, as PyTorch does it."""
    return acts.abs().sum()


def loop(layer: Layer, weight: Tensor, acts: Tensor) -> Tensor:
    """A Python loop over samples, filters and output positions, as in the scripts of the publication."""
    kernels, padded = weight.float().abs(), F.pad(acts.float().abs(), 4 * (layer.padding,))
    per_group, (k, s) = len(weight) // layer.groups, (layer.weight[2], layer.stride)
    rows, columns = layer.geometry.out
    total = torch.zeros(layer.weight[:2], device=acts.device)
    for sample in padded:
        for j, kernel in enumerate(kernels):
            x = sample[j // per_group * len(kernel) :][: len(kernel)]
            squares = torch.zeros_like(total[j])
            for row in range(rows):
                for column in range(columns):
                    patch = x[:, row * s : row * s + k, column * s : column * s + k]
                    squares += (patch * kernel).sum((1, 2)).square()
            total[j] += squares.sqrt()
    return total


BASELINES: dict[str, Contender] = {
    "naive": naive,
    "compiled": compiled,
    "gram": gram,
    "cuda": cuda,
    "forward": forward,
    "floor": floor,
    "loop": loop,
}
SCORING = ("naive", "compiled", "gram", "cuda", "loop")
"""The baselines that compute what `score` does."""


def tolerance(name: str, layer: Layer, samples: int) -> float:
    """The largest relative error that a baseline's result may have.

    float32 sums of non-negative terms in any order: a map value sums k², a squared norm L of their squares (its root
    halves the error), a score N norms; each sum of m terms is off by at most m roundings.
    """
    if name not in SCORING or name in ("gram", "cuda"):
        return 1e-5
    return ROUNDING * (layer.geometry.taps + layer.geometry.positions / 2 + samples + 4)


def _in_chunks(
    layer: Layer,
    weight: Tensor,
    acts: Tensor,
    linear_chunk: Callable[[Tensor, Tensor], Tensor],
    conv_chunk: Callable[[Tensor, Tensor, int, int], Tensor],
) -> Tensor:
    one = 4 * math.prod(layer.weight) // layer.geometry.taps * layer.geometry.positions
    chunks = torch.tensor_split(acts, math.ceil(len(acts) / max(1, BUDGET[acts.device.type] // one)))
    if not layer.size:
        return torch.stack([linear_chunk(chunk, weight) for chunk in chunks]).sum(0)
    groups, per_group, members = layer.groups, layer.weight[0] // layer.groups, layer.weight[1]
    kernels = weight.float().abs().reshape(groups, per_group, members, *layer.weight[2:]).transpose(1, 2).flatten(0, 2)[:, None]
    with _full_float32():
        sums: Tensor = torch.stack([conv_chunk(chunk, kernels, layer.stride, layer.padding) for chunk in chunks]).sum(0)
    return sums.reshape(groups, members, per_group).transpose(1, 2).reshape(layer.weight[:2])


def _conv_chunk(acts: Tensor, kernels: Tensor, stride: int, padding: int) -> Tensor:
    """Norms of all maps, summed over samples: acts (n, C_in, h, w), kernels (C_in * filters, 1, k, k) to (C_in * filters,)."""
    maps = F.conv2d(acts.float().abs(), kernels, stride=stride, padding=padding, groups=acts.shape[1])
    norms: Tensor = torch.linalg.vector_norm(maps, dim=(2, 3))
    return norms.sum(0)


def _linear_chunk(acts: Tensor, weight: Tensor) -> Tensor:
    """acts (n, in), weight (out, in) to (out, in) by way of (n, out, in)."""
    return (acts.float()[:, None] * weight.float()).abs().sum(0)


@cache
def _compile(chunk: Callable[..., Tensor]) -> Any:
    return torch.compile(chunk, dynamic=False, fullgraph=True)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep tf32, a GPU's default for convolutions, out of results that are compared."""
    cudnn: Any = torch.backends.cudnn
    setting = cudnn.conv
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before

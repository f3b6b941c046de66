"""The Gram form in plain PyTorch: serves every call on every device.

With U (k² x L) the unfolded map |x_ni| and v = vec|K_ij|, the squared norm of the feature map is

    || |K_ij| * |x_ni| ||_F²  =  || vᵀU ||²  =  vᵀ (U Uᵀ) v  =  sum_{a<=b} G_ab f_ab,    f = triu(v vᵀ), off-diagonal doubled,

so the k² x k² matrix G of one input map serves all filters and no feature map is formed. Where the map has so few
positions that L < (k²+1)/2, vᵀU itself is cheaper ("direct"); under a single element the norm is v ||x|| ("norms"). Every
term is non-negative: nothing cancels.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ..geometry import ConvGeometry, source_index
from . import result_dtype, row_views

BLOCK = 1 << 20
"""Elements of one working buffer; the handful alive at once stays under the contract's 64 MiB even in float64."""
DEPTH = 128
"""Longest sum left to float32: n non-negative terms are off by at most n·2⁻²⁴, and two such sums stay below 1e-5."""

Tile = tuple["tuple[int, int]", ...]


def unavailable() -> str | None:
    return None


def describe() -> str:
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"torch {torch.__version__}", f"{torch.get_num_threads()} CPU threads", *accelerators])


def refuses_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str | None:
    return None


def refuses_linear(weight: Tensor, acts: Tensor) -> str | None:
    return None


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> str:
    if variant == "l1":
        return "window sums"
    taps = geometry.taps
    if taps == 1:
        return "norms"
    return "direct" if 2 * geometry.positions < taps + 1 or taps * taps > BLOCK else "gram"


def score_linear(weight: Tensor, acts: Tensor) -> Tensor:
    rows = max(1, BLOCK // acts.shape[-1])
    total = torch.zeros(acts.shape[-1], dtype=torch.float64, device=acts.device)
    for view in row_views(acts):
        for block in torch.split(view, rows):
            total += block.abs().sum(0, dtype=torch.float64)
    # |w| a row block at a time: the float64 product of a large weight is never held whole
    out = weight.new_empty(weight.shape, dtype=result_dtype(weight, acts))
    for w, block in zip(torch.split(weight, rows), torch.split(out, rows)):
        block.copy_(w.abs() * total)
    return out


def score_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
    path = conv_path(weight, acts, geometry, variant)
    groups, taps = geometry.groups, geometry.taps
    samples, c_in = acts.shape[:2]
    filters, per_group = weight.shape[0] // groups, weight.shape[1]
    features = taps * (taps + 1) // 2 if path == "gram" else taps

    tiles = list(_tiles(geometry.out, max(1, BLOCK // taps)))
    positions = max(math.prod(stop - start for start, stop in tile) for tile in tiles)
    maps = max(1, BLOCK // (taps * max(positions, taps if path == "gram" else 1)))
    # whole samples share the filters' features; channels go first where they are neighbours in memory
    if acts.stride(1) == 1:
        c_block = min(c_in, maps)
        n_block = min(samples, max(1, maps // c_block))
    else:
        n_block = min(samples, maps)
        c_block = min(c_in, max(1, maps // n_block))
    of_each_sample = {"norms": 0, "direct": n_block * positions}.get(path, n_block)
    f_block = max(1, BLOCK // (c_block * max(features, of_each_sample)))

    dtype = result_dtype(weight, acts)
    out = acts.new_empty((groups, filters, per_group), dtype=dtype)
    kernels = weight.view(groups, filters, *weight.shape[1:])
    with _exact_products(acts.device.type):
        for c0, f0 in itertools.product(range(0, c_in, c_block), range(0, filters, f_block)):
            channels = torch.arange(c0, min(c0 + c_block, c_in), device=acts.device)
            group, member = channels // per_group, channels % per_group
            block = slice(f0, f0 + f_block)
            v = kernels[group, block, member].flatten(2).to(dtype).abs()  # (c, f, k²)
            x = acts[:, c0 : c0 + c_block]
            blocks = [x] if variant == "norm_of_mean" else torch.split(x, n_block)
            signal = _total(_signal(v, rows, geometry, variant, path, tiles, n_block) for rows in blocks)
            out[group, block, member] = signal.to(dtype)
    return out.reshape(groups * filters, per_group)


def _signal(v: Tensor, x: Tensor, geometry: ConvGeometry, variant: str, path: str, tiles: list[Tile], n_block: int) -> Tensor:
    """sum_n of the norms for kernels v (c, f, k²) on their channels x (n, c, *spatial): (c, f) float64."""
    v, v_scale = _scaled(v.clone(), v.amax(2, keepdim=True))  # the caller's v serves its next samples
    # (n, c, 1, 1); no |x| is formed whole
    peak = torch.linalg.vector_norm(x, math.inf, dim=tuple(range(2, x.ndim))).to(v.dtype)[:, :, None, None]
    if variant == "norm_of_mean":
        peak = peak.amax(0, keepdim=True)

    second = _triangle_features(v) if path == "gram" else v
    if second.shape[2] > DEPTH:
        second = second.double()
    total: Tensor | None = None
    for tile in tiles:
        if variant == "norm_of_mean":
            u = _total(_scaled(_unfold(n, geometry, tile, v.dtype), peak)[0].sum(0, True, dtype=torch.float64)
                       for n in torch.split(x, n_block))  # fmt: skip
        else:
            u = _scaled(_unfold(x, geometry, tile, v.dtype), peak)[0]  # (n, c, k², T)
        if path == "gram":
            part = _total((chunk @ chunk.mT).double() for chunk in torch.split(u, DEPTH, 3))  # (n, c, k², k²)
        elif path == "norms":
            part = u.square_().sum((2, 3), dtype=torch.float64)  # (n, c)
        elif path == "direct":
            part = (second @ u.to(second.dtype)).square_().sum(3, dtype=torch.float64)  # (n, c, f)
        else:
            part = u.sum(3, dtype=torch.float64)  # (n, c, k²)
        total = part if total is None else total + part
    sums = cast(Tensor, total).transpose(0, 1)  # channels first: one product per channel
    x_scale = _power_of_two(peak)[:, :, 0].transpose(0, 1).double()  # (c, n, 1)
    if path == "norms":
        return (sums.sqrt_()[..., None] * x_scale).sum(1) * v[:, :, 0] * v_scale[:, :, 0]
    if path == "gram":
        a, b = torch.triu_indices(v.shape[2], v.shape[2], device=v.device)
        norms = (sums[:, :, a, b].to(second.dtype) @ second.mT).sqrt_()
    elif path == "direct":
        norms = sums.sqrt_()
    else:
        norms = sums.to(second.dtype) @ second.mT
    return (norms * x_scale).sum(1) * v_scale[:, :, 0]


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _triangle_features(v: Tensor) -> Tensor:
    """triu(v vᵀ), off-diagonal doubled: (..., k²) to (..., k²(k²+1)/2)."""
    a, b = torch.triu_indices(v.shape[-1], v.shape[-1], device=v.device)
    return v[..., a] * v[..., b] * torch.where(a == b, 1.0, 2.0).to(v.dtype)


def _power_of_two(peak: Tensor) -> Tensor:
    """The largest power of two not above each peak; 1 where the peak is 0, NaN or infinite."""
    mantissa: Tensor = torch.frexp(peak)[0]
    return torch.where(peak.isfinite() & (peak != 0), peak / (2 * mantissa), torch.ones_like(peak))


def _scaled(values: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """`values` divided in place by a power of two near `peak`, so that float32 squares stay in range; and that power."""
    scale = _power_of_two(peak)
    return values.div_(scale), scale.double()


def _tiles(out: tuple[int, ...], most: int) -> Iterator[Tile]:
    """Boxes of at most `most` positions that cover the output map, whole rows first."""
    box: list[int] = []
    for size in reversed(out):
        box.insert(0, min(size, most))
        most = max(1, most // box[0])
    ranges = [[(start, min(start + b, size)) for start in range(0, size, b)] for size, b in zip(out, box)]
    return itertools.product(*ranges)


def _unfold(x: Tensor, geometry: ConvGeometry, tile: Tile, dtype: torch.dtype) -> Tensor:
    """The tile's columns of U: |x| (n, c, *spatial) under each kernel element, (n, c, k², T)."""
    shape = [stop - start for start, stop in tile]
    u = x.new_zeros((*x.shape[:2], geometry.taps, *shape), dtype=dtype)
    for tap, element in enumerate(itertools.product(*map(range, geometry.kernel))):
        source, target = x, u[:, :, tap]
        for d, (start, stop) in enumerate(tile):
            first = start * geometry.stride[d] + element[d] * geometry.dilation[d] - geometry.padding[d][0]
            positions = range(first, first + (stop - start) * geometry.stride[d], geometry.stride[d])
            inside = [i for i in positions if 0 <= i < x.shape[d + 2]] if geometry.padding_mode == "zeros" else []
            if geometry.padding_mode != "zeros":
                index = [source_index(i, x.shape[d + 2], geometry.padding_mode) for i in positions]
                source = source.index_select(d + 2, torch.tensor(index, device=x.device))
            elif inside:
                source = source[(slice(None),) * (d + 2) + (slice(inside[0], inside[-1] + 1, geometry.stride[d]),)]
                target = target.narrow(d + 2, positions.index(inside[0]), len(inside))
            else:
                target = target.narrow(d + 2, 0, 0)
                source = source.narrow(d + 2, 0, 0)
        target.copy_(source)
    return u.abs_().flatten(3)


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Keep autocast and reduced-precision matrix products (tf32, bf16) out of the sums, whatever the caller has set."""
    mkldnn: Any = torch.backends.mkldnn
    settings = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [s.fp32_precision for s in settings]
    try:
        for s in settings:
            s.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for s, value in zip(settings, before):
            s.fp32_precision = value

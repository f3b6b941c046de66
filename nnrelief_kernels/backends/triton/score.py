"""A call as the launches that serve it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...geometry import ConvGeometry
from .. import result_dtype, row_views
from . import columns, direct, finish, gram, lags, matrix, norms, plan
from .conv import Call, Launch


def score_conv(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str) -> Tensor:
    out = acts.new_empty(weight.shape[:2], dtype=result_dtype(weight, acts))
    with torch.cuda.device_of(acts):
        for launch in conv_launches(weight, acts, geometry, variant, out, plan.current_target(acts.device.index)):
            launch.run()
    return out


def score_linear(weight: Tensor, acts: Tensor) -> Tensor:
    out = acts.new_empty(weight.shape, dtype=result_dtype(weight, acts))
    with torch.cuda.device_of(acts):
        for launch in linear_launches(weight, acts, out):
            launch.run()
    return out


def conv_launches(
    weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str, out: Tensor, target: plan.Target
) -> Iterator[Launch]:
    """In the order they are to run; the buffers of one are made when it is its turn."""
    path = plan.conv_path(weight, acts, geometry, variant, target)
    if path == "mean map":
        yield from mean_launches(weight, acts, geometry, variant, out)
        return
    call = Call(weight, acts, geometry)
    if path == "float64 maps":
        yield finish.launch(call, plan.Chunks(call.samples, 1), out, out, "nothing")
        return
    if path == "norms":
        block = plan.norm_blocks(call.channels, geometry.positions, norms.memory_order(call)).channels
        chunks = plan.chunks(call.samples, 1, plan.ceil_div(call.channels, block), 8 * call.channels)
        sums = acts.new_empty((chunks.count, call.channels), dtype=torch.float64)
    else:
        block = plan.sample_block(path, call.samples, call.channels, geometry, plan.blocks_for(acts, target))
        programs = call.channels * (call.filters if path == "direct" else 1)
        chunks = plan.chunks(call.samples, block, programs, 8 * call.channels * call.filters)
        sums = acts.new_empty((chunks.count, call.channels, call.filters), dtype=torch.float64)
    if path == "norms":
        yield norms.launch(call, chunks, sums)
    else:
        kernel = {"lags": lags, "direct": direct, "gram": gram, "matrix": matrix}[path]
        yield kernel.launch(call, target, chunks, sums)
    yield finish.launch(call, chunks, sums, out, "channel" if path == "norms" else "filter")


def mean_launches(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str, out: Tensor) -> Iterator[Launch]:
    """The sum of the maps of as many channels at a time as fit a buffer, and its norms in float64."""
    pixels = acts[0, 0].numel()
    step = max(1, plan.PARTIAL_BYTES // (8 * pixels))
    three_dimensional = (slice(None), slice(None), *(None,) * (5 - acts.ndim))
    for first in range(0, acts.shape[1], step):
        part = acts[:, first : first + step]
        chunks = plan.column_chunks(part.shape[0], part[0].numel())
        sums = acts.new_empty((chunks.count, part[0].numel()), dtype=torch.float64)
        total = acts.new_empty((1, *part.shape[1:]), dtype=torch.float64)
        yield columns.launch(part[three_dimensional], chunks, sums)
        yield columns.add(sums, total)
        order = 1 if variant == "l1" else 2
        yield finish.launch(Call(weight, total, geometry), plan.Chunks(1, 1), total, out, "nothing", order, first)


def linear_launches(weight: Tensor, acts: Tensor, out: Tensor) -> Iterator[Launch]:
    inputs = acts.shape[-1]
    views = [(view, plan.column_chunks(len(view), inputs)) for view in row_views(acts)]
    sums = acts.new_empty((sum(chunks.count for _, chunks in views), inputs), dtype=torch.float64)
    done = 0
    for view, chunks in views:
        yield columns.launch(view[:, :, None, None, None], chunks, sums[done : done + chunks.count])
        done += chunks.count
    yield columns.scale(weight, sums, out)

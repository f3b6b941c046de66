"""Column sums sum_n |x_nm|: all that Eq. 1 needs of the activations (the weight factors out), and for "norm_of_mean" and
"l1" the mean map times the number of samples."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Launch, own_place

STEPS = tl.constexpr(64)  # terms of the inner float32 sums
SIZES = ("rows", "chunk", "columns", "blocks", "depth", "height", "width", "xn", "xc", "xd", "xh")


@triton.jit(do_not_specialize=SIZES)
def columns_kernel(
    x, sums, rows, chunk, columns, blocks, depth, height, width, xn, xc, xd, xh, xw, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Float64 sums [chunks, columns] from x [rows, channels, depth, height, width], columns counting the last four."""
    part, block = own_place(blocks)
    column = block * BC + tl.arange(0, BC)  # [BC]
    at = (column // width % height) * xh + (column % width) * xw
    at += column // (width * height) % depth * xd + column // (width * height * depth) * xc
    total = tl.zeros([BC], tl.float64)
    end = tl.minimum(part * chunk + chunk, rows)
    for first in range(part * chunk, end, BR * STEPS):
        inner = tl.zeros([BR, BC], tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
        for begin in range(first, tl.minimum(first + BR * STEPS, end), BR):
            row = begin + tl.arange(0, BR)
            inside = (row < end)[:, None] & (column < columns)[None, :]
            inner += tl.abs(tl.load(x + (row * xn)[:, None] + at[None, :], inside, 0.0).to(inner.dtype))
        total += tl.sum(inner.to(tl.float64), 0)
    tl.store(sums + part * columns + column, total, column < columns)


@triton.jit(do_not_specialize=["parts", "columns"])
def add_kernel(sums, total, parts, columns, BC: tl.constexpr):
    """total [columns] = sums [parts, columns] over the parts, in their order."""
    column = own_place(1)[0] * BC + tl.arange(0, BC)
    sum_ = tl.zeros([BC], tl.float64)
    for part in range(0, parts):
        sum_ += tl.load(sums + part * columns + column, column < columns, 0.0).to(tl.float64)
    tl.store(total + column, sum_, column < columns)


@triton.jit(do_not_specialize=["parts", "filters", "columns", "blocks", "wj", "wi"])
def scale_kernel(weight, sums, out, parts, filters, columns, blocks, wj, wi, BJ: tl.constexpr, BC: tl.constexpr):
    """Eq. 1's numerators out_ji = |w_ji| sum_n |x_ni|, [filters, columns], from sums [parts, columns]."""
    rows, block = own_place(blocks)
    column = block * BC + tl.arange(0, BC)
    j = rows * BJ + tl.arange(0, BJ)
    total = tl.zeros([BC], tl.float64)
    for part in range(0, parts):
        total += tl.load(sums + part * columns + column, column < columns, 0.0).to(tl.float64)
    inside = (j < filters)[:, None] & (column < columns)[None, :]
    w = tl.abs(tl.load(weight + (j * wj)[:, None] + (column * wi)[None, :], inside, 0.0).to(tl.float64))
    tl.store(out + (j * columns)[:, None] + column[None, :], w * total[None, :], inside)


def launch(acts: Tensor, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, columns]; acts [rows, channels, depth, height, width]."""
    columns = acts[0].numel()
    block = plan.column_block(columns)
    blocks = plan.ceil_div(columns, block)
    smaller = acts.dtype == torch.float64 or plan.triton_version() < (3, 8)  # what would spill
    arguments = {
        "x": acts, "sums": sums, "rows": acts.shape[0], "chunk": chunks.size, "columns": columns, "blocks": blocks,
        **dict(zip(("depth", "height", "width"), acts.shape[2:])), **dict(zip(("xn", "xc", "xd", "xh", "xw"), acts.stride())),
        "BR": plan.COLUMN_TILE // block // (2 if smaller else 1), "BC": block,
    }  # fmt: skip
    return Launch(columns_kernel, chunks.count * blocks, arguments)


def add(sums: Tensor, total: Tensor) -> Launch:
    """total float64 [columns] of sums [parts, columns]."""
    arguments = {"sums": sums, "total": total, "parts": sums.shape[0], "columns": sums.shape[1], "BC": 256}
    return Launch(add_kernel, plan.ceil_div(sums.shape[1], 256), arguments)


def scale(weight: Tensor, sums: Tensor, out: Tensor) -> Launch:
    """out [filters, columns] of sums float64 [parts, columns]."""
    filters, columns = weight.shape
    blocks = plan.ceil_div(columns, 128)
    arguments = {
        "weight": weight, "sums": sums, "out": out, "parts": sums.shape[0], "filters": filters, "columns": columns,
        "blocks": blocks, "wj": weight.stride(0), "wi": weight.stride(1), "BJ": 16, "BC": 128,
    }  # fmt: skip
    return Launch(scale_kernel, plan.ceil_div(filters, 16) * blocks, arguments)

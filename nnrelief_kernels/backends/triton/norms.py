"""1x1 convolutions: || |K_ij| * |x_ni| ||_F = |w_ij| ||x_ni||, so one row norm per map serves all filters.

A program owns BC channels and a chunk of samples. ORDER says how a sample lies in memory: "rows" and "channels last" are
read as they lie, ALIGN neighbours at a time; in "any" order, and with stride or padding, every output's pixel is looked up.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, own_place, pixel
from .forms import LARGEST, LEAST, SMALL_BITS, small

SIZES = ("samples", "chunk", "channels", "positions", "height_out", "width_out", "depth", "height", "width", "xn", "xd", "xh",
         "blocks")  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def norms_kernel(
    x, sums,
    samples, chunk, channels, blocks, positions, height_out, width_out, depth, height, width, xn, xc, xd, xh, xw,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, MODE: tl.constexpr, ORDER: tl.constexpr, ALIGN: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """sums from x [samples, channels, depth, height, width]."""
    part, block = own_place(blocks)
    # what ALIGN divides comes divided by it, so that the compiler knows
    xn = xn.to(tl.int64) * ALIGN
    if ORDER == "rows":
        xc, positions = xc.to(tl.int64) * ALIGN, positions * ALIGN
    elif ORDER == "channels last":
        xw, channels = xw.to(tl.int64) * ALIGN, channels * ALIGN
    channel = block * BC + tl.arange(0, BC)  # [BC]
    total = tl.zeros([BC], tl.float64)
    for n in range(part * chunk, tl.minimum(part * chunk + chunk, samples)):
        maps = x + n * xn + channel.to(tl.int64) * xc
        squares = tl.zeros([BC, BL], tl.float32)
        least = tl.full([BC, BL], 0xFFFFFFFF, tl.uint32)
        for begin in range(0, positions, BL):
            output = begin + tl.arange(0, BL)
            inside = (channel < channels)[:, None] & (output < positions)[None, :]
            if ORDER != "any":
                at = output.to(tl.int64) * xw
            else:
                at, in_map = pixel(output, 0, height_out, width_out, depth, height, width, xd, xh, xw,
                                   (1, 1, 1), STRIDE, PADDING, (1, 1, 1), MODE)  # fmt: skip
                inside = inside & in_map[None, :]
            value = tl.abs(tl.load(maps[:, None] + at[None, :], inside, 0.0).to(tl.float32))  # [BC, BL]
            squares += value * value
            if x.dtype.element_ty != tl.float16:
                least = small(value, least)
        square = tl.sum(squares, 1)  # [BC]
        has_small = tl.min(least, 1) < SMALL_BITS - 1
        trusted = (square < LARGEST) & ((square >= LEAST) | ~has_small)
        total += tl.sqrt(tl.where(trusted, square, float("nan"))).to(tl.float64)
    tl.store(sums + part * channels + channel, total, channel < channels)


def launch(call: Call, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, channels]."""
    sizes, strides, constants = call.sizes, dict(call.x_strides), call.constants
    channels, positions, order, align = call.channels, sizes["positions"], memory_order(call), 1
    if order == "rows":
        align = plan.vector(call.acts, (strides["xn"], strides["xc"], positions))
        strides["xc"], positions = strides["xc"] // align, positions // align
    elif order == "channels last":
        align = plan.vector(call.acts, (strides["xn"], strides["xw"], channels))
        strides["xw"], channels = strides["xw"] // align, channels // align
    strides["xn"] //= align
    block = plan.norm_blocks(call.channels, sizes["positions"], order)
    arguments = {
        "x": call.acts, "sums": sums,
        "samples": call.samples, "chunk": chunks.size, "channels": channels,
        "blocks": plan.ceil_div(call.channels, block.channels), **sizes, "positions": positions, **strides,
        "STRIDE": constants["STRIDE"], "PADDING": constants["PADDING"], "MODE": constants["MODE"],
        "ORDER": order, "ALIGN": align, "BC": block.channels, "BL": block.positions,
    }  # fmt: skip
    return Launch(norms_kernel, chunks.count * arguments["blocks"], arguments)


def memory_order(call: Call) -> str:
    """Whether a map's outputs are equally far apart in memory, and its pixels or its channels neighbours."""
    far, expected = call.x_strides["xw"], call.x_strides["xw"]
    for size, stride in zip(reversed(call.size), (far, call.x_strides["xh"], call.x_strides["xd"])):
        if size > 1 and stride != expected:
            return "any"
        expected *= size
    if call.out != call.size or math.prod(call.geometry.stride) > 1 or any(map(any, call.geometry.padding)):
        return "any"
    return "rows" if far == 1 else "channels last" if call.x_strides["xc"] == 1 else "any"

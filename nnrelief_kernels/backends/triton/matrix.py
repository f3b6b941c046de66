"""Convolutions of 10 to 64 kernel elements: the whole Gram matrix of one map at a time, on the matrix units.

    G = U Uᵀ  (U [k², L]: |x| under each kernel element),    || |K_ij| * |x_ni| ||² = v_jᵀ G v_j = sum_a (V G)_ja V_ja

U is gathered BL outputs at a time and never stored. A program owns a channel and a chunk of samples.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, kernel_element, own_place, pixel
from .forms import LARGEST, LEAST, SMALL_BITS, normalised, product, small

SPAN = tl.constexpr(512)  # outputs in one inner float32 sum
SIZES = ("samples", "chunk", "channels", "filters", "per_group", "positions", "height_out", "width_out", "depth", "height",
         "width", "xn", "xc", "xd", "xh", "xw", "wj", "wi", "wd", "wh", "ww")  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def matrix_kernel(
    x, weight, sums,
    samples, chunk, channels, filters, per_group, positions, height_out, width_out, depth, height, width,
    xn, xc, xd, xh, xw, wj, wi, wd, wh, ww,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, MODE: tl.constexpr,
    TP: tl.constexpr, BL: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """sums [chunks, channels, filters] from x [samples, channels, depth, height, width].

    EXACT: a precision of products that takes a float16 or bfloat16 as it is.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    part, channel = own_place(channels)
    program = part * channels + channel
    group = channel.to(tl.int32) // per_group
    kernels = weight + group.to(tl.int64) * filters * wj + (channel - group * per_group) * wi
    tap = tl.arange(0, TP)
    at_tap = kernel_element(tap, KERNEL, wd, wh, ww)
    for n in range(part * chunk, tl.minimum(part * chunk + chunk, samples)):
        map_n = x + channel * xc + n * xn
        g = tl.zeros([TP, TP], tl.float32)
        least = tl.full([TP, BL], 0xFFFFFFFF, tl.uint32)
        for first in range(0, positions, SPAN):
            inner = tl.zeros([TP, TP], tl.float32)
            for begin in range(first, tl.minimum(first + SPAN, positions), BL):
                output = begin + tl.arange(0, BL)
                at, inside = pixel(output[None, :], tap[:, None], height_out, width_out, depth, height, width, xd, xh, xw,
                                   KERNEL, STRIDE, PADDING, DILATION, MODE)  # fmt: skip
                inside = inside & (output < positions)[None, :] & (tap < TAPS)[:, None]
                u = tl.abs(tl.load(map_n + at, inside, 0.0).to(tl.float32))  # [TP, BL]
                least = small(u, least)
                inner = product(u, tl.trans(u), inner, EXACT if x.dtype.element_ty.primitive_bitwidth == 16 else PRECISION)
            g += inner
        large = tl.max(tl.max((~(g < LARGEST)).to(tl.int32), 1), 0) > 0
        has_small = tl.min(tl.min(least, 1), 0) < SMALL_BITS - 1
        trusted = tl.maximum(tl.max(tl.max(g, 1), 0), 1.0) * LEAST
        tl.debug_barrier()  # the sums loaded below may have been stored by another thread of this program
        for j0 in range(0, filters, BJ):
            j = j0 + tl.arange(0, BJ)
            at = kernels + j.to(tl.int64)[:, None] * wj + at_tap[None, :]
            v = tl.abs(tl.load(at, (j < filters)[:, None] & (tap < TAPS)[None, :], 0.0).to(tl.float32))  # [BJ, TP]
            v, scale, small_weight, peak = normalised(v, 1)
            q = tl.sum(product(v, g, tl.zeros([BJ, TP], tl.float32), PRECISION) * v, 1)  # [BJ]
            vanished = (q < trusted) & (has_small | small_weight) & (peak > 0)
            norm = tl.sqrt(tl.where(vanished | large, float("nan"), q))
            earlier = tl.load(sums + program * filters + j, (j < filters) & (n > part * chunk), 0.0).to(tl.float64)
            tl.store(sums + program * filters + j, earlier + norm.to(tl.float64) * scale, j < filters)


def launch(call: Call, target: plan.Target, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, channels, filters]."""
    blocks, taps = plan.blocks(target), plan.power_of_two(call.geometry.taps)
    arguments = {
        "x": call.acts, "weight": call.weight, "sums": sums,
        "samples": call.samples, "chunk": chunks.size, "channels": call.channels,
        "filters": call.filters, "per_group": call.per_group,
        **call.sizes, **call.x_strides, **call.weight_strides, **call.constants,
        "TP": taps, "BL": blocks.outputs if taps == 64 else 32, "BJ": 16, "PRECISION": blocks.precision,
        "EXACT": "tf32" if blocks.precision == "tf32x3" else blocks.precision,
    }  # fmt: skip
    return Launch(matrix_kernel, chunks.count * call.channels, arguments)

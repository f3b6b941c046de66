"""Convolutions of up to 9 kernel elements, any stride, dilation, padding mode and dimension: the Gram features directly.

    g_ab = sum_l |x at tap a of output l| |x at tap b of output l|,    a <= b

A thread owns every LP-th output of one map and reads its up to 9 pixels; 45 multiply-adds for 3x3. Neighbouring threads
read neighbouring outputs; what they share comes from the L1 cache. A program owns a channel and a chunk of samples.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, own_place, pixel
from .forms import SMALL_BITS, add_norms, in_pieces, small

STEPS = tl.constexpr(64)  # terms of the inner float32 sums


@triton.jit
def outer(u, totals, COUNT: tl.constexpr):
    """totals + u_a u_b for all a <= b."""
    updated = ()
    for a in tl.static_range(COUNT):
        for b in tl.static_range(a, COUNT):
            updated = updated + (totals[a * COUNT - a * (a - 1) // 2 + b - a] + u[a] * u[b],)
    return updated


SIZES = ("samples", "chunk", "channels", "filters", "per_group", "positions", "height_out", "width_out", "depth", "height",
         "width", "xn", "xc", "xd", "xh", "wj", "wi", "wd", "wh", "ww")  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def gram_kernel(
    x, weight, sums,
    samples, chunk, channels, filters, per_group, positions, height_out, width_out, depth, height, width,
    xn, xc, xd, xh, xw, wj, wi, wd, wh, ww,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, MODE: tl.constexpr,
    BN: tl.constexpr, LP: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums [chunks, channels, filters] from x [samples, channels, depth, height, width]."""
    BM: tl.constexpr = BN * LP
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    COUNT: tl.constexpr = TAPS * (TAPS + 1) // 2
    part, channel = own_place(channels)
    program = part * channels + channel
    group = channel.to(tl.int32) // per_group
    kernels = weight + group.to(tl.int64) * filters * wj + (channel - group * per_group) * wi
    lane = tl.arange(0, BM) % LP
    for begin in range(part * chunk, tl.minimum(part * chunk + chunk, samples), BN):
        n = begin + tl.arange(0, BM) // LP
        map_n = x + channel * xc + n * xn  # [BM]
        zero = tl.zeros([BM], tl.float32)
        totals, least = (zero,) * COUNT, tl.full([BM], 0xFFFFFFFF, tl.uint32)
        for first in range(0, positions, LP * STEPS):
            inner = (zero,) * COUNT
            for output in range(first, tl.minimum(first + LP * STEPS, positions), LP):
                live = (output + lane < positions) & (n < samples)
                u = ()
                for tap in tl.static_range(TAPS):
                    at, inside = pixel(output + lane, tap, height_out, width_out, depth, height, width, xd, xh, xw,
                                       KERNEL, STRIDE, PADDING, DILATION, MODE)  # fmt: skip
                    u = u + (tl.abs(tl.load(map_n + at, inside & live, 0.0).to(tl.float32)),)
                    if x.dtype.element_ty != tl.float16:
                        least = small(u[tap], least)
                inner = outer(u, inner, TAPS)
            updated = ()
            for i in tl.static_range(COUNT):
                updated = updated + (totals[i] + inner[i],)
            totals = updated

        most = zero
        for i in tl.static_range(COUNT):
            most = tl.maximum(most, totals[i], tl.PropagateNan.ALL)
        g = in_pieces(totals, TAPS, BN, LP)
        most = tl.sum(most.reshape(BN, LP), 1)
        has_small = tl.max((least < SMALL_BITS - 1).to(tl.int32).reshape(BN, LP), 1) > 0
        add_norms(g, most, has_small, kernels, wj, wd, wh, ww, sums + program * filters, begin > part * chunk, filters,
                  KERNEL, BJ, PRECISION)  # fmt: skip


def launch(call: Call, target: plan.Target, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, channels, filters]."""
    blocks = plan.blocks(target)
    lanes = plan.lanes_of_map(call.geometry)
    samples = plan.samples_at_once(call.samples, lanes, blocks)
    arguments = {
        "x": call.acts, "weight": call.weight, "sums": sums,
        "samples": call.samples, "chunk": chunks.size, "channels": call.channels,
        "filters": call.filters, "per_group": call.per_group,
        **call.sizes, **call.x_strides, **call.weight_strides, **call.constants,
        "BN": samples, "LP": lanes,
        "BJ": plan.filters_at_once(call.filters, samples * lanes, blocks),
        "PRECISION": blocks.precision,
    }  # fmt: skip
    return Launch(gram_kernel, chunks.count * call.channels, arguments, max(1, samples * lanes // target.warp))

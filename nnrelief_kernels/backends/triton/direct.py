"""Larger 2-d kernels of few filters, as in depthwise layers: each filter's map itself, and its norm.

    || |K_ij| * |x_ni| ||² = sum over outputs (h, w) of y[h, w]²
    y[h, w] = sum_{a,b} |K_ij[a, b]| |x_ni[t h + a - p, t' w + b - q]|          (t, t': the stride; p, q: the padding)

takes k² multiply-adds per output and filter, where the Gram matrix takes k²(k²+1)/2 per output. A thread owns the outputs of TW
columns of one map. It keeps the sums of the outputs that the newest row of x is part of, in registers: a row is read once, adds
to all of them, and what it completes is squared. A program owns a filter's channel and a chunk of samples; those of a channel's
other filters, which read the same maps, run beside it. A float32 sum has at most `height_out` terms, or k².

Range. |K| is divided by a power of two near its peak. What then falls below 2^-126 is lost: at most k² 2^-126 of the map's
largest pixel, per output. So a norm is trusted whose square is above 2^-80, times the square of that pixel if it is above 1,
and below 2^100; one that is not becomes NaN (see forms.py).
"""

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, columns, kernel_element, own_place
from .forms import LARGEST, LEAST, normalised


@triton.jit
def row_part(corner, first, inside, xw, BM: tl.constexpr, START: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """COUNT tensors [BM]: the pixels |x| from START on of a row whose tiles begin at `corner` and are its columns `first`."""
    u = START + tl.arange(0, COUNT)
    column = first[:, None] + u[None, :]  # [BM, COUNT]
    at = corner[:, None] + u.to(tl.int64)[None, :] * xw
    x = tl.load(at, inside[:, None] & (column >= 0) & (column < WIDTH), 0.0).to(tl.float32)
    return columns(tl.abs(x), BM, COUNT)


@triton.jit
def row_of_pixels(
    corner, first, inside, xw,
    BM: tl.constexpr, LEFT: tl.constexpr, STEP: tl.constexpr, RIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """LEFT + STEP + RIGHT tensors [BM], in the widths that can be one load each."""
    MIDDLE: tl.constexpr = triton.next_power_of_2(STEP)
    pixels = row_part(corner, first, inside, xw, BM, 0, MIDDLE, WIDTH)[:STEP]
    if LEFT > 0:
        BEFORE: tl.constexpr = triton.next_power_of_2(LEFT)
        pixels = row_part(corner, first, inside, xw, BM, -BEFORE, BEFORE, WIDTH)[BEFORE - LEFT :] + pixels
    if RIGHT > 0:
        AFTER: tl.constexpr = triton.next_power_of_2(RIGHT)
        pixels = pixels + row_part(corner, first, inside, xw, BM, STEP, AFTER, WIDTH)[:RIGHT]
    return pixels


SIZES = ("samples", "chunk", "channels", "height", "height_out", "filters", "per_group", "xn", "xc", "xh", "wj", "wi", "wh",
         "ww")  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def direct_kernel(
    x, weight, sums,
    samples, chunk, channels, height, height_out, filters, per_group,
    xn, xc, xh, xw, wj, wi, wh, ww,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_OUT: tl.constexpr,
    TW: tl.constexpr, TILES: tl.constexpr, ALIGN: tl.constexpr, BN: tl.constexpr, TP: tl.constexpr,
):  # fmt: skip
    """sums [chunks, channels, filters] from x [samples, channels, height, WIDTH]."""
    BM: tl.constexpr = BN * TILES
    KH: tl.constexpr = KERNEL[1]
    KW: tl.constexpr = KERNEL[2]
    SH: tl.constexpr = STRIDE[0]
    SW: tl.constexpr = STRIDE[1]
    TOP: tl.constexpr = PADS[0]
    LEFT: tl.constexpr = PADS[1]
    TAPS: tl.constexpr = KH * KW
    OPEN: tl.constexpr = triton.cdiv(KH, SH)  # rows of outputs that a row of x is part of
    STEP: tl.constexpr = TW * SW  # columns of x from tile to tile
    RIGHT: tl.constexpr = max(0, KW - SW - LEFT)
    OWN: tl.constexpr = STEP + (RIGHT if TILES * STEP < WIDTH else 0)  # whose columns no other tile begins with
    FIRST: tl.constexpr = TOP // SH  # row of outputs whose first SH rows of x are not all padding
    xn, xc, xh = xn.to(tl.int64) * ALIGN, xc.to(tl.int64) * ALIGN, xh.to(tl.int64) * ALIGN

    place, j = own_place(filters)
    part, channel = place // channels, place % channels
    group = channel.to(tl.int32) // per_group
    kernel = weight + (group.to(tl.int64) * filters + j) * wj + (channel - group * per_group) * wi
    tile = tl.arange(0, BM) % TILES
    first = tile * STEP  # [BM]
    tap = tl.arange(0, TP)
    at_tap = kernel_element(tap, KERNEL, 0, wh, ww)
    zero = tl.zeros([BM], tl.float32)
    _, scale, _, largest = normalised(tl.abs(tl.load(kernel + at_tap, tap < TAPS, 0.0).to(tl.float32)), 0)
    inverse = (1.0 / scale).to(tl.float32)
    v = ()
    for i in tl.static_range(TAPS):
        at = kernel_element(i, KERNEL, 0, wh, ww)
        v = v + (tl.abs(tl.load(kernel + at).to(tl.float32)) * inverse,)

    norms = tl.full([], 0.0, tl.float64)
    for begin in range(part * chunk, tl.minimum(part * chunk + chunk, samples), BN):
        n = begin + tl.arange(0, BM) // TILES
        r0 = FIRST * SH - TOP
        corner = x + channel * xc + n * xn + first.to(tl.int64) * xw + r0 * xh  # [BM]
        inside = n < samples
        fetched = row_of_pixels(corner, first, inside & (r0 >= 0) & (r0 < height), xw, BM, LEFT, STEP, RIGHT, WIDTH)
        y, squares, most = (zero,) * (OPEN * TW), (zero,) * TW, zero
        for m in range(FIRST, height_out + OPEN - 1):
            for turn in tl.static_range(SH):
                pixels = fetched
                corner += xh  # fetched while this row is used
                r = m * SH - TOP + turn + 1
                fetched = row_of_pixels(corner, first, inside & (r >= 0) & (r < height), xw, BM, LEFT, STEP, RIGHT, WIDTH)
                for column in tl.static_range(OWN):
                    most = tl.maximum(most, pixels[LEFT + column])
                updated = ()
                for i in tl.static_range(OPEN):  # the i-th row of outputs before the newest
                    for u in tl.static_range(TW):
                        total = y[i * TW + u] if turn > 0 else (y[(i - 1) * TW + u] if i > 0 else zero)
                        if turn + i * SH < KH:
                            for b in tl.static_range(KW):
                                x_b = pixels[u * SW + b]
                                total = tl.fma(v[(turn + i * SH) * KW + b], x_b, total)
                        updated = updated + (total,)
                y = updated
            added = ()
            for u in tl.static_range(TW):  # before the map's first row, what is complete is no output
                done = tl.where(m >= OPEN - 1, y[(OPEN - 1) * TW + u], 0.0)
                added = added + (tl.fma(done, done, squares[u]),)
            squares = added

        q = zero
        for u in tl.static_range(TW):
            q += tl.where(tile * TW + u < WIDTH_OUT, squares[u], 0.0)
        q, most = tl.sum(q.reshape(BN, TILES), 1), tl.max(most.reshape(BN, TILES), 1)  # [BN]
        least = tl.where(tl.minimum(most, largest) > 0, tl.maximum(most * most, 1.0) * LEAST, 0.0)  # nothing is 0 exactly
        norms += tl.sum(tl.sqrt(tl.where((q < LARGEST) & (q >= least), q, float("nan"))), 0).to(tl.float64)
    tl.store(sums + place * filters + j, norms * scale)


def launch(call: Call, target: plan.Target, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, channels, filters]."""
    tiles, stride = plan.direct_tiles(call.geometry), plan.three(call.geometry.stride, 1)[1:]
    pads = plan.three(call.geometry.padding, (0, 0))[1:]
    samples = plan.direct_samples(call.samples, plan.blocks(target), tiles)
    arguments = {
        **call.by_rows(), "sums": sums, "chunk": chunks.size, "height_out": call.out[1], "WIDTH_OUT": call.out[2],
        "STRIDE": stride, "PADS": tuple(before for before, _ in pads), "TW": tiles.width, "TILES": tiles.count, "BN": samples,
        "TP": plan.power_of_two(call.geometry.taps),
    }  # fmt: skip
    return Launch(
        direct_kernel, chunks.count * call.channels * call.filters, arguments, max(1, samples * tiles.count // target.warp)
    )

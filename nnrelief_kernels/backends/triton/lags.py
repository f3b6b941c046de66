"""Convolutions of stride 1 or 2, dilation 1 and small 2-d kernels: the Gram features of a map from its lags, in one pass.

    g_ab = sum over outputs (h, w) of |x[t h + a_h - p, t' w + a_w - q]| |x[t h + b_h - p, t' w + b_w - q]|
                                                                     (t, t': the stride; p, q: the padding)

is a sum of products |x[r, u]| |x[r + d, u + s]| of pixels at the lag (d, s) = b - a, over a window of (r, u) that depends on
a: every t-th row from a_h - p on, every t'-th column. Windows of one lag that begin in the same class of rows and columns
differ in the map's first and last ones alone, and where the padding is wide enough they are equal: the 45 features of a 3x3
kernel are, at stride 1 and padding 1, 29 different sums of 13 products per pixel, and at stride 2 sums of 34 products per
four pixels. A row's products are summed once per lag, a window adds the edge products it contains, and nothing is subtracted.

A thread owns a column tile of one map, keeps its last rows in registers and reads each new row once: every lag is a product
of registers. A program owns a channel and a chunk of samples. A float32 sum has at most TW + H terms.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, columns, own_place
from .forms import SMALL_BITS, add_norms, in_pieces, small


@triton.constexpr_function
def window(a, shift, kernel, stride, before, after):
    """The class that tap a's window lies in, and how many of its first and last pixels with a partner at `shift` it leaves
    out. `after` is the padding that outputs reach: below 0 where the last pixels meet no tap."""
    return (a - before) % stride, max(0, (a - before) // stride), max(0, (kernel - 1 - shift - a - after) // stride)


@triton.constexpr_function
def distinct(kernel, stride, pads):
    """The different sums (d, s, window of rows, window of columns), and for every feature a <= b the sum it is."""
    _, height, width = kernel
    top, bottom, left, right = pads
    sums, features = {}, []
    taps = [(h, w) for h in range(height) for w in range(width)]
    for i in range(len(taps)):  # Triton 3.6 cannot read nested targets
        ah, aw = taps[i]
        for bh, bw in taps[i:]:
            d, s = bh - ah, bw - aw
            rows = window(ah, d, height, stride[0], top, bottom)
            cols = window(min(aw, bw), abs(s), width, stride[1], left, right)
            features.append(sums.setdefault((d, s, *rows, *cols), len(sums)))
    return list(sums), features


@triton.constexpr_function
def sum_count(table):
    return len(table[0])


@triton.constexpr_function
def sum_at(table, i):
    return table[0][i]


@triton.constexpr_function
def sum_of_feature(table, f):
    return table[1][f]


@triton.constexpr_function
def row_class(sum_, stride):
    """Of the rows that a sum's products end in."""
    return (sum_[2] + sum_[0]) % stride


@triton.constexpr_function
def base_row(sum_):
    """How many rows before the newest a sum's pixels at u lie."""
    return sum_[0] if sum_[1] >= 0 else 0


@triton.constexpr_function
def other_row(sum_):
    return 0 if sum_[1] >= 0 else sum_[0]


@triton.constexpr_function
def spans(sum_, kernel, stride, pads, width, tw, tiles):
    """Columns u of a tile whose products |x[u]| |x[u + s]| belong to a sum. First two ranges: those in every window of the
    lag, which is why they are summed first, and those past the map's end in its last tile, where they are 0. Then the others,
    each with the side of the map on which it is left out: -1, 1 or neither, 0."""
    s, step, class_ = abs(sum_[1]), stride[1], sum_[5]
    end = width - (tiles - 1) * tw - s  # of the columns that have a partner, in the last tile
    begin = max(0, kernel[2] - 1 - s - pads[2])  # of those that every window contains
    right = max(begin, end - max(0, kernel[2] - 1 - s - pads[3]))

    def of_class(first, last):
        return range(first + (class_ - first) % step, last, step)

    inner, beyond = of_class(begin, right), of_class(max(begin, end), tw if tiles > 1 else 0)
    edges = []
    for u in [*of_class(class_, min(begin, end)), *of_class(right, end)]:
        left_out = u < class_ + sum_[6] * step or u >= end - sum_[7] * step
        if tiles > 1 or not left_out:
            edges.append((u, (-1 if u < min(begin, end) else 1) if left_out else 0))
    return inner.start, inner.stop, beyond.start, beyond.stop, edges


@triton.constexpr_function
def edge_count(found):
    return len(found[4])


@triton.constexpr_function
def edge_column(found, i):
    return found[4][i][0]


@triton.constexpr_function
def edge_side(found, i):
    return found[4][i][1]


@triton.jit
def with_products(total, a, b):
    """total + sum_i a_i b_i. Triton builds this once for all tuples of a length, a loop in window_sum once for every sum."""
    for i in tl.static_range(len(a)):
        total = tl.fma(a[i], b[i], total)
    return total


@triton.jit
def window_sum(
    base, other, SUM: tl.constexpr, first, last, r, height,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADS: tl.constexpr, WIDTH: tl.constexpr, TW: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What the newest row `r` adds to the sum SUM = (d, s, window of rows, window of columns), [BM].

    base, other: the rows of its pixels at u and u + |s|. first, last: whether a thread's tile is the first or last of its map.
    """
    S: tl.constexpr = max(SUM[1], -SUM[1])
    STEP: tl.constexpr = STRIDE[1]
    SPANS: tl.constexpr = spans(SUM, KERNEL, STRIDE, PADS, WIDTH, TW, TILES)
    other, total = other[S:], base[0] * 0.0
    if SPANS[0] < SPANS[1]:
        total = with_products(total, base[SPANS[0] : SPANS[1] : STEP], other[SPANS[0] : SPANS[1] : STEP])
    if SPANS[2] < SPANS[3]:
        total = with_products(total, base[SPANS[2] : SPANS[3] : STEP], other[SPANS[2] : SPANS[3] : STEP])
    for i in tl.static_range(edge_count(SPANS)):
        if edge_side(SPANS, i) == 0:
            total = tl.fma(base[edge_column(SPANS, i)], other[edge_column(SPANS, i)], total)
        else:
            edge = base[edge_column(SPANS, i)] * other[edge_column(SPANS, i)]
            total += tl.where(first if edge_side(SPANS, i) < 0 else last, 0.0, edge)
    if SUM[3] > 0:
        total = tl.where(r >= SUM[0] + SUM[2] + SUM[3] * STRIDE[0], total, 0.0)
    if SUM[4] > 0:
        total = tl.where(r < height - SUM[4] * STRIDE[0], total, 0.0)
    return total


@triton.jit
def with_row(
    totals, rows, tile, r, height,
    TURN: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADS: tl.constexpr,
    WIDTH: tl.constexpr, TW: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """All sums with what the newest row `r` adds to them: those whose products end in rows of class TURN.

    A function of its own because Triton builds the body of a loop twice for every loop around it, and a function once.
    """
    TABLE: tl.constexpr = distinct(KERNEL, STRIDE, PADS)
    updated = ()
    for i in tl.static_range(sum_count(TABLE)):
        if row_class(sum_at(TABLE, i), STRIDE[0]) == TURN:
            base, other = rows[base_row(sum_at(TABLE, i))], rows[other_row(sum_at(TABLE, i))]
            row_sum = window_sum(base, other, sum_at(TABLE, i), tile == 0, tile == TILES - 1, r, height,
                                 KERNEL, STRIDE, PADS, WIDTH, TW, TILES)  # fmt: skip
            updated = updated + (totals[i] + row_sum,)
        else:
            updated = updated + (totals[i],)
    return updated


@triton.jit
def least_of(row, least, TW: tl.constexpr):
    """`small` of the first TW columns."""
    for column in tl.static_range(TW):
        least = small(row[column], least)
    return least


SIZES = ("samples", "chunk", "channels", "height", "filters", "per_group", "xn", "xc", "xh", "wj", "wi", "wh", "ww")


@triton.jit(do_not_specialize=SIZES)
def lags_kernel(
    x, weight, sums,
    samples, chunk, channels, height, filters, per_group,
    xn, xc, xh, xw, wj, wi, wh, ww,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADS: tl.constexpr, WIDTH: tl.constexpr, TW: tl.constexpr,
    TILES: tl.constexpr, ALIGN: tl.constexpr, BN: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums [chunks, channels, filters] from x [samples, channels, height, WIDTH]."""
    BM: tl.constexpr = BN * TILES
    LOAD: tl.constexpr = triton.next_power_of_2(TW)
    USED: tl.constexpr = TW + (KERNEL[2] - 1 if TILES > 1 else 0)
    TABLE: tl.constexpr = distinct(KERNEL, STRIDE, PADS)
    COUNT: tl.constexpr = sum_count(TABLE)
    HEIGHT: tl.constexpr = KERNEL[1]
    STEP: tl.constexpr = STRIDE[0]
    TAPS: tl.constexpr = HEIGHT * KERNEL[2]
    xn, xc, xh = xn.to(tl.int64) * ALIGN, xc.to(tl.int64) * ALIGN, xh.to(tl.int64) * ALIGN

    part, channel = own_place(channels)
    program = part * channels + channel
    group = channel.to(tl.int32) // per_group
    kernels = weight + group.to(tl.int64) * filters * wj + (channel - group * per_group) * wi
    tile = tl.arange(0, BM) % TILES
    u, e = tl.arange(0, LOAD), LOAD + tl.arange(0, 2)
    # What phase 2 needs in every turn is made in every turn: the registers are the rows'.
    for begin in tl.range(part * chunk, tl.minimum(part * chunk + chunk, samples), BN, disable_licm=True):
        n = begin + tl.arange(0, BM) // TILES
        corner = x + channel * xc + n * xn + (tile * TW).to(tl.int64) * xw  # [BM]
        at = corner[:, None] + u.to(tl.int64)[None, :] * xw  # [BM, LOAD]
        inside = (n < samples)[:, None] & ((tile * TW)[:, None] + u[None, :] < WIDTH)
        row = tl.load(at, inside, 0.0)
        if USED > LOAD:
            at_halo = corner[:, None] + e.to(tl.int64)[None, :] * xw  # [BM, 2]
            inside_halo = (n < samples)[:, None] & ((tile * TW)[:, None] + e[None, :] < WIDTH)
            halo = tl.load(at_halo, inside_halo, 0.0)

        zero = tl.zeros([BM], tl.float32)
        totals, least = (zero,) * COUNT, tl.full([BM], 0xFFFFFFFF, tl.uint32)
        rows = ((zero,) * USED,) * HEIGHT  # the newest first
        for r0 in range(0, height, STEP):
            for turn in tl.static_range(STEP):
                r = r0 + turn
                newest = columns(tl.abs(row.to(tl.float32)), BM, LOAD)
                if USED > LOAD:
                    newest = newest + columns(tl.abs(halo.to(tl.float32)), BM, 2)
                rows = (newest[:USED],) + rows[: HEIGHT - 1]
                at += xh  # fetched while this row is used
                row = tl.load(at, inside & (r + 1 < height), 0.0)
                if USED > LOAD:
                    at_halo += xh
                    halo = tl.load(at_halo, inside_halo & (r + 1 < height), 0.0)
                if x.dtype.element_ty != tl.float16:
                    least = least_of(newest, least, TW)
                totals = with_row(totals, rows, tile, r, height, turn, KERNEL, STRIDE, PADS, WIDTH, TW, TILES)

        most = zero
        for i in tl.static_range(COUNT):
            most = tl.maximum(most, totals[i], tl.PropagateNan.ALL)
        features = ()
        for i in tl.static_range(TAPS * (TAPS + 1) // 2):
            features = features + (totals[sum_of_feature(TABLE, i)],)
        most = tl.sum(most.reshape(BN, TILES), 1)
        g = in_pieces(features, TAPS, BN, TILES)
        has_small = tl.max((least < SMALL_BITS - 1).to(tl.int32).reshape(BN, TILES), 1) > 0
        add_norms(g, most, has_small, kernels, wj, 0, wh, ww, sums + program * filters, begin > part * chunk, filters,
                  KERNEL, BJ, PRECISION)  # fmt: skip


def launch(call: Call, target: plan.Target, chunks: plan.Chunks, sums: Tensor) -> Launch:
    """sums float64 [chunks, channels, filters]."""
    blocks = plan.blocks_for(call.acts, target)
    tiles = plan.lag_tiles(call.geometry, blocks, call.samples * call.channels)
    stride = plan.three(call.geometry.stride, 1)
    before = [pads[0] for pads in plan.three(call.geometry.padding, (0, 0))]
    after = [(out - 1) * t + k - size - p for out, t, k, size, p in zip(call.out, stride, call.kernel, call.size, before)]
    samples = plan.samples_at_once(call.samples, tiles.count, blocks)
    arguments = {
        **call.by_rows(tiles.width), "sums": sums, "chunk": chunks.size,
        "STRIDE": stride[1:], "PADS": (before[1], after[1], before[2], after[2]), "TW": tiles.width, "TILES": tiles.count,
        "BN": samples, "BJ": plan.filters_at_once(call.filters, samples * tiles.count, blocks), "PRECISION": blocks.precision,
    }  # fmt: skip
    return Launch(lags_kernel, chunks.count * call.channels, arguments, max(1, samples * tiles.count // target.warp))

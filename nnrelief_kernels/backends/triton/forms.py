"""Phase 2, shared by the fused kernels: from the features of maps to the sums of their norms.

The squared norm of a feature map is a quadratic form, || |K_ij| * |x_ni| ||² = sum_{a<=b} g_ab f_ab, with g_ab a feature of
the map and f_ab = v_a v_b (doubled for a < b) one of the kernel, v = |K_ij|. f is built on chip from the weights: a table of
it would be larger than the layer. Features stand in the order (0,0), (0,1), ..., (1,1), ..., and since a product's sides are
powers of two and at least 16, in pieces: the 45 of 3x3 kernels are 32 and 16 with three zeros.

Range. v is divided by a power of two near its peak; g is as it came, since |x| is read once. What float32 may have lost is
found afterwards. Squares of |x| >= 2^-30 and their products with squares of v >= 2^-25 of its peak are normal numbers. Where
a map or a kernel holds something smaller, what vanished is below 2^-100, so a norm is trusted whose square is above 2^-80
(times the largest feature, if that is above 1). Features must stay below 2^100. A norm that fails, as one of NaN or Inf
does, becomes NaN, and so does the sum that it is added to: finish.py then scores those maps once more in float64.
"""

import triton
import triton.language as tl

from .conv import kernel_element

LARGEST = tl.constexpr(2.0**100)
LEAST = tl.constexpr(2.0**-80)
SMALL_WEIGHT = tl.constexpr(2.0**-25)
SMALL_BITS = tl.constexpr((127 - 30) << 23)  # the bits of 2^-30
TP = tl.constexpr(16)  # rows of a kernel tile; the compiler fails to gather from one with fewer values than threads
TF32 = tl.constexpr(-(1 << 13))  # the bits that tf32 keeps


@triton.jit
def small(x, least):
    """The running least of x > 0, as float32 bits less 1: 0 becomes the largest of them. `least` starts at 2^32 - 1."""
    return tl.minimum(least, (x.to(tl.int32, bitcast=True) - 1).to(tl.uint32, bitcast=True))


@triton.jit
def normalised(v, AXIS: tl.constexpr):
    """v over 2^e, 2^e <= its peak along AXIS < 2^(e+1), with 2^e in float64; whether v holds something small; its peak."""
    peak = tl.max(v, AXIS)
    exponent = tl.minimum(tl.maximum((peak.to(tl.int32, bitcast=True) >> 23) & 255, 1), 253)
    scale = ((exponent.to(tl.int64) + (1023 - 127)) << 52).to(tl.float64, bitcast=True)
    v = v * tl.expand_dims(((254 - exponent) << 23).to(tl.float32, bitcast=True), AXIS)
    return v, scale, tl.min(tl.where(v > 0, v, 1.0), AXIS) < SMALL_WEIGHT, peak


@triton.jit
def upper(x):
    """x cut to tf32."""
    return (x.to(tl.int32, bitcast=True) & TF32).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b; "tf32x3" keeps 20 bits of each factor."""
    if PRECISION == "tf32x3":
        high_a, high_b = upper(a), upper(b)
        total = tl.dot(a - high_a, high_b, total, input_precision="tf32")
        total = tl.dot(high_a, b - high_b, total, input_precision="tf32")
        return tl.dot(high_a, high_b, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.constexpr_function
def pieces(taps):
    """The features of so many taps in pieces (first, width)."""
    left, first, found = (taps * (taps + 1) // 2 + 15) // 16 * 16, 0, []
    while left > 0:
        width = 1 << (left.bit_length() - 1)
        found.append((first, width))
        first, left = first + width, left - width
    return found


@triton.constexpr_function
def piece_count(taps):
    return len(pieces(taps))


@triton.constexpr_function
def first_of_piece(taps, i):
    return pieces(taps)[i][0]


@triton.constexpr_function
def width_of_piece(taps, i):
    return pieces(taps)[i][1]


@triton.jit
def joined(parts, COUNT: tl.constexpr):
    """COUNT tensors [BM] as [BM, 2, ..., 2], the last dimensions counting the parts in binary."""
    if COUNT == 1:
        return parts[0]
    else:
        pairs = ()
        for i in tl.static_range(COUNT // 2):
            pairs = pairs + (tl.join(parts[i], parts[COUNT // 2 + i]),)
        return joined(pairs, COUNT // 2)


@triton.jit
def piece(features, PIECE: tl.constexpr, TAPS: tl.constexpr, BN: tl.constexpr, LANES: tl.constexpr):
    """A piece of the features of BN maps, [BN, width], from a tensor [BN * LANES] per feature, of the lanes of each map."""
    WIDTH: tl.constexpr = width_of_piece(TAPS, PIECE)
    parts = ()
    for f in tl.static_range(WIDTH):
        if first_of_piece(TAPS, PIECE) + f < TAPS * (TAPS + 1) // 2:
            parts = parts + (features[first_of_piece(TAPS, PIECE) + f],)
        else:
            parts = parts + (tl.zeros([BN * LANES], tl.float32),)
    return tl.sum(joined(parts, WIDTH).reshape(BN, LANES, WIDTH), 1)


@triton.jit
def in_pieces(features, TAPS: tl.constexpr, BN: tl.constexpr, LANES: tl.constexpr):
    """All of them, as add_norms takes them."""
    g = ()
    for i in tl.static_range(piece_count(TAPS)):
        g = g + (piece(features, i, TAPS, BN, LANES),)
    return g


@triton.jit
def pair(f, COUNT: tl.constexpr):
    """The pair a <= b of 0..COUNT-1 that feature f stands for; beyond the last, any."""
    a = f * 0
    for i in tl.static_range(1, COUNT):
        a += (f >= i * COUNT - i * (i - 1) // 2).to(tl.int32)
    return a, f - (a * COUNT - a * (a - 1) // 2) + a


@triton.jit
def forms(v, PIECE: tl.constexpr, TAPS: tl.constexpr):
    """The forms of kernels v [TP, BJ] that belong to a piece of the features, [width, BJ]."""
    WIDTH: tl.constexpr = width_of_piece(TAPS, PIECE)
    BJ: tl.constexpr = v.shape[1]
    feature = first_of_piece(TAPS, PIECE) + tl.arange(0, WIDTH)
    a, b = pair(feature, TAPS)
    times = tl.where(feature < TAPS * (TAPS + 1) // 2, tl.where(a == b, 1.0, 2.0), 0.0)[:, None]
    a = tl.broadcast_to(tl.minimum(a, TAPS - 1)[:, None], [WIDTH, BJ])
    b = tl.broadcast_to(tl.minimum(b, TAPS - 1)[:, None], [WIDTH, BJ])
    return tl.gather(v, a, 0) * tl.gather(v, b, 0) * times


@triton.jit
def add_norms(
    g,  # [BN, width] of every piece of the features, 0 beyond the last sample
    most,  # [BN] at least the largest feature
    has_small,  # [BN] whether the map holds 0 < |x| < 2^-30
    weight,  # of the channel, at its group's first filter
    wj, wd, wh, ww,  # strides
    sums,  # float64 [filters], this program's own
    again,  # whether `sums` holds the norms of earlier samples
    filters,
    KERNEL: tl.constexpr, BJ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums[j] += sum_n sqrt(g_n . f_j), NaN where a number was out of range."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tap = tl.arange(0, TP)
    at_tap = kernel_element(tap, KERNEL, wd, wh, ww)
    least = tl.where(most < LARGEST, tl.maximum(most, 1.0) * LEAST, float("nan"))  # [BN], the least square to trust, if any
    has_small |= ~(most < LARGEST)
    tl.debug_barrier()  # the sums loaded below may have been stored by another thread of this program
    for j0 in range(0, filters, BJ):
        j = j0 + tl.arange(0, BJ)
        at = weight + at_tap[:, None] + j.to(tl.int64)[None, :] * wj
        v = tl.abs(tl.load(at, (tap < TAPS)[:, None] & (j < filters)[None, :], 0.0).to(tl.float32))  # [TP, BJ]
        v, scale, small_weight, peak = normalised(v, 0)
        q = tl.zeros([most.shape[0], BJ], tl.float32)
        for i in tl.static_range(piece_count(TAPS)):
            q = product(g[i], forms(v, i, TAPS), q, PRECISION)  # [BN, BJ]
        vanished = ~(q >= least[:, None]) & (has_small[:, None] | small_weight[None, :]) & (peak > 0)[None, :]
        norms = tl.sqrt(tl.where(vanished, float("nan"), q))
        earlier = tl.load(sums + j, (j < filters) & again, 0.0).to(tl.float64)
        tl.store(sums + j, earlier + tl.sum(norms, 0).to(tl.float64) * scale, j < filters)

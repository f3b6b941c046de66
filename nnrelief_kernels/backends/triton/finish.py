"""The second step: adds what the programs of the first left, in a fixed order, and scores again what float32 could not.

A program owns a channel and BJ filters. For a chunk of samples whose sum is NaN, or for every chunk where nothing else ran
(float64 inputs, and the one mean map of "norm_of_mean" and "l1"), it forms the feature maps themselves in float64, a tile
of outputs at a time. Nothing of this reaches the host. The geometry is known at run time only, so that layers share a binary.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .conv import Call, Launch, kernel_element, own_place, pixel

SIZES = ("samples", "chunk", "parts", "channels", "filters", "per_group", "positions", "height_out", "width_out", "depth",
         "height", "width", "xn", "xc", "xd", "xh", "xw", "wj", "wi", "wd", "wh", "ww", "blocks", "first",
         "kd", "kh", "kw", "sd", "sh", "sw", "pd", "ph", "pw", "dd", "dh", "dw")  # fmt: skip


@triton.jit
def root(y):
    """sqrt(y) of float64 y >= 0 by Newton's method: Triton's own calls a function, and its stack frame spills registers."""
    half = (((y.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023) >> 1
    y_scaled = y * ((1023 - 2 * half) << 52).to(tl.float64, bitcast=True)  # in [1, 4)
    z = tl.rsqrt(y_scaled.to(tl.float32)).to(tl.float64)
    z = z * (1.5 - 0.5 * y_scaled * z * z)
    z = z * (1.5 - 0.5 * y_scaled * z * z)
    result = y_scaled * z * ((1023 + half) << 52).to(tl.float64, bitcast=True)
    return tl.where((y > 0) & (y < float("inf")), result, y)


@triton.jit
def map_norms(
    map_n, kernels, j, filters, positions, height_out, width_out, depth, height, width, xd, xh, xw, wj, wd, wh, ww,
    kernel, stride, padding, dilation,  # of each dimension
    MODE: tl.constexpr, ORDER: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """|| |K_j| * |x| || of one map, float64 [BJ]: the 2-norm, or for ORDER 1 the sum."""
    total = tl.zeros([j.shape[0]], tl.float64)
    for begin in range(0, positions, BL):
        output = begin + tl.arange(0, BL)
        y = tl.zeros([j.shape[0], BL], tl.float64)
        for tap in range(0, kernel[0] * kernel[1] * kernel[2]):
            at, inside = pixel(output, tap, height_out, width_out, depth, height, width, xd, xh, xw,
                               kernel, stride, padding, dilation, MODE)  # fmt: skip
            u = tl.abs(tl.load(map_n + at, inside & (output < positions), 0.0).to(tl.float64))  # [BL]
            at_j = kernels + kernel_element(tap, kernel, wd, wh, ww) + j.to(tl.int64) * wj
            v = tl.abs(tl.load(at_j, j < filters, 0.0).to(tl.float64))  # [BJ]
            y += v[:, None] * u[None, :]
        total += tl.sum(y * y if ORDER == 2 else y, 1)
    return root(total) if ORDER == 2 else total


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(
    x, weight, sums, out,
    samples, chunk, parts, channels, filters, per_group, blocks, first,
    positions, height_out, width_out, depth, height, width, xn, xc, xd, xh, xw, wj, wi, wd, wh, ww,
    kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw,  # kernel, stride, padding, dilation
    MODE: tl.constexpr,
    ORDER: tl.constexpr, FIRST: tl.constexpr, BJ: tl.constexpr, BL: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """out [filters of all groups, per_group]. FIRST: what ran before left sums per "filter", per "channel", or "nothing"."""
    local, block = own_place(blocks)
    channel = first + local  # `x` begins at channel `first`
    j = block * BJ + tl.arange(0, BJ)  # [BJ]
    group = (channel.to(tl.int32) // per_group).to(tl.int64)
    member = channel - group * per_group
    kernels = weight + group * filters * wj + member * wi
    kernel, stride, padding, dilation = (kd, kh, kw), (sd, sh, sw), (pd, ph, pw), (dd, dh, dw)
    total = tl.zeros([BJ], tl.float64)
    if FIRST == "nothing":
        for n in range(0, samples):
            total += map_norms(x + n * xn + local * xc, kernels, j, filters, positions, height_out, width_out,
                               depth, height, width, xd, xh, xw, wj, wd, wh, ww,
                               kernel, stride, padding, dilation, MODE, ORDER, BL)  # fmt: skip
    else:
        for first_part in range(0, parts, BP):
            part = first_part + tl.arange(0, BP)
            if FIRST == "filter":
                at = sums + ((part * channels + channel) * filters)[:, None] + j[None, :]
                own = tl.load(at, (part < parts)[:, None] & (j < filters)[None, :], 0.0).to(tl.float64)  # [BP, BJ]
                failed = tl.sum(tl.sum((own != own).to(tl.int32), 1), 0)
                total += tl.sum(tl.where(own == own, own, 0.0), 0)
            else:
                w = tl.abs(tl.load(kernels + j * wj, j < filters, 0.0).to(tl.float64))
                own = tl.load(sums + part * channels + channel, part < parts, 0.0).to(tl.float64)  # [BP]
                failed = tl.sum((own != own).to(tl.int32), 0)
                total += tl.sum(tl.where(own == own, own, 0.0), 0) * w
            if failed > 0:
                for p in range(first_part, tl.minimum(first_part + BP, parts)):
                    place = p * channels + channel
                    at_p = sums + (place * filters + j if FIRST == "filter" else place + 0 * j)
                    own_p = tl.load(at_p, j < filters, 0.0).to(tl.float64)
                    again = own_p != own_p  # [BJ]
                    if tl.sum(again.to(tl.int32), 0) > 0:
                        for n in range(p * chunk, tl.minimum(p * chunk + chunk, samples)):
                            y = map_norms(x + n * xn + local * xc, kernels, j, filters, positions, height_out, width_out,
                                          depth, height, width, xd, xh, xw, wj, wd, wh, ww,
                                          kernel, stride, padding, dilation, MODE, ORDER, BL)  # fmt: skip
                            total += tl.where(again, y, 0.0)
    tl.store(out + (group * filters + j) * per_group + member, total, j < filters)


def launch(call: Call, chunks: plan.Chunks, sums: Tensor, out: Tensor, before: str, order: int = 2, first: int = 0) -> Launch:
    """out [C_out, per_group]; `sums` as the kernel that came `before` fills it."""
    names = {"k": "KERNEL", "s": "STRIDE", "p": "PADDING", "d": "DILATION"}
    numbers = {short + axis: n for short, name in names.items() for axis, n in zip("dhw", call.constants[name])}
    block = plan.finish_block(before, chunks.count)
    blocks = plan.ceil_div(call.filters, block.filters)
    arguments = {
        "x": call.acts, "weight": call.weight, "sums": sums, "out": out,
        "samples": call.samples, "chunk": chunks.size, "parts": chunks.count, "channels": call.channels,
        "filters": call.filters, "per_group": call.per_group, "blocks": blocks, "first": first,
        **call.sizes, **call.x_strides, **call.weight_strides, **numbers, "MODE": call.constants["MODE"],
        "ORDER": order, "FIRST": before, "BJ": block.filters, "BL": block.outputs, "BP": block.parts,
    }  # fmt: skip
    return Launch(finish_kernel, call.channels * blocks, arguments)

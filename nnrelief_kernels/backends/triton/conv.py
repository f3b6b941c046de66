"""What the kernels share: a convolution in numbers, a launch, and where a kernel element meets the map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...geometry import ConvGeometry
from .plan import three, vector


@dataclass(frozen=True)
class Launch:
    """A kernel with all its arguments: to be run, or to be compiled ahead of time for tensors that hold nothing."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    num_warps: int = 4

    def options(self, backend: str) -> dict[str, Any]:
        """No software pipeline (lags.py fetches ahead by itself, the others have enough warps), and all registers: ptxas
        would spill some for an occupancy that these kernels do not need."""
        registers = {"maxnreg": 255} if backend == "cuda" else {}
        return {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": True, **registers}

    def run(self) -> None:
        self.kernel[(self.programs,)](**self.arguments, **self.options("hip" if torch.version.hip else "cuda"))


class Call:
    """A convolution as the kernels take it: every map has three dimensions, the leading ones of size 1 where it has fewer."""

    def __init__(self, weight: Tensor, acts: Tensor, geometry: ConvGeometry) -> None:
        self.weight, self.acts, self.geometry = weight, acts, geometry
        self.samples, self.channels = acts.shape[:2]
        self.filters, self.per_group = weight.shape[0] // geometry.groups, weight.shape[1]
        self.kernel = three(geometry.kernel, 1)
        self.out, self.size = three(geometry.out, 1), three(geometry.size, 1)
        self.x_strides = dict(zip(("xd", "xh", "xw"), three(acts.stride()[2:], 0)))
        self.x_strides |= {"xn": acts.stride(0), "xc": acts.stride(1)}

    @property
    def weight_strides(self) -> dict[str, int]:
        strides = self.weight.stride()
        return {"wj": strides[0], "wi": strides[1], **dict(zip(("wd", "wh", "ww"), three(strides[2:], 0)))}

    @property
    def sizes(self) -> dict[str, int]:
        """Runtime sizes of the maps."""
        sizes = dict(zip(("depth", "height", "width"), self.size))
        return sizes | {"positions": math.prod(self.out), "height_out": self.out[1], "width_out": self.out[2]}

    def by_rows(self, *widths: int) -> dict[str, Any]:
        """What kernels that go through the maps row by row take: strides in units of the ALIGN pixels that one load may take,
        which divide `widths` too."""
        strides = {name: self.x_strides[name] for name in ("xn", "xc", "xh")}
        align = vector(self.acts, (*strides.values(), self.size[2], *widths)) if self.x_strides["xw"] == 1 else 1
        return {
            "x": self.acts, "weight": self.weight, "samples": self.samples, "channels": self.channels, "height": self.size[1],
            "filters": self.filters, "per_group": self.per_group,
            **{name: stride // align for name, stride in strides.items()}, "xw": self.x_strides["xw"],
            **{name: stride for name, stride in self.weight_strides.items() if name != "wd"},
            "KERNEL": self.kernel, "WIDTH": self.size[2], "ALIGN": align,
        }  # fmt: skip

    @property
    def constants(self) -> dict[str, Any]:
        """What of the geometry the kernels are compiled for."""
        before = three(tuple(p for p, _ in self.geometry.padding), 0)
        padded = any(p for pads in self.geometry.padding for p in pads)
        return {
            "KERNEL": self.kernel,
            "STRIDE": three(self.geometry.stride, 1),
            "PADDING": before,
            "DILATION": three(self.geometry.dilation, 1),
            "MODE": self.geometry.padding_mode if padded else "zeros",
        }


@triton.jit
def own_place(count):
    """This program's id as (id // count, id % count), in the 64 bits that offsets are made of."""
    program = tl.program_id(0)
    return (program // count).to(tl.int64), (program % count).to(tl.int64)


@triton.jit
def columns(x, BM: tl.constexpr, WIDTH: tl.constexpr):
    """[BM, WIDTH] as WIDTH tensors [BM]."""
    if WIDTH == 1:
        return (x.reshape(BM),)
    else:
        left, right = x.reshape(BM, 2, WIDTH // 2).permute(0, 2, 1).split()
        return columns(left, BM, WIDTH // 2) + columns(right, BM, WIDTH // 2)


@triton.jit
def within(position, size):
    """0 <= position < size."""
    return position.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def source(position, size, MODE: tl.constexpr):
    """Where a position in or around a map of `size` reads it, for the padding modes that repeat it."""
    if MODE == "replicate":
        return tl.minimum(tl.maximum(position, 0), size - 1)
    elif MODE == "circular":  # the padding is at most `size`
        return (position + size) % size
    else:
        return size - 1 - tl.abs(size - 1 - tl.abs(position))


@triton.jit
def pixel(
    output, tap, height_out, width_out, depth, height, width, xd, xh, xw, kernel, stride, padding, dilation, MODE: tl.constexpr,
):  # fmt: skip
    """Offset in the map of what kernel element `tap` meets at output position `output`, and whether it is in the map.

    kernel, stride, padding, dilation: of each dimension, known to the compiler or not.
    """
    d, h, w = output // (height_out * width_out), output // width_out % height_out, output % width_out
    d, h, w = d * stride[0] - padding[0], h * stride[1] - padding[1], w * stride[2] - padding[2]
    tap_d, tap_h, tap_w = tap // (kernel[1] * kernel[2]), tap // kernel[2] % kernel[1], tap % kernel[2]
    tap_d, tap_h, tap_w = tap_d * dilation[0], tap_h * dilation[1], tap_w * dilation[2]
    if MODE == "zeros":  # the parts are multiplied before they meet, which is in a larger tile than either's
        at_output = d.to(tl.int64) * xd + h.to(tl.int64) * xh + w.to(tl.int64) * xw
        at_tap = tl.cast(tap_d, tl.int64) * xd + tl.cast(tap_h, tl.int64) * xh + tl.cast(tap_w, tl.int64) * xw
        return at_output + at_tap, within(d + tap_d, depth) & within(h + tap_h, height) & within(w + tap_w, width)
    else:
        d, h, w = source(d + tap_d, depth, MODE), source(h + tap_h, height, MODE), source(w + tap_w, width, MODE)
        return d.to(tl.int64) * xd + h.to(tl.int64) * xh + w.to(tl.int64) * xw, w == w


@triton.jit
def kernel_element(tap, kernel, wd, wh, ww):
    """Offset of element `tap` of a kernel of that size."""
    d, h, w = tap // (kernel[1] * kernel[2]), tap // kernel[2] % kernel[1], tap % kernel[2]
    return tl.cast(d, tl.int64) * wd + tl.cast(h, tl.int64) * wh + tl.cast(w, tl.int64) * ww

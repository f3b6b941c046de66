"""Which input positions a convolution's kernel elements meet, one entry per spatial dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

Ints = Union[int, "tuple[int, ...]", "list[int]"]
Padding = Union[str, Ints]  # noqa: UP007 - evaluated at run time on Python 3.10

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution without its values; `padding` holds (before, after) per dimension."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @property
    def out(self) -> tuple[int, ...]:
        """Size of the output map, ``floor((size + pads - dilation*(kernel-1) - 1) / stride) + 1``."""
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, (before, after), dilation in zip(
                self.size, self.kernel, self.stride, self.padding, self.dilation
            )
        )

    @property
    def positions(self) -> int:
        """Output positions of one map, h·w in the paper."""
        return math.prod(self.out)

    @property
    def taps(self) -> int:
        """Elements of one kernel, k² in the paper."""
        return math.prod(self.kernel)


def per_dimension(name: str, value: Ints, ndim: int, least: int) -> tuple[int, ...]:
    """`value` as one int per spatial dimension; a ValueError or TypeError names the argument."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError(f"{name} must be an int or {ndim} ints, got {value!r}")
    if len(values) != ndim:
        raise ValueError(f"{name} must be an int or {ndim} ints for this weight, got {value!r}")
    if any(v < least for v in values):
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return values


def conv_geometry(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> ConvGeometry:
    """Normalise torch.nn's convolution arguments and refuse what torch.nn would refuse."""
    ndim = len(kernel)
    strides = per_dimension("stride", stride, ndim, 1)
    dilations = per_dimension("dilation", dilation, ndim, 1)
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
    pads: tuple[tuple[int, int], ...]
    if isinstance(padding, str):
        if padding == "valid":
            pads = ((0, 0),) * ndim
        elif padding == "same":
            if any(s != 1 for s in strides):
                raise ValueError(f"padding='same' needs stride 1, got stride={stride!r}")
            # an even kernel's odd element goes behind the map, as in torch.nn
            totals = [d * (k - 1) for d, k in zip(dilations, kernel)]
            pads = tuple((t // 2, t - t // 2) for t in totals)
        else:
            raise ValueError(f"padding must be 'same', 'valid', an int or {ndim} ints, got {padding!r}")
    else:
        pads = tuple((p, p) for p in per_dimension("padding", padding, ndim, 0))
    for length, (before, after) in zip(size, pads):
        most = {"reflect": length - 1, "circular": length}.get(padding_mode)
        if most is not None and max(before, after) > most:
            raise ValueError(
                f"padding={padding!r} with padding_mode={padding_mode!r} is wider than a map of size {tuple(size)} allows"
            )
    geometry = ConvGeometry(tuple(size), tuple(kernel), strides, pads, dilations, groups, padding_mode)
    if any(o < 1 for o in geometry.out):
        raise ValueError(
            f"acts of spatial size {tuple(size)} are too small for a kernel of size {tuple(kernel)} with "
            f"padding={padding!r}, dilation={dilation!r}: the output map would be empty"
        )
    return geometry


def source_index(position: int, size: int, padding_mode: str) -> int:
    """Where a position in or around a map of `size` reads the map, for the padding modes that repeat it."""
    if padding_mode == "replicate":
        return min(max(position, 0), size - 1)
    if padding_mode == "circular":
        return position % size
    return size - 1 - abs(size - 1 - abs(position))  # reflect

"""How csrc/plan_cuda.cpp cuts a call, asked of itself: compiled for the host, without torch or a GPU."""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.aot import Case

CSRC = Path(__file__).parents[1] / "csrc"
DTYPES = ("float16", "bfloat16", "float32", "float64")
"""In the order of csrc/conv.h."""


class Conv(ctypes.Structure):
    """As in csrc/conv.h."""

    _fields_ = [
        ("acts", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("acts_type", ctypes.c_int), ("weight_type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("samples", "channels", "groups", "filters", "acts_n", "acts_c")),
        ("acts_x", ctypes.c_int64 * 3), ("weight_j", ctypes.c_int64), ("weight_c", ctypes.c_int64),
        *((name, ctypes.c_int64 * 3) for name in ("weight_x", "size", "kernel", "stride", "before", "dilation", "out")),
        ("padding", ctypes.c_int), ("variant", ctypes.c_int),
    ]  # fmt: skip


class Plan(ctypes.Structure):
    """CudaPlan, as in csrc/conv_cuda.h."""

    _fields_ = [
        ("path", ctypes.c_int), ("samples", ctypes.c_int64), ("box", ctypes.c_int64 * 3), ("extent", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("staged", "block", "slots", "columns", "outputs", "reading", "lanes", "filters")),
        ("parts", ctypes.c_int64), ("part_samples", ctypes.c_int64),
    ]  # fmt: skip


def conv(case: Case) -> Conv:
    """What csrc/tensors.h makes of the call."""
    layer, geometry = case.layer, case.layer.geometry
    size, out = [1, *layer.size], [1, *geometry.out]
    stride, step = [1, *geometry.stride], [math.prod(layer.size), layer.size[1], 1]
    if geometry.taps == 1:  # only these positions are read: a smaller map with wider strides
        step, size, stride = [a * b for a, b in zip(step, stride)], out, [1, 1, 1]
    kind = DTYPES.index(case.dtype)
    pixels, taps = math.prod(layer.size), geometry.taps

    def three(values: Sequence[int]) -> Any:
        return (ctypes.c_int64 * 3)(*values)

    return Conv(
        acts_type=kind, weight_type=kind, samples=case.samples, channels=layer.channels, groups=layer.groups,
        filters=layer.weight[0] // layer.groups, acts_n=layer.channels * pixels, acts_c=pixels, acts_x=three(step),
        weight_j=layer.weight[1] * taps, weight_c=taps, weight_x=three([taps, layer.weight[3], 1]), size=three(size),
        kernel=three([1, *layer.weight[2:]]), stride=three(stride), before=three([0, *(b for b, _ in geometry.padding)]),
        dilation=three([1, 1, 1]), out=three(out),
    )  # fmt: skip


def plans(calls: list[Conv]) -> list[Plan]:
    """csrc/plan_cuda.cpp itself, compiled for the host."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "plan.cpp"), Path(folder, "plan.so")
        source.write_text(
            '#include "plan_cuda.cpp"\n'
            f"static_assert(sizeof(nnrelief::Conv) == {ctypes.sizeof(Conv)});\n"
            f"static_assert(sizeof(nnrelief::CudaPlan) == {ctypes.sizeof(Plan)});\n"
            'extern "C" void plan(const nnrelief::Conv& c, nnrelief::CudaPlan& p) { p = nnrelief::plan_cuda(c); }\n'
        )
        subprocess.run(["g++", "-std=c++17", "-fPIC", "-shared", f"-I{CSRC}", str(source), "-o", str(library)], check=True)
        plan = ctypes.CDLL(str(library)).plan
        made = [Plan() for _ in calls]
        for call, to in zip(calls, made):
            plan(ctypes.byref(call), ctypes.byref(to))
        return made

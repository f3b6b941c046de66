"""What the compiled kernels of aot.py predict for sm_90, layer by layer: `python -m benchmarks.aot_report --out FOLDER`.

A prediction, not a measurement; `ASSUMPTIONS` says under which conditions.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks.aot import (
    DEPTHWISE,
    DTYPES,
    Binary,
    Case,
    Loop,
    cases,
    chips,
    compile_all,
    identity,
    launches,
    made_by_triton,
    slots,
    specialisations,
)
from benchmarks.rows import write_rows
from benchmarks.suites import SUITES, Layer
from nnrelief_kernels.backends.triton import plan
from nnrelief_kernels.backends.triton.conv import Launch

BANDWIDTH, MULTIPROCESSORS, CLOCK = 3.35e12, 132, 1.755e9
REACHED_BANDWIDTH, REACHED_ISSUE, LAUNCH = 0.9, 0.8, 2e-6
LARGE = 28 * 28
"""Pixels of a map from which on a layer should reach `AIM`."""
AIM = {"float32": 0.6, "bfloat16": 0.4}
"""Of the memory floor."""
PIXEL_LOOP = {"lags_kernel": 2, "direct_kernel": 2, "gram_kernel": 3, "matrix_kernel": 3, "norms_kernel": 2}
"""Which of a kernel's loops, in the order of the source, goes over the pixels."""
SM_90 = next(target for target in chips() if target.arch == 90)
ASSUMPTIONS = f"""\
Predicted, not measured. For an H100 SXM by its data sheet: {BANDWIDTH / 1e12} TB/s, {MULTIPROCESSORS} multiprocessors of 4
schedulers, {CLOCK / 1e9} GHz. The floor is the bytes of the activations over that bandwidth. A launch takes
{LAUNCH * 1e6:.0f} us and the longer of two: its bytes at {REACHED_BANDWIDTH:.0%} of the bandwidth, and its instructions,
counted in the machine code loop by loop, at {REACHED_ISSUE:.0%} of one per cycle and scheduler on the multiprocessor that
gets most programs; a product of matrices counts as the cycles that the matrix unit takes for it. Latencies and bank
conflicts that warps do not hide are left out; no map is taken to be out of float32's safe range. A layer is bound by the
largest of its parts: memory, its launches, or the instructions of its loop over pixels or of its loop over filters; where
there are fewer programs than multiprocessors, their number stands beside it."""


def trips(launch: Launch) -> list[int]:
    """How often a program goes through each loop of its kernel, in the order of the source."""
    a = launch.arguments

    def ceil(name: str, step: int) -> int:
        return plan.ceil_div(a[name], step)

    if launch.kernel.__name__ == "lags_kernel":
        return [ceil("chunk", a["BN"]), ceil("height", a["STRIDE"][0]), ceil("filters", a["BJ"])]
    if launch.kernel.__name__ == "direct_kernel":
        stride, padding = a["STRIDE"][0], a["PADS"][0]
        rows = a["height_out"] - 1 + plan.ceil_div(a["KERNEL"][1], stride) - padding // stride
        return [ceil("chunk", a["BN"]), rows]
    if launch.kernel.__name__ in ("gram_kernel", "matrix_kernel"):
        block, step, span = (a["BN"], a["LP"], 64 * a["LP"]) if "LP" in a else (1, a["BL"], 512)
        spans = ceil("positions", span)
        return [ceil("chunk", block), spans, plan.ceil_div(ceil("positions", step), spans), ceil("filters", a["BJ"])]
    if launch.kernel.__name__ == "norms_kernel":
        aligned = a["ALIGN"] if a["ORDER"] == "rows" else 1
        return [a["chunk"], plan.ceil_div(a["positions"] * aligned, a["BL"])]
    if launch.kernel.__name__ == "finish_kernel":
        return [ceil("parts", a["BP"])]
    if launch.kernel.__name__ == "columns_kernel":
        spans = ceil("chunk", 64 * a["BR"])
        return [spans, plan.ceil_div(ceil("chunk", a["BR"]), spans)]
    return [a["parts"]]


def instructions(launch: Launch, code: Loop) -> tuple[float, float]:
    """Of one warp of one program, and of its loop over pixels; NaN where the compiler made other loops of the source's."""
    counts = trips(launch)
    if launch.kernel.__name__ == "finish_kernel":  # all loops but the first are for doubtful maps
        counts += [0] * (len(list(code.in_order())) - 1 - len(counts))
    if len(list(code.in_order())) != len(counts) + 1:
        return math.nan, math.nan
    totals: list[float] = []
    remaining = iter(counts)

    def add(loop: Loop, times: int) -> None:
        totals.append(sum(n * slots(name) for name, n in loop.operations.items()) * times)
        for inner in loop.inside:
            add(inner, times * next(remaining))

    add(code, 1)
    index = PIXEL_LOOP.get(launch.kernel.__name__)
    return sum(totals), 0.0 if index is None else totals[index]


@dataclass(frozen=True)
class Prediction:
    """Parts of a launch's time in seconds, and what the loop over pixels has of the instructions."""

    memory: float
    instructions: float
    inner: float

    @property
    def seconds(self) -> float:
        return LAUNCH + max(self.memory, self.instructions)


def prediction(programs: int, num_warps: int, count: float, inner: float, moved: float) -> Prediction:
    """Of a launch that moves so many bytes, with `count` instructions of a warp, `inner` of them in the loop over pixels."""
    warps = plan.ceil_div(programs, MULTIPROCESSORS) * num_warps
    issued = warps * count / (min(4, warps) * CLOCK * REACHED_ISSUE)
    return Prediction(moved / (BANDWIDTH * REACHED_BANDWIDTH), issued, inner / count)


def predicted(launch: Launch, code: Loop, moved: float) -> Prediction:
    return prediction(launch.programs, launch.num_warps, *instructions(launch, code), moved)


def occupancy(launch: Launch, binary: Binary) -> float:
    """Of sm_90's 64 warps per multiprocessor."""
    registers = 65536 // (-(-binary.registers // 8) * 8 * 32 * launch.num_warps)
    return min(registers, 64 // launch.num_warps, 233472 // (binary.shared + 1024), 32) * launch.num_warps / 64


def inner_loop(launch: Launch, code: Loop) -> tuple[float, ...]:
    """Instructions, loads, multiply-adds and dots of the loop over pixels, per pixel that a thread has in it: of the input
    for lags_kernel and norms_kernel, of the output for the others."""
    a = launch.arguments
    loops = list(code.in_order())
    which = PIXEL_LOOP.get(launch.kernel.__name__)
    if which is None or len(loops) != len(trips(launch)) + 1:
        return ()
    threads = 32 * launch.num_warps
    pixels = {
        "lags_kernel": a.get("TW", 0) * a.get("STRIDE", (1,))[0],
        "direct_kernel": a.get("TW", 0),
        "gram_kernel": 1,
        "matrix_kernel": a.get("BL", 0) / threads,
    }.get(launch.kernel.__name__, a.get("BC", 0) * a.get("BL", 0) / threads)
    kinds = ("", "LDG", ("FFMA", "FMUL"), ("HMMA", "HGMMA"))
    counts = (sum(n for name, n in loops[which].operations.items() if name.startswith(kind)) for kind in kinds)
    return tuple(count / pixels for count in counts)


def bound(programs: int, prediction: Prediction, count: int) -> str:
    """What a layer of `count` launches, of which the first has so many programs, spends most of its time on."""
    parts = {"memory": prediction.memory, "launches": LAUNCH * count}
    parts |= {"pixels": prediction.instructions * prediction.inner, "filters": prediction.instructions * (1 - prediction.inner)}
    if max(prediction.memory, LAUNCH * count) > prediction.instructions:
        parts = {name: parts[name] for name in ("memory", "launches")}
    name = max(parts, key=parts.__getitem__)
    few = name in ("pixels", "filters") and programs < MULTIPROCESSORS
    return f"{name}, {programs} programs" if few else name


LAYER_COLUMNS = [
    "suite", "layer", "dtype", "kernel", "pixels", "warps", "registers", "shared bytes", "occupancy", "instructions / pixel",
    "loads", "multiply-adds", "dots", "floor us", "predicted us", "floor / predicted", "bound by",
]  # fmt: skip


def layer_row(name: str, case: Case, binaries: dict[str, Binary]) -> list[Any]:
    made = launches(case, SM_90)
    size = case.layer.bytes(case.samples, DTYPES[case.dtype])
    predictions = []
    for number, launch in enumerate(made):
        sums = launch.arguments["sums"]
        moved = size * (number == 0) + sums.numel() * sums.element_size()
        predictions.append(predicted(launch, binaries[identity(launch, SM_90)].code, moved))
    first, binary = made[0], binaries[identity(made[0], SM_90)]
    seconds, floor = sum(prediction.seconds for prediction in predictions), size / BANDWIDTH
    inner = inner_loop(first, binary.code)
    return [
        name, case.layer.name, case.dtype, first.kernel.__name__.removesuffix("_kernel"), math.prod(case.layer.size),
        first.num_warps, binary.registers, binary.shared, f"{occupancy(first, binary):.0%}",
        *([f"{value:.2f}" for value in inner] or [""] * 4),
        floor * 1e6, seconds * 1e6, floor / seconds, bound(first.programs, predictions[0], len(made)),
    ]  # fmt: skip


def first_call() -> tuple[int, float]:
    """Specialisations that all layers of ResNet-50 need in float32, and the seconds of CPU time that compiling them takes."""
    layers = [*cases("resnet50", ["float32"]), Case("fc", Layer("fc", (1000, 2048)), 256, "float32")]
    wanted = specialisations(layers, [SM_90])
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        start = sum(os.times()[:4])  # this process and the assemblers it starts
        for found in wanted.values():
            made_by_triton(found.launch, SM_90)
        return len(wanted), sum(os.times()[:4]) - start


def report(jobs: int | None, out: Path) -> None:
    """layers.csv and report.md."""
    layers = [(name, case) for name in SUITES for case in cases(name, AIM)]
    depthwise = [("depthwise", Case(layer.name, layer, 256, dtype)) for layer in DEPTHWISE for dtype in AIM]
    binaries = compile_all(specialisations([case for _, case in layers], [SM_90]), jobs)
    others = compile_all(specialisations([case for _, case in depthwise], [SM_90]), jobs)
    rows = [layer_row(name, case, binaries) for name, case in layers]
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "layers.csv", LAYER_COLUMNS, (dict(zip(LAYER_COLUMNS, row)) for row in rows))
    large = [row for row in rows if row[4] >= LARGE]
    short = [row for row in large if not row[-2] >= AIM[row[2]]]
    count, seconds = first_call()
    lines = [
        f"# The Triton kernels ahead of time (triton {triton.__version__}, torch {torch.__version__})",
        "",
        ASSUMPTIONS,
        "",
        f"The suites need {len(binaries)} binaries on sm_90, with {sum(b.spills for b in binaries.values())} bytes of spills.",
        f"The first calls of ResNet-50's layers in float32 compile {count} kernels, in {seconds:.1f} s of CPU time.",
        "",
        f"Of the {len(large)} rows with maps of 28x28 and more, {len(large) - len(short)} reach {AIM['float32']:.0%} of the "
        f"floor in float32, {AIM['bfloat16']:.0%} in bfloat16. The others:",
        "",
        *table([LAYER_COLUMNS, *map(_formatted, short)], few=True),
        "",
        "Depthwise layers with larger kernels, of EfficientNet-B0 and ConvNeXt-T, for 256 samples:",
        "",
        *table([LAYER_COLUMNS, *(_formatted(layer_row(name, case, others)) for name, case in depthwise)], few=True),
        "",
        "All layers, at the batch sizes of the suites on a GPU, with the figures of their first kernel:",
        "",
        *table([LAYER_COLUMNS, *map(_formatted, rows)]),
    ]
    (out / "report.md").write_text("\n".join(lines) + "\n")


def _formatted(row: Sequence[Any]) -> list[str]:
    *start, floor, seconds, share, by = row
    return [*map(str, start), f"{floor:.1f}", f"{seconds:.1f}", f"{share:.0%}", by]


def table(rows: Sequence[list[str]], few: bool = False) -> list[str]:
    """Rows of which the first is the header, as Markdown; of `few` columns, the layer's and the times."""
    header, *body = [row[:5] + row[-4:] for row in rows] if few else rows
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, help="processes (default: one for every core)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    arguments = parser.parse_args()
    report(arguments.jobs, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the compiled library's CUDA kernels predict for sm_90, beside aot_report.py's Triton kernels.

`python -m benchmarks.aot_cuda --out FOLDER` takes Triton's times from the layers.csv there, writes cuda-layers.csv and puts its
section into report.md.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.aot import DTYPES, Case, cases
from benchmarks.aot_report import AIM, BANDWIDTH, LARGE, bound, prediction, table
from benchmarks.cuda_code import Kernel, kernels
from benchmarks.cuda_model import MODELS, THREADS
from benchmarks.cuda_plan import Conv, Plan, conv, plans
from benchmarks.rows import read_rows, write_rows
from benchmarks.suites import SUITES
from nnrelief_kernels import extension
from nnrelief_kernels.backends import cuda
from nnrelief_kernels.backends.compiled import PATHS

LIBRARY = extension.FOLDER / extension.LIBRARY
HEADING = "# The CUDA kernels of the compiled extension"
ASSUMPTIONS = """\
The same prediction from the machine code of the library's own sm_90 kernels, for contiguous tensors: every launch of a call
(norms and scale; lags or gram, and finish), its blocks as csrc/plan_cuda.cpp cuts them. Each span of machine code counts as
the longest way through it that one warp can take, and loops as often as the source's bounds say: rows of a map in the stream
and rows at its edges, with the sums that end there; tiles, their rows and their outputs; the features of a group of samples;
phase 2 with its kernels' loads. Where warps of a block part, all are taken to go the longest way, except in the loads of
kernels and the sums of slots in phase 2. Left out: loops that a block goes through once (where taps lie), code for warps that
have come apart, what maps with numbers out of float32's safe range or near its ends take, the narrower throughput of float64,
of conversions and of shared memory, waves of blocks, and whatever warps do not hide, as above.
Linear layers are left out. Pixels are those of the input for norms and lags, of the output for gram; "pixels" as a bound
is all of phase 1, "filters" the rest."""
COLUMNS = [
    "suite", "layer", "dtype", "path", "pixels", "instructions / pixel", "floor us", "predicted us", "floor / predicted",
    "bound by", "Triton us", "predicted / Triton",
]  # fmt: skip


def layer_row(found: dict[str, Kernel], name: str, case: Case, c: Conv, p: Plan, triton: float) -> list[Any]:
    call = MODELS[PATHS[p.path]](found, c, p)
    predictions = [prediction(one.blocks, THREADS // 32, one.count, one.phase_1, one.moved) for one in call.queued]
    floor = case.layer.bytes(case.samples, DTYPES[case.dtype]) / BANDWIDTH
    seconds = sum(one.seconds for one in predictions)
    return [
        name, case.layer.name, case.dtype, PATHS[p.path], math.prod(case.layer.size), call.per_pixel, floor * 1e6,
        seconds * 1e6, floor / seconds, bound(call.queued[0].blocks, predictions[0], len(predictions)), triton,
        seconds * 1e6 / triton,
    ]  # fmt: skip


def section(rows: list[list[Any]], unclear: list[str]) -> list[str]:
    """The report's lines."""
    large = [row for row in rows if row[4] >= LARGE]
    compiler = re.search(rb"Cuda compilation tools, release [0-9.]+, V([0-9.]+)", LIBRARY.read_bytes())
    version = f" (nvcc {compiler[1].decode()})" if compiler else ""
    lines = [HEADING + version, "", ASSUMPTIONS, ""]
    for what, some, most in (("28x28 and more", large, 1.0), ("less", [row for row in rows if row[4] < LARGE], 1.5)):
        near, means = sum(row[-1] <= most for row in some), []
        for path in MODELS:
            if ratios := [row[-1] for row in some if row[3] == path]:
                means.append(f"{path} {statistics.geometric_mean(ratios):.2f} (up to {max(ratios):.1f})")
        lines.append(f"Maps of {what}: {near} of {len(some)} rows within {most} x Triton's predicted time; geometric means:")
        lines.append(f"{', '.join(means)}.")
    reached = sum(row[-4] >= AIM[row[2]] for row in large)
    lines += [f"Of those with 28x28 and more, {reached} of {len(large)} reach the share of the floor asked for above.", ""]
    lines += [f"Left out, for the compiler made other loops there: {'; '.join(unclear)}.", ""] if unclear else []
    return [*lines, *table([COLUMNS, *map(formatted, rows)])]


def formatted(row: list[Any]) -> list[str]:
    *start, per_pixel, floor, seconds, share, by, triton, ratio = row
    times = [f"{per_pixel:.2f}", f"{floor:.1f}", f"{seconds:.1f}", f"{share:.0%}", by, f"{triton:.1f}", f"{ratio:.2f}"]
    return [*map(str, start), *times]


def report(out: Path) -> None:
    """cuda-layers.csv, and the section of report.md, which takes the place of an older one."""
    found = kernels(LIBRARY)
    triton = {(row["suite"], row["layer"], row["dtype"]): float(row["predicted us"]) for row in read_rows(out / "layers.csv")}
    layers = [(name, case) for name in SUITES for case in cases(name, AIM) if case.layer.size]
    calls = [conv(case) for _, case in layers]
    rows, unclear = [], []
    for (name, case), c, p in zip(layers, calls, plans(calls)):
        label = (name, case.layer.name, case.dtype)
        if PATHS[p.path] not in MODELS:
            unclear.append(" ".join(label) + f" ({PATHS[p.path]} has no model)")
            continue
        try:
            rows.append(layer_row(found, name, case, c, p, triton[label]))
        except (ValueError, IndexError, StopIteration, ZeroDivisionError) as why:  # loops that are not there
            unclear.append(" ".join(label) + f" ({why})")
    write_rows(out / "cuda-layers.csv", COLUMNS, (dict(zip(COLUMNS, row)) for row in rows))
    kept = (out / "report.md").read_text().split(HEADING)[0].rstrip()
    (out / "report.md").write_text("\n".join([kept, "", *section(rows, unclear)]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder with the layers.csv and report.md of aot_report")
    if why := unavailable():
        print(f"no CUDA kernels to predict: {why}")
        return 0
    report(parser.parse_args().out)
    return 0


def unavailable() -> str | None:
    """Why there are no sm_90 kernels in the library."""
    if why := extension.unavailable():
        return why
    chips = cuda.architectures()
    return None if 90 in chips else f"the library has code for {chips}, not for sm_90"


if __name__ == "__main__":
    sys.exit(main())

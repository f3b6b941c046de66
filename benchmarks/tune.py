"""Which row of plan.py's table a chip should have: `python -m benchmarks.tune [--target sm_90]`; needs no GPU.

Compiles the lag and Gram kernels of the suites for every row the table could hold, leaves out the rows under which one
spills registers or wants more shared memory than the chip has, and orders the others by the time that aot_report.py predicts
for all layers together. For chips other than sm_90 that time is a stand-in: instructions, on sm_90's clock and bandwidth.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from unittest import mock

from benchmarks.aot import DTYPES, cases, check, chips, compiled, launches
from benchmarks.aot_report import predicted
from benchmarks.suites import SUITES
from nnrelief_kernels.backends.triton import plan

THREADS, COLUMNS, FILTERS = (64, 128), ((16, 16), (32, 16), (32, 32)), (8, 16, 32)
"""Columns at stride 1 and at stride 2."""
TARGETS = {f"sm_{target.arch}": target for target in chips() if target.backend == "cuda"}


def seconds(target: plan.Target, row: plan.Blocks, suite: str, dtype: str) -> float | None:
    """What the fused kernels of a suite take under a row of the table; None if one of them is not acceptable."""
    total = 0.0
    with mock.patch.object(plan, "blocks", return_value=row):
        for case in cases(suite, [dtype]):
            first = launches(case, target)[0]
            if first.kernel.__name__ not in ("lags_kernel", "gram_kernel"):
                continue
            binary = compiled(first, target)
            if check(binary, target):
                return None
            size = case.layer.bytes(case.samples, DTYPES[dtype])
            total += case.layer.count * predicted(first, binary.code, size).seconds
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    parser.add_argument("--suite", choices=SUITES, default="resnet50")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    found = {}
    for threads, (columns, strided), filters in itertools.product(THREADS, COLUMNS, FILTERS):
        row = replace(plan.blocks(target), threads=threads, columns=columns, strided_columns=strided, filters=filters)
        found[row] = seconds(target, row, arguments.suite, arguments.dtype)
    for row, time in sorted(found.items(), key=lambda item: item[1] or float("inf")):
        mark = "*" if row == plan.blocks(target) else " "
        print(f"{mark} {row}: {'spills or does not fit' if time is None else f'{time * 1e6:.0f} us'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

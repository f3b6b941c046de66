"""Compiles the Triton kernels ahead of time, for chips that need not be here: `python -m benchmarks.aot [--out FOLDER]`.

Every kernel in every configuration that the heuristics choose for a layer of the suites is compiled for five chips and must
need no spilled register and no more shared memory than the chip has. With --out, a report is written: registers, shared
memory, occupancy and what the inner loop does per element, and for sm_90 the time these instructions take against the
memory floor, per layer. A prediction, not a measurement; `ASSUMPTIONS` says under which conditions.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.suites import SUITES, Layer, suite
from nnrelief_kernels.backends import result_dtype
from nnrelief_kernels.backends.triton import plan, score
from nnrelief_kernels.backends.triton.conv import Launch

SHARED: dict[int | str, int] = {80: 166912, 86: 101376, 90: 232448, 100: 232448, "gfx942": 65536}
"""Bytes of shared memory a block may have."""
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}
TRITON_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"
}  # fmt: skip


CORNERS = [
    *(Layer(f"kernel {h}x{w}", (5, 2, h, w), (10, 9)) for h, w in ((1, 2), (2, 2), (2, 3), (4, 4), (8, 8))),
    *(Layer(f"width {width}", (40, 2, 3, 3), (width, width), padding=1) for width in (3, 33, 200)),
    *(Layer(f"stride {h}x{w}", (5, 2, h, w), (9, 9), 2) for h, w in ((1, 2), (3, 2))),
    Layer("unpadded", (40, 2, 3, 3), (8, 8)),
    Layer("1-d", (20, 2, 5), (300,)),
    Layer("3-d", (20, 2, 3, 3, 3), (8, 8, 8), padding=1),
]
"""Layers unlike those of the suites."""


@dataclass(frozen=True)
class Case:
    """A call whose launches are compiled."""

    label: str
    layer: Layer
    samples: int
    dtype: str
    variant: str = "paper"
    channels_last: bool = False
    padding_mode: str = "zeros"


_SQUARE = Layer("3x3", (40, 16, 3, 3), (28, 28), padding=1)
_POINTWISE = Layer("1x1", (40, 64, 1, 1), (28, 28))
OTHERS = [
    *(Case(f"{_SQUARE.name} {variant} {dtype}", _SQUARE, 1000, dtype, variant)
      for variant in ("norm_of_mean", "l1") for dtype in ("float32", "bfloat16")),
    Case("3x3 float64", _SQUARE, 1000, "float64"),
    Case("linear float64", Layer("linear", (500, 800)), 1000, "float64"),
    *(Case(f"{layer.name} channels_last {dtype}", layer, 1000, dtype, channels_last=True)
      for layer in (_SQUARE, _POINTWISE, replace(_SQUARE, stride=2)) for dtype in ("float32", "bfloat16")),
    *(Case(f"{layer.name} {mode} bfloat16", layer, 1000, "bfloat16", padding_mode=mode)
      for layer in (_SQUARE, Layer("5x5", (40, 16, 5, 5), (28, 28), padding=2))
      for mode in ("reflect", "replicate", "circular")),
    *(Case(f"{layer.name} float16", layer, 1000, "float16") for layer in (_SQUARE, _POINTWISE, replace(_SQUARE, stride=2))),
]  # fmt: skip
"""Calls unlike those of the suites in dtype, variant, memory or padding."""


def chips() -> list[plan.Target]:
    return [plan.Target("hip" if arch == "gfx942" else "cuda", arch, 64 if arch == "gfx942" else 32) for arch in SHARED]


def launches(case: Case, target: plan.Target) -> list[Launch]:
    """What scoring the layer launches, on tensors without memory."""
    layer, dtype = case.layer, DTYPES[case.dtype]
    weight = torch.empty(layer.weight, dtype=dtype, device="meta")
    acts = torch.empty((case.samples, layer.channels, *layer.size), dtype=dtype, device="meta")
    if case.channels_last:
        acts = acts.contiguous(memory_format=torch.channels_last)
    out = torch.empty(layer.weight[:2], dtype=result_dtype(weight, acts), device="meta")
    if not layer.size:
        return list(score.linear_launches(weight, acts, out))
    geometry = replace(layer.geometry, padding_mode=case.padding_mode)
    return list(score.conv_launches(weight, acts, geometry, case.variant, out, target))


def source(launch: Launch) -> ASTSource:
    """The specialisation that Triton would compile for these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TRITON_TYPES[value.dtype]
            divisible[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, divisible)


def identity(launch: Launch, target: plan.Target) -> str:
    """What tells one specialisation from another."""
    made = source(launch)
    return repr((launch.kernel.__name__, target, launch.num_warps, made.signature, made.constants, made.attrs))


@dataclass
class Loop:
    """A loop of the machine code with the instructions that are in no loop inside it."""

    first: int
    last: int
    operations: Counter[str] = field(default_factory=Counter)
    inside: list[Loop] = field(default_factory=list)

    def in_order(self) -> Iterator[Loop]:
        yield self
        for loop in self.inside:
            yield from loop.in_order()


@dataclass(frozen=True)
class Binary:
    registers: int
    spills: int
    shared: int
    code: Loop | None


def compiled(launch: Launch, target: plan.Target) -> Binary:
    options = launch.options(target.backend)
    made = triton.compile(source(launch), target=GPUTarget(target.backend, target.arch, target.warp), options=options)
    if target.backend == "hip":
        found = {k: int(v) for k, v in re.findall(r"\.(\w+_count):\s+(\d+)", made.asm["amdgcn"])}
        return Binary(found["vgpr_count"], found["vgpr_spill_count"], made.metadata.shared, None)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
        code = _loops(_tool("nvdisasm", "-c", file.name))
    local = any(name.startswith(("STL", "LDL")) for loop in code.in_order() for name in loop.operations)
    spills = _spilled(made.asm["ptx"], target.arch) if stack and local else 0  # a stack may also be a called function's frame
    return Binary(registers, spills, made.metadata.shared, code if target.arch == 90 else None)


def _spilled(ptx: str, arch: int | str) -> int:
    """Bytes of registers that ptxas stores and loads again."""
    arch = int(arch)
    assembler = "ptxas-blackwell" if arch >= 100 and (TOOLS / "ptxas-blackwell").exists() else "ptxas"
    suffix = "a" if arch >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(TOOLS / assembler), "-v", f"--gpu-name=sm_{arch}{suffix}", file.name, "-o", "/dev/null"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", usage))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout


def _loops(disassembly: str) -> Loop:
    """A loop is what lies between a label and the last branch back to it."""
    operations: list[str] = []
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(operations)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            operations.append(instruction[1])
            to = re.search(r"(\.L_\w+)", instruction[2])
            if instruction[1].startswith("BRA") and to and labels.get(to[1], len(operations)) < len(operations) - 1:
                ends[labels[to[1]]] = len(operations)
    whole = Loop(0, len(operations))
    for first, last in sorted(ends.items(), key=lambda span: (span[0], -span[1])):
        parent = whole
        while inner := next((loop for loop in parent.inside if loop.first <= first and last <= loop.last), None):
            parent = inner
        parent.inside.append(Loop(first, last))
    for index, operation in enumerate(operations):
        loop = whole
        while inner := next((loop for loop in loop.inside if loop.first <= index < loop.last), None):
            loop = inner
        loop.operations[operation] += 1
    return whole


def check(binary: Binary, target: plan.Target) -> str | None:
    """Why a binary is not acceptable."""
    if binary.spills:
        return f"{binary.spills} bytes of spilled registers"
    if binary.shared > SHARED[target.arch]:
        return f"{binary.shared} bytes of shared memory, the chip has {SHARED[target.arch]}"
    return None


def cases(name: str, dtypes: Iterable[str]) -> list[Case]:
    """Every layer of a suite, in the suite's batch size for a GPU."""
    network = suite(name, device="cuda")
    return [
        Case(f"{name} {layer.name} {d}", layer, network.samples, d) for layer, d in itertools.product(network.layers, dtypes)
    ]


def configurations(dtypes: tuple[str, ...]) -> dict[str, tuple[str, Launch, plan.Target]]:
    """Every specialisation that the suites and what is unlike them need, with the call that first needs it."""
    wanted = [case for name in SUITES for case in cases(name, dtypes)]
    for layer, dtype in itertools.product(CORNERS, dtypes):
        wanted.append(Case(f"corner {layer.name} {dtype}", layer, 1 if layer.name == "width 33" else 1000, dtype))
    found: dict[str, tuple[str, Launch, plan.Target]] = {}
    for case, target in itertools.product([*wanted, *OTHERS], chips()):
        for launch in launches(case, target):
            found.setdefault(identity(launch, target), (case.label, launch, target))
    return found


_known = cache(configurations)


def _work(job: tuple[str, tuple[str, ...]]) -> Binary:
    """Compiles one of `configurations`; a launch itself cannot be sent to another process."""
    key, dtypes = job
    _, launch, target = _known(dtypes)[key]
    return compiled(launch, target)


BANDWIDTH, MULTIPROCESSORS, CLOCK = 3.35e12, 132, 1.755e9
REACHED_BANDWIDTH, REACHED_ISSUE, LAUNCH = 0.9, 0.8, 2e-6
ASSUMPTIONS = f"""\
Predicted, not measured. For an H100 SXM by its data sheet: {BANDWIDTH / 1e12} TB/s, {MULTIPROCESSORS} multiprocessors of 4
schedulers, {CLOCK / 1e9} GHz. The floor is the bytes of the activations over that bandwidth. A launch takes
{LAUNCH * 1e6:.0f} us and the longer of two: its bytes at {REACHED_BANDWIDTH:.0%} of the bandwidth, and its instructions,
counted in the machine code loop by loop, at {REACHED_ISSUE:.0%} of one per cycle and scheduler on the multiprocessor that
gets most programs. Latencies and bank conflicts that warps do not hide are left out; no map is taken to be out of
float32's safe range."""


def trips(launch: Launch) -> list[int]:
    """How often a program goes through each loop of its kernel, in the order of the source."""
    a = launch.arguments

    def ceil(name: str, step: int) -> int:
        return plan.ceil_div(a[name], step)

    if launch.kernel.__name__ == "lags_kernel":
        return [ceil("chunk", a["BN"]), ceil("height", a["STRIDE"][0]), ceil("filters", a["BJ"])]
    if launch.kernel.__name__ in ("gram_kernel", "matrix_kernel"):
        block, step, span = (a["BN"], a["LP"], 64 * a["LP"]) if "LP" in a else (1, a["BL"], 512)
        spans = ceil("positions", span)
        return [ceil("chunk", block), spans, plan.ceil_div(ceil("positions", step), spans), ceil("filters", a["BJ"])]
    if launch.kernel.__name__ == "norms_kernel":
        aligned = a["ALIGN"] if a["ORDER"] == "rows" else 1
        return [a["chunk"], plan.ceil_div(a["positions"] * aligned, a["BL"])]
    if launch.kernel.__name__ == "finish_kernel":
        return [ceil("parts", a["BP"]), 0, 0, 0, 0]
    if launch.kernel.__name__ == "columns_kernel":
        spans = ceil("chunk", 64 * a["BR"])
        return [spans, plan.ceil_div(ceil("chunk", a["BR"]), spans)]
    return [a["parts"]]


def instructions(launch: Launch, code: Loop) -> float:
    """Of one warp of one program; NaN where the compiler has made other loops of the source's."""
    counts = trips(launch)
    if len(list(code.in_order())) != len(counts) + 1:
        return math.nan
    remaining = iter(counts)

    def total(loop: Loop) -> float:
        return sum(loop.operations.values()) + sum(next(remaining) * total(inner) for inner in loop.inside)

    return total(code)


def predicted(launch: Launch, code: Loop, moved: float) -> float:
    """Seconds of a launch that moves so many bytes."""
    programs = plan.ceil_div(launch.programs, MULTIPROCESSORS)
    issued = programs * launch.num_warps * instructions(launch, code)
    return LAUNCH + max(moved / (BANDWIDTH * REACHED_BANDWIDTH), issued / (4 * CLOCK * REACHED_ISSUE))


def occupancy(launch: Launch, binary: Binary) -> float:
    """Of sm_90's 64 warps per multiprocessor."""
    registers = 65536 // (-(-binary.registers // 8) * 8 * 32 * launch.num_warps)
    return min(registers, 64 // launch.num_warps, 233472 // (binary.shared + 1024), 32) * launch.num_warps / 64


def inner_loop(launch: Launch, code: Loop) -> tuple[float, ...]:
    """Instructions, loads, multiply-adds and dots of the loop over pixels, per pixel that a thread has in it."""
    a = launch.arguments
    loops = list(code.in_order())
    which = {"lags_kernel": 2, "gram_kernel": 3, "matrix_kernel": 3, "norms_kernel": 2}.get(launch.kernel.__name__)
    if which is None or len(loops) != len(trips(launch)) + 1:
        return ()
    threads = 32 * launch.num_warps
    pixels = {
        "lags_kernel": a.get("TW", 0) * a.get("STRIDE", (1,))[0],
        "gram_kernel": 1,
        "matrix_kernel": a.get("BL", 0) / threads,
    }.get(launch.kernel.__name__, a.get("BC", 0) * a.get("BL", 0) / threads)
    kinds = ("", "LDG", ("FFMA", "FMUL"), ("HMMA", "HGMMA"))
    counts = (sum(n for name, n in loops[which].operations.items() if name.startswith(kind)) for kind in kinds)
    return tuple(count / pixels for count in counts)


def report(binaries: dict[str, Binary], dtypes: tuple[str, ...], out: Path) -> None:
    """binaries.csv, layers.csv and report.md."""
    chip = next(target for target in chips() if target.arch == 90)
    layers = []
    for name in SUITES:
        for case in cases(name, dtypes):
            size = case.layer.bytes(case.samples, DTYPES[case.dtype])
            seconds = 0.0
            made = launches(case, chip)
            for number, launch in enumerate(made):
                sums = launch.arguments["sums"]
                moved = size * (number == 0) + sums.numel() * sums.element_size()
                code = binaries[identity(launch, chip)].code
                seconds += predicted(launch, code, moved) if code else math.nan
            floor = size / BANDWIDTH
            kernel = made[0].kernel.__name__.removesuffix("_kernel")
            pixels = math.prod(case.layer.size)
            layers.append([name, case.layer.name, case.dtype, kernel, pixels, floor * 1e6, seconds * 1e6, floor / seconds])
    rows = []
    for key, (label, launch, target) in _known(dtypes).items():
        binary = binaries[key]
        tile = {k: v for k, v in launch.arguments.items() if k in ("TW", "TILES", "BN", "LP", "BC", "BL", "TP", "ORDER")}
        inner = inner_loop(launch, binary.code) if binary.code else ()
        shape = " ".join(f"{k}={v}" for k, v in tile.items())
        row = [launch.kernel.__name__, f"{target.backend}:{target.arch}", label, shape, launch.num_warps]
        row += [binary.registers, binary.spills, binary.shared, f"{occupancy(launch, binary):.0%}" if binary.code else ""]
        rows.append([*row, *(f"{value:.2f}" for value in inner)])
    out.mkdir(parents=True, exist_ok=True)
    kernel_columns = ["kernel", "chip", "first needed by", "tile", "warps", "registers", "spilled bytes", "shared bytes",
                      "occupancy", "instructions per pixel", "loads", "multiply-adds", "dots"]  # fmt: skip
    layer_columns = ["suite", "layer", "dtype", "kernel", "pixels", "floor us", "predicted us", "floor / predicted"]
    for name, header, body in (("binaries", kernel_columns, rows), ("layers", layer_columns, layers)):
        with open(out / f"{name}.csv", "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *body])
    lines = [
        f"# The Triton kernels ahead of time (triton {triton.__version__}, torch {torch.__version__})",
        "",
        ASSUMPTIONS,
        "",
    ]
    lines += [f"All {len(rows)} binaries for {len(SHARED)} chips are in binaries.csv; sm_90's:", ""]
    lines += _table(kernel_columns[:1] + kernel_columns[2:], [row[:1] + row[2:] for row in rows if row[1] == "cuda:90"])
    lines += ["", "Layers, at the batch sizes of the suites on a GPU:", ""]
    lines += _table(layer_columns, [[*row[:5], *(f"{x:.1f}" for x in row[5:7]), f"{row[7]:.0%}"] for row in layers])
    (out / "report.md").write_text("\n".join(lines) + "\n")


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    full = [row + [""] * (len(header) - len(row)) for row in rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *full)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="folder for the report")
    arguments = parser.parse_args()
    dtypes = tuple(arguments.dtypes)
    jobs = _known(dtypes)
    print(f"triton {triton.__version__}: {len(jobs)} binaries")
    with ProcessPoolExecutor(arguments.jobs) as pool:
        binaries = dict(zip(jobs, pool.map(_work, [(key, dtypes) for key in jobs])))
    failures = 0
    for key, (label, launch, target) in jobs.items():
        if why := check(binaries[key], target):
            failures += 1
            print(f"{launch.kernel.__name__} for {target.backend}:{target.arch} ({label}): {why}")
    if arguments.out:
        report(binaries, dtypes, arguments.out)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles the Triton kernels ahead of time, for chips that need not be here: `python -m benchmarks.aot [--out FOLDER]`.

Every kernel in every configuration that the heuristics choose for a layer of the suites is compiled for five chips and must
need no spilled register and no more shared memory than the chip has. With --out, a report is written: registers, shared
memory, occupancy and what the inner loop does per element, and for sm_90 the time these instructions take against the
memory floor, per layer. A prediction, not a measurement; `ASSUMPTIONS` says under which conditions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.suites import SUITES, Layer, suite
from nnrelief_kernels.backends.triton import plan, score
from nnrelief_kernels.backends.triton.conv import Launch

SHARED = {80: 166912, 86: 101376, 90: 232448, 100: 232448, "gfx942": 65536}
"""Bytes of shared memory a block may have."""
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRITON_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32"
}  # fmt: skip


def chips() -> list[plan.Target]:
    return [plan.Target("hip" if arch == "gfx942" else "cuda", arch, 64 if arch == "gfx942" else 32) for arch in SHARED]


def launches(layer: Layer, samples: int, dtype: torch.dtype, target: plan.Target) -> list[Launch]:
    """What scoring the layer launches, on tensors without memory."""
    weight = torch.empty(layer.weight, dtype=dtype, device="meta")
    acts = torch.empty((samples, layer.channels, *layer.size), dtype=dtype, device="meta")
    out = torch.empty(layer.weight[:2], device="meta")
    if not layer.size:
        return list(score.linear_launches(weight, acts, out))
    return list(score.conv_launches(weight, acts, layer.geometry, "paper", out, target))


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


def identity(launch: Launch, target: plan.Target) -> tuple[Any, ...]:
    made = source(launch)
    return launch.kernel.__name__, target, launch.num_warps, *map(str, (made.signature, made.constants, made.attrs))


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
        registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
        code = _loops(_tool("nvdisasm", "-c", file.name))
    local = any(name.startswith(("STL", "LDL")) for loop in code.in_order() for name in loop.operations)
    spills = _spilled(made.asm["ptx"], target.arch) if stack and local else 0  # a stack may also be a called function's frame
    return Binary(registers, spills, made.metadata.shared, code if target.arch == 90 else None)


def _spilled(ptx: str, arch: int) -> int:
    """Bytes of registers that ptxas stores and loads again."""
    assembler = "ptxas-blackwell" if arch >= 100 and (TOOLS / "ptxas-blackwell").exists() else "ptxas"
    suffix = "a" if arch >= 90 else ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [TOOLS / assembler, "-v", f"--gpu-name=sm_{arch}{suffix}", file.name, "-o", "/dev/null"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", usage))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


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


def configurations(dtypes: list[str]) -> dict[tuple[Any, ...], tuple[str, Launch, plan.Target]]:
    """Every specialisation that the suites need, with the layer that first needs it."""
    found: dict[tuple[Any, ...], tuple[str, Launch, plan.Target]] = {}
    for name in SUITES:
        network = suite(name, device="cuda")
        for layer in network.layers:
            for dtype in dtypes:
                for target in chips():
                    for launch in launches(layer, network.samples, DTYPES[dtype], target):
                        found.setdefault(identity(launch, target), (f"{name} {layer.name} {dtype}", launch, target))
    return found


def _work(job: tuple[str, list[str]]) -> Binary:
    """Compiles one of `configurations`; a launch itself cannot be sent to another process."""
    key, dtypes = job
    _, launch, target = _all(tuple(dtypes))[key]
    return compiled(launch, target)


_CACHE: dict[tuple[str, ...], dict[str, tuple[str, Launch, plan.Target]]] = {}


def _all(dtypes: tuple[str, ...]) -> dict[str, tuple[str, Launch, plan.Target]]:
    if dtypes not in _CACHE:
        _CACHE[dtypes] = {repr(key): value for key, value in configurations(list(dtypes)).items()}
    return _CACHE[dtypes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    jobs = _all(tuple(arguments.dtypes))
    failures = 0
    print(f"triton {triton.__version__}: {len(jobs)} binaries")
    with ProcessPoolExecutor(arguments.jobs) as pool:
        binaries = pool.map(_work, [(key, arguments.dtypes) for key in jobs])
        for (label, launch, target), binary in zip(jobs.values(), binaries):
            if why := check(binary, target):
                failures += 1
                print(f"{launch.kernel.__name__} for {target.backend}:{target.arch} ({label}): {why}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

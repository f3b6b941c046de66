"""Compiles the Triton kernels ahead of time, for chips that need not be here: `python -m benchmarks.aot`.

Every kernel in every configuration that the heuristics choose, for the layers of the suites and for calls unlike them, is
compiled for five chips and must need no spilled register and no more shared memory than the chip has.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
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

DEPTHWISE = [
    Layer("5x5 of 240 x 28 x 28", (240, 1, 5, 5), (28, 28), 1, 2, groups=240),
    Layer("5x5, stride 2, of 144 x 56 x 56", (144, 1, 5, 5), (56, 56), 2, 2, groups=144),
    Layer("7x7 of 96 x 56 x 56", (96, 1, 7, 7), (56, 56), 1, 3, groups=96),
    Layer("7x7 of 768 x 7 x 7", (768, 1, 7, 7), (7, 7), 1, 3, groups=768),
]
"""Of EfficientNet-B0 and ConvNeXt-T."""
CORNERS = [
    *DEPTHWISE,
    Layer("5x5 of many filters", (192, 2, 5, 5), (27, 27), 1, 2),
    Layer("depthwise 7x7, stride 2", (16, 1, 7, 7), (28, 28), 2, 3, groups=16),
    *(Layer(f"kernel {h}x{w}", (5, 2, h, w), (10, 9)) for h, w in ((1, 2), (2, 2), (2, 3), (4, 4), (8, 8))),
    *(Layer(f"width {width}", (40, 2, 3, 3), (width, width), padding=1) for width in (3, 33, 200)),
    *(Layer(f"width {width}, stride 2", (40, 2, 3, 3), (width, width), 2, 1) for width in (9, 50, 200)),
    *(Layer(f"kernel {h}x{w}, stride {s}", (5, 2, h, w), (9, 9), s) for h, w in ((1, 2), (3, 2), (3, 3)) for s in (2, 3)),
    Layer("unpadded", (40, 2, 3, 3), (8, 8)),
    Layer("1-d", (20, 2, 5), (300,)),
    Layer("3-d", (20, 2, 3, 3, 3), (8, 8, 8), padding=1),
]
"""Layers unlike those of the suites, compiled for one float32 sample and for many bfloat16 ones."""


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
    cubin: bytes | None

    @functools.cached_property
    def code(self) -> Loop:
        """Of an NVIDIA chip's binary."""
        return loops(instructions(inspected("nvdisasm", "-c", self.cubin or b"")))


def made_by_triton(launch: Launch, target: plan.Target) -> Any:
    options = launch.options(target.backend)
    return triton.compile(source(launch), target=GPUTarget(target.backend, target.arch, target.warp), options=options)


def compiled(launch: Launch, target: plan.Target) -> Binary:
    made = made_by_triton(launch, target)
    if target.backend == "hip":
        found = {k: int(v) for k, v in re.findall(r"\.(\w+_count):\s+(\d+)", made.asm["amdgcn"])}
        return Binary(found["vgpr_count"], found["vgpr_spill_count"], made.metadata.shared, None)
    usage = inspected("cuobjdump", "-res-usage", made.asm["cubin"])
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
    spills = _spilled(made.asm["ptx"], target.arch) if stack else 0  # a stack may also be a called function's frame
    return Binary(registers, spills, made.metadata.shared, made.asm["cubin"])


def _spilled(ptx: str, arch: int | str) -> int:
    """Bytes of registers that ptxas, called as Triton calls it, stores and loads again."""
    arch = int(arch)
    options = ["-v", f"--gpu-name={sm_arch_from_capability(arch)}"]
    options += ["--regAllocOptLevel=2"] if plan.triton_version() >= (3, 8) else []
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, *options, file.name, "-o", "/dev/null"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", usage))


def inspected(name: str, option: str, cubin: bytes) -> str:
    """What such a tool prints of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tool(name, option, file.name)


def tool(name: str, *arguments: str, folder: str | None = None) -> str:
    """What a tool beside Triton's compiler prints, run in the folder."""
    return subprocess.run([str(TOOLS / name), *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Instruction:
    operation: str
    predicated: bool
    target: int | None
    """Of a branch: the instruction it goes to."""


def instructions(disassembly: str) -> list[Instruction]:
    found: list[tuple[str, bool, str | None]] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(found)
        elif made := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@!?\w+\s+)?([A-Z][A-Z0-9_.x]*)(.*)", line):
            to = re.search(r"(\.L_\w+)", made[3]) if made[2].startswith("BRA") else None
            found.append((made[2], bool(made[1]), to and to[1]))
    return [Instruction(name, predicated, labels.get(to) if to else None) for name, predicated, to in found]


def slots(operation: str) -> int:
    """Of a scheduler's issue slots: of products of tf32 matrices as many as sm_90's matrix units need, which make 256
    multiply-adds in the time of one; of all else one."""
    if shape := re.match(r"HGMMA\.64x(\d+)x(\d+)\.F32\.TF32", operation):  # one for four warps
        return 64 // 4 * int(shape[1]) * int(shape[2]) // 256
    return 16 * 8 * 8 // 256 if operation.startswith("HMMA.1688.F32.TF32") else 1


def loops(code: Sequence[Instruction]) -> Loop:
    """A loop is what lies between a label and the last branch back to it."""
    ends = {one.target: index + 1 for index, one in enumerate(code) if one.target is not None and one.target < index}
    whole = Loop(0, len(code))
    for first, last in sorted(ends.items(), key=lambda span: (span[0], -span[1])):
        parent = whole
        while inner := next((loop for loop in parent.inside if loop.first <= first and last <= loop.last), None):
            parent = inner
        parent.inside.append(Loop(first, last))
    for index, one in enumerate(code):
        loop = whole
        while inner := next((loop for loop in loop.inside if loop.first <= index < loop.last), None):
            loop = inner
        loop.operations[one.operation] += 1
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


def every_case() -> list[Case]:
    """The layers of all suites, and calls unlike them."""
    found = [case for name in SUITES for case in cases(name, ("float32", "bfloat16"))]
    for layer, (dtype, samples) in itertools.product(CORNERS, (("float32", 1), ("bfloat16", 1000))):
        found.append(Case(f"corner {layer.name} {dtype}, {samples} samples", layer, samples, dtype))
    return found + OTHERS


@dataclass(frozen=True)
class Specialisation:
    """What the compiler makes a binary of, and the call that first needs it."""

    label: str
    launch: Launch
    target: plan.Target


def specialisations(wanted: Iterable[Case], targets: Iterable[plan.Target]) -> dict[str, Specialisation]:
    """The different ones, by their identity."""
    found: dict[str, Specialisation] = {}
    for case, target in itertools.product(wanted, targets):
        for launch in launches(case, target):
            found.setdefault(identity(launch, target), Specialisation(case.label, launch, target))
    return found


def in_one_dtype(found: dict[str, Specialisation]) -> dict[str, Specialisation]:
    """Of those that differ in the dtypes (and in ALIGN, which follows from them) the last."""

    def configuration(one: Specialisation) -> tuple[Any, ...]:
        constants = [p.name for p in one.launch.kernel.params if p.is_constexpr and p.name != "ALIGN"]
        chosen = [one.launch.arguments[name] for name in constants]
        return (one.launch.kernel.__name__, one.target, one.launch.num_warps, *chosen)

    last = {configuration(one): key for key, one in found.items()}
    return {key: found[key] for key in last.values()}


def compile_all(wanted: dict[str, Specialisation], jobs: int | None) -> dict[str, Binary]:
    """In so many processes (by default one for every core), forked because a launch cannot be sent to another process."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=_SHARED.update, initargs=(wanted,)) as pool:
        return dict(zip(wanted, pool.map(_compile, wanted)))


_SHARED: dict[str, Specialisation] = {}


def _compile(key: str) -> Binary:
    return compiled(_SHARED[key].launch, _SHARED[key].target)


def main() -> int:
    """1 where a binary is not acceptable; the lines say which and why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, help="processes (default: one for every core)")
    parser.add_argument("--one-dtype", action="store_true", help="every configuration for one of its dtypes alone")
    arguments = parser.parse_args()
    wanted = specialisations(every_case(), chips())
    if arguments.one_dtype:
        wanted = in_one_dtype(wanted)
    print(f"triton {triton.__version__}: {len(wanted)} binaries")
    failures = 0
    for key, binary in compile_all(wanted, arguments.jobs).items():
        found = wanted[key]
        if why := check(binary, found.target):
            failures += 1
            print(f"{found.launch.kernel.__name__} for {found.target.backend}:{found.target.arch} ({found.label}): {why}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

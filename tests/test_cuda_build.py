"""What nvcc made of the CUDA kernels, and what the library asks of the torch that loads it."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import setup as build
from nnrelief_kernels import extension, score_conv, score_linear
from nnrelief_kernels.backends import cuda
from nnrelief_kernels.backends.compiled import PATHS

NVCC = build.find_nvcc()
LIBRARY = extension.FOLDER / extension.LIBRARY
ROOT = Path(__file__).parents[1]
TORCH_CPU = ROOT / ".torch-cpu"
KERNELS = {"column_sums", "norms", "lags", "windows", "gram", "finish", "scale", "add_parts"}

needs_kernels = pytest.mark.skipif(
    extension.unavailable() is not None or not cuda.architectures(),
    reason=f"this build has no CUDA kernels: {extension.unavailable() or extension.note()}",
)


def cuobjdump():
    """In nvcc's toolkit, or in the triton package."""
    try:
        import triton

        beside = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"]
    except ImportError:
        beside = []
    found = shutil.which("cuobjdump")
    places = [*([Path(found)] if found else []), *([NVCC.with_name("cuobjdump")] if NVCC else []), *beside]
    return next((str(place) for place in places if place.exists()), None)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_where_nvcc_is_the_kernels_were_compiled():
    """By `make`, with these flags: a warning would have left them out."""
    flags = build.cuda_flags("80;90")
    assert "-Werror=all-warnings" in flags
    assert not any("fast" in flag for flag in flags)
    assert "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]" in flags
    two = {"-gencode=arch=compute_86,code=[sm_86]", "-gencode=arch=compute_100,code=[sm_100,compute_100]"}
    assert two <= set(build.cuda_flags("86;100"))
    assert "could not be compiled" not in extension.note()


@needs_kernels
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump")
def test_no_spills_no_stack_and_shared_memory_that_fits():
    usage = run(cuobjdump(), "--dump-resource-usage", LIBRARY)
    chips = {int(chip) for chip in re.findall(r"^arch = sm_(\d+)", usage, re.MULTILINE)}
    kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert chips == set(cuda.architectures())
    assert {name for name in KERNELS if any(name in kernel for kernel, *_ in kernels)} == KERNELS
    for name, registers, stack, shared, local in kernels:
        assert (int(stack), int(local)) == (0, 0), name
        assert int(registers) <= 255, name
        assert int(shared) <= 48 << 10, name


@needs_kernels
def test_the_library_asks_for_nothing_that_a_cpu_torch_lacks():
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", LIBRARY))
    assert not [name for name in needed if "cuda" in name or "cudart" in name or "python" in name]
    undefined = [line.split()[-1] for line in run("nm", "-D", "--undefined-only", LIBRARY).splitlines()]
    unstable = [name for name in undefined if re.match(r"_ZN?K?(3c10|2at|5torch)", name)]
    assert not unstable
    exported = [line.split()[-1] for line in run("nm", "-D", "--defined-only", LIBRARY).splitlines()]
    assert not [name for name in exported if name.startswith("cuda") or name.startswith("__cuda")]


@needs_kernels
def test_without_a_device_it_says_so_and_refuses():
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    reason = cuda.unavailable()
    assert f"sm_{cuda.architectures()[0]}" in reason
    assert torch.__version__ in reason
    for call in (lambda: score_conv(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4), backend="cuda"),
                 lambda: score_linear(torch.ones(1, 1), torch.ones(1, 1), backend="cuda")):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"backend='cuda' cannot serve this call: .*CUDA"):
            call()


ON_A_CPU_TORCH = """
import torch
from nnrelief_kernels import reference, score_conv
assert torch.version.cuda is None
weight, acts = torch.randn(3, 2, 3, 3), torch.randn(4, 2, 9, 9)
torch.testing.assert_close(score_conv(weight, acts, backend="cpu"), reference.score_conv(weight, acts).float())
try:
    score_conv(weight, acts, backend="cuda")
except RuntimeError as error:
    print(error)
"""


@needs_kernels
@pytest.mark.skipif(not (TORCH_CPU / "torch").exists(), reason="no .torch-cpu, see the Makefile")
def test_a_torch_without_cuda_loads_it_and_refuses_cuda_calls():
    paths = os.pathsep.join(map(str, (TORCH_CPU, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CPU_TORCH],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"backend='cuda' cannot serve this call: torch \S+ is built without CUDA \(the kernels are for sm_80", done.stdout
    )


@needs_kernels
def test_the_current_stream_can_be_looked_up_where_torch_has_cuda():
    if torch.version.cuda is None:
        pytest.skip("this torch has no CUDA")
    import ctypes

    assert ctypes.CDLL("libtorch_cuda.so", mode=ctypes.RTLD_LOCAL | 4).aoti_torch_get_current_cuda_stream  # 4: RTLD_NOLOAD


@needs_kernels
@pytest.mark.parametrize(
    ("capability", "served"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 0), True), ((12, 0), True)],
)
def test_chips_that_are_served(capability, served, monkeypatch):
    monkeypatch.setattr(cuda, "architectures", lambda: [80, 86, 90, 100])
    assert cuda.serves(capability) is served


@needs_kernels
def test_machine_code_has_the_multiply_adds_of_the_source():
    """What the times predicted for sm_90 rest on (benchmarks/cuda_model.py): the products of the rows of lags."""
    model, code = (pytest.importorskip(f"benchmarks.cuda_{name}", exc_type=ImportError) for name in ("model", "code"))
    if 90 not in cuda.architectures():
        pytest.skip("no code for sm_90")
    found = code.kernels(LIBRARY)
    for kind, stride in itertools.product(model.TYPES[:3], (1, 2)):
        for columns, reading in ((28, 0), (32, 0), (16, 0), (8, 0), (16, 1), (8, 1), (8, 2)):
            kernel = code.named(found, f"4lagsI{kind}Li{stride}ELi{columns}ELNS_7ReadingE{reading}E")
            loop = model.row_loop(kernel, stride, columns)
            assert not loop.inside
            products = 3 * 13 * columns if stride == 1 else 34 * columns // 2
            assert products < kernel.way(loop) <= sum(loop.operations.values())


@pytest.mark.parametrize(("k", "size", "padding"), [(3, 32, 1), (3, 300, 1), (3, 2, 1), (3, 9, 0), (3, 7, 2)])
def test_rows_of_lags_are_counted_once(k, size, padding):
    """The last sums of every row distance end with the map."""
    model = pytest.importorskip("benchmarks.cuda_model", exc_type=ImportError)
    plan, suites = (pytest.importorskip(f"benchmarks.{name}", exc_type=ImportError) for name in ("cuda_plan", "suites"))
    layer = suites.Layer("", (4, 2, k, k), (size, size), padding=padding)
    turns, edges, ends = model.streamed_rows(plan.conv(plan.Case("", layer, 10, "float32")))
    assert turns * k + edges == size
    assert all(ends[d] >= 1 for d in range(min(k, size)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_plans_are_those_of_plan_cuda():
    plan, suites = (pytest.importorskip(f"benchmarks.{name}", exc_type=ImportError) for name in ("cuda_plan", "suites"))
    layers = [suites.Layer("", (4, 2, k, k), (size, size), stride, k // 2)
              for k, size, stride in ((3, 28, 1), (3, 8, 1), (5, 12, 1), (3, 28, 2), (1, 28, 2))]  # fmt: skip
    made = plan.plans([plan.conv(plan.Case("", layer, 100, "float32")) for layer in layers])
    assert [PATHS[p.path] for p in made] == ["lags", "lags", "gram", "lags", "norms"]
    assert [(p.columns, p.outputs, p.lanes) for p in (made[0], made[1], made[3])] == [(28, 28, 1), (8, 8, 1), (28, 14, 1)]
    assert all((p.parts - 1) * p.part_samples < 100 <= p.parts * p.part_samples for p in made)


def test_the_longest_and_the_shortest_way_through_machine_code():
    """Past a branch that skips two instructions, and with a loop inside that is counted on its own."""
    aot, code = (pytest.importorskip(f"benchmarks.{name}", exc_type=ImportError) for name in ("aot", "cuda_code"))
    lines = ["@P0 BRA `(.L_1)", "LDG.E R0", "IADD R0", ".L_1:", ".L_2:", "FFMA R1", "@P1 BRA `(.L_2)", "STG R1", "EXIT"]
    text = "\n".join(line if line.endswith(":") else f"  /*0000*/  {line} ;" for line in lines)
    kernel = code.Kernel(aot.instructions(text))
    (inner,) = kernel.whole.inside
    assert (inner.first, inner.last, kernel.way(inner)) == (3, 5, 2)
    assert kernel.way(kernel.whole) == 5
    assert kernel.way(kernel.whole, never={1}) == 3
    assert kernel.way(kernel.whole, through=[5]) == 3
    assert kernel.way(kernel.whole, through=[1]) == 5
    with pytest.raises(code.Unclear):
        kernel.way(kernel.whole, never={5})

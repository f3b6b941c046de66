"""The CUDA kernels of csrc/ compiled for the host: tests/emulator stands in for the device."""

import functools
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CSRC, EMULATOR = ROOT / "csrc", ROOT / "tests" / "emulator"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-ffp-contract=fast"]
FLAGS += ["-U_FORTIFY_SOURCE"]  # whose longjmp refuses to change stacks

missing = None if shutil.which("g++") and CSRC.exists() else "needs g++ and a source tree"


@functools.cache
def operators():
    """torch.ops.nnrelief_emulated: the operators on CUDA tensors, for tensors on the CPU."""
    torch_home = Path(torch.__file__).parent
    flags = [*FLAGS, f"-I{torch_home / 'include'}", f"-I{CSRC}", f"-I{EMULATOR}", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += ["-Dnnrelief=nnrelief_emulated", '-DNNRELIEF_EMULATOR="emulator.h"']
    with tempfile.TemporaryDirectory() as folder:
        sources = [*CSRC.glob("*.cu"), CSRC / "plan_cuda.cpp", EMULATOR / "library.cpp"]
        objects = [str(Path(folder, source.name + ".o")) for source in sources]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, (["g++", *flags, "-x", "c++", "-c", str(s), "-o", o] for s, o in zip(sources, objects))))
        library = str(Path(folder, "emulated.so"))
        _run(["g++", "-shared", *objects, f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10", "-o", library])
        torch.ops.load_library(library)
    return torch.ops.nnrelief_emulated


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

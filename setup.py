"""The compiled CPU and CUDA backends, one library; all else about the package, but its licence, is in pyproject.toml.

NNRELIEF_BUILD=auto (default) builds it if a compiler allows and otherwise installs without, saying why; 1 fails if it cannot
be built; 0 leaves it out. NNRELIEF_BUILD_CUDA=auto|0|1 says the same of the CUDA kernels in it, which need nvcc but neither a
GPU nor a torch with CUDA, and NNRELIEF_CUDA_ARCHS for which chips ("80;86;90;100", as far as nvcc knows them: those, and code
that newer ones translate).
The cause of a missing part is kept in nnrelief_kernels/_build.txt for ``nnrelief info``.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
NOTE = ROOT / "nnrelief_kernels" / "_build.txt"
TORCH_TARGET = "0x020b000000000000"  # LibTorch's stable ABI as of torch 2.11
LEVELS = {
    "level_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "level_avx2": ["-mavx2", "-mfma"],
}
CUDA = "CUDA part of the compiled extension"
CHIPS = "80;86;90;100"


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def skip(cause: str, part: str = "compiled extension") -> None:
    NOTE.write_text(cause + "\n")
    print(f"nnrelief_kernels: the {part} is left out: {cause}", file=sys.stderr)


def option(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def find_nvcc() -> Path | None:
    """In CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda; torch's own search finds none where torch has no CUDA."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc")
    places = [
        *(Path(home, "bin", "nvcc") for home in homes),
        *([Path(found)] if found else []),
        Path("/usr/local/cuda/bin/nvcc"),
    ]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def cuda_libraries(nvcc: Path) -> list[str]:
    """The static run-time library of nvcc's toolkit, which nvcc names even where it is a wrapper; nothing of it is exported."""
    told = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    top = next((line.split("=", 1)[1] for line in told.splitlines() if line.startswith("#$ TOP=")), str(nvcc.parents[1]))
    folders = [Path(top, *parts) for parts in (("lib64",), ("lib",), ("targets", f"{platform.machine()}-linux", "lib"))]
    folder = next((folder for folder in folders if (folder / "libcudart_static.a").exists()), folders[0])
    return [f"-L{folder}", "-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,libcudart_static.a"]


def chips(nvcc: Path) -> str:
    """NNRELIEF_CUDA_ARCHS, or of `CHIPS` those that this nvcc can compile for."""
    told = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    return os.environ.get("NNRELIEF_CUDA_ARCHS") or ";".join(c for c in CHIPS.split(";") if f"sm_{c}" in told) or CHIPS


def cuda_flags(architectures: str) -> list[str]:
    """nvcc's flags; no fast-math, so that sums are those of IEEE arithmetic.

    Chips below sm_100 share the front end's pass for the oldest of them, which takes three times as long as the assembler and
    makes of these kernels the same code for each. From sm_100 on it pairs multiply-adds: a pass of their own.
    """
    listed = architectures.split(";")
    shared = [chip for chip in listed if int(chip) < 100]
    passes = [*([shared] if shared else []), *([chip] for chip in listed if chip not in shared)]
    codes = [[f"sm_{chip}" for chip in chips] for chips in passes]
    codes[-1].append(f"compute_{passes[-1][0]}")  # PTX, for chips to come
    targets = [f"-gencode=arch=compute_{chips[0]},code=[{','.join(code)}]" for chips, code in zip(passes, codes)]
    return ["-std=c++17", "-O3", *targets, "-Werror=all-warnings", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]


def extension(mode: str) -> dict:
    """setup()'s arguments for the extension; none where it cannot or shall not be built."""
    NOTE.unlink(missing_ok=True)
    if mode == "0":
        skip("it was installed with NNRELIEF_BUILD=0")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except Exception as error:
        if mode == "1":
            raise
        skip(f"torch's build tools could not be imported: {error}")
        return {}

    nvcc, cuda_mode = find_nvcc(), option("NNRELIEF_BUILD_CUDA")
    if cuda_mode == "0":
        skip("it was installed with NNRELIEF_BUILD_CUDA=0", CUDA)
        nvcc = None
    elif nvcc is None:
        if cuda_mode == "1":
            raise SystemExit("NNRELIEF_BUILD_CUDA=1 needs nvcc; it is not in CUDA_HOME, PATH or /usr/local/cuda")
        skip("nvcc was not found in CUDA_HOME, PATH or /usr/local/cuda", CUDA)

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except BaseException as error:
                if mode == "1" or isinstance(error, KeyboardInterrupt):
                    raise
                skip(f"it could not be compiled: {error}")
                self.keep_note()
                self.extensions = []

        def build_extension(self, ext) -> None:
            if nvcc:
                try:
                    return self.build_library(ext, nvcc)
                except Exception as error:
                    if cuda_mode == "1":
                        raise
                    skip(f"it could not be compiled: {error}", CUDA)
                    self.keep_note()
            self.build_library(ext, None)

        def build_library(self, ext, nvcc: Path | None) -> None:
            """The library, with the CUDA kernels compiled by `nvcc` beside the rest."""
            host = sources("*.cpp")
            ext.sources = [source for source in host if nvcc or not source.endswith("_cuda.cpp")]
            architectures = chips(nvcc) if nvcc else ""
            ext.define_macros = [("NNRELIEF_CUDA_ARCHS", f'"{architectures}"')] if nvcc else []
            ext.extra_link_args = [*os.environ.get("NNRELIEF_LDFLAGS", "").split(), *(cuda_libraries(nvcc) if nvcc else [])]
            compile_all, compile_one = self.compiler.compile, self.compiler._compile

            def compile_with_level(obj, src, ext, cc_args, extra_postargs, pp_opts):
                level = LEVELS.get(Path(src).stem, []) if platform.machine() in ("x86_64", "AMD64") else []
                compile_one(obj, src, ext, cc_args, [*extra_postargs, *level], pp_opts)

            def compile_cuda(source: str) -> str:
                target = Path(self.build_temp, source).with_suffix(".cu.o")
                target.parent.mkdir(parents=True, exist_ok=True)
                self.spawn([str(nvcc), *cuda_flags(architectures), "-c", source, "-o", str(target)])
                return str(target)

            def compile_beside(files, **options):
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    kernels = [pool.submit(compile_cuda, source) for source in (sources("*.cu") if nvcc else [])]
                    try:
                        return compile_all(files, **options) + [kernel.result() for kernel in kernels]
                    finally:
                        pool.shutdown(cancel_futures=True)

            self.compiler.compile, self.compiler._compile = compile_beside, compile_with_level
            try:
                super().build_extension(ext)
            finally:
                self.compiler.compile, self.compiler._compile = compile_all, compile_one

        def keep_note(self) -> None:
            if not self.inplace:  # into the wheel as well
                package = Path(self.build_lib) / "nnrelief_kernels"
                package.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(NOTE), str(package / NOTE.name))

    flags = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"]
    flags += ["-Wno-psabi", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *os.environ.get("NNRELIEF_CXXFLAGS", "").split()]
    module = CppExtension(
        "nnrelief_kernels._C",
        sources("*.cpp"),
        depends=sources("*.h") + sources("*.cu"),
        extra_compile_args=flags,
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":
    # the licence here, for in pyproject.toml setuptools before 77 refuses it, and `make gpu` takes what setuptools there is
    setup(license="MIT", **extension(option("NNRELIEF_BUILD")))

"""The compiled CPU backend; everything else about the package is in pyproject.toml.

NNRELIEF_BUILD=auto (default) builds it if a compiler allows and otherwise installs without, saying why; 1 fails if it cannot
be built; 0 leaves it out. The cause of a missing extension is kept in nnrelief_kernels/_build.txt for ``nnrelief info``.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
NOTE = ROOT / "nnrelief_kernels" / "_build.txt"
TORCH_TARGET = "0x020b000000000000"  # LibTorch's stable ABI as of torch 2.11
LEVELS = {
    "level_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "level_avx2": ["-mavx2", "-mfma"],
}


def skip(cause: str) -> None:
    NOTE.write_text(cause + "\n")
    print(f"nnrelief_kernels: the compiled CPU backend is left out: {cause}", file=sys.stderr)


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

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except BaseException as error:
                if mode == "1" or isinstance(error, KeyboardInterrupt):
                    raise
                skip(f"it could not be compiled: {error}")
                if not self.inplace:  # into the wheel as well
                    package = Path(self.build_lib) / "nnrelief_kernels"
                    package.mkdir(parents=True, exist_ok=True)
                    self.copy_file(str(NOTE), str(package / NOTE.name))
                self.extensions = []

        def build_extension(self, ext) -> None:
            compile_one = self.compiler._compile

            def compile_with_level(obj, src, ext, cc_args, extra_postargs, pp_opts):
                level = LEVELS.get(Path(src).stem, []) if platform.machine() in ("x86_64", "AMD64") else []
                compile_one(obj, src, ext, cc_args, [*extra_postargs, *level], pp_opts)

            self.compiler._compile = compile_with_level
            try:
                super().build_extension(ext)
            finally:
                self.compiler._compile = compile_one

    flags = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"]
    flags += ["-Wno-psabi", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *os.environ.get("NNRELIEF_CXXFLAGS", "").split()]
    module = CppExtension(
        "nnrelief_kernels._C",
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.h")),
        extra_compile_args=flags,
        extra_link_args=os.environ.get("NNRELIEF_LDFLAGS", "").split(),
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


mode = os.environ.get("NNRELIEF_BUILD", "auto")
if mode not in ("auto", "0", "1"):
    raise SystemExit(f"NNRELIEF_BUILD must be auto, 0 or 1, got {mode!r}")
setup(**extension(mode))

"""Installing with and without a compiler, and what a missing or broken extension says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnrelief_kernels import extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build needs."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs a source tree")
    for name in ("csrc", "nnrelief_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "_build.txt", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(tree, **environment):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "NNRELIEF_BUILD_CUDA": "0", **environment}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_without_a_compiler_the_package_still_installs_and_says_why(tree):
    run = build(tree, NNRELIEF_BUILD="auto", CC="/nonexistent", CXX="/nonexistent")
    assert run.returncode == 0, run.stderr
    assert "left out" in run.stderr
    reason = extension._load(tree / "nnrelief_kernels")
    assert "missing" in reason
    assert "could not be compiled" in reason
    assert "/nonexistent" in reason


def test_a_build_that_is_required_fails_without_a_compiler(tree):
    run = build(tree, NNRELIEF_BUILD="1", CC="/nonexistent", CXX="/nonexistent")
    assert run.returncode != 0
    assert "/nonexistent" in run.stderr


def test_a_build_can_be_declined(tree):
    assert build(tree, NNRELIEF_BUILD="0").returncode == 0
    assert "NNRELIEF_BUILD=0" in extension._load(tree / "nnrelief_kernels")
    assert build(tree, NNRELIEF_BUILD="maybe").returncode != 0


def test_a_broken_library_is_one_line(tmp_path):
    (tmp_path / extension.LIBRARY).write_text("not a library")
    reason = extension._load(tmp_path)
    assert "failed to load" in reason
    assert "\n" not in reason


def configure(tree, command, **environment):
    return subprocess.run(
        [sys.executable, "-c", f"import setup; {command}"],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_cuda_part_can_be_declined_and_says_so(tree):
    run = configure(tree, "print(setup.extension('auto')['ext_modules'][0].name)", NNRELIEF_BUILD_CUDA="0")
    assert "nnrelief_kernels._C" in run.stdout
    assert "CUDA part of the compiled extension is left out" in run.stderr
    assert "NNRELIEF_BUILD_CUDA=0" in extension.note(tree / "nnrelief_kernels")


@pytest.mark.parametrize(
    ("mode", "fails", "says"), [("1", True, "nvcc"), ("auto", False, "nvcc was not found"), ("yes", True, "auto, 0 or 1")]
)
def test_a_cuda_part_that_is_required_fails_without_nvcc(tree, mode, fails, says):
    run = configure(tree, "setup.find_nvcc = lambda: None; setup.extension('auto')", NNRELIEF_BUILD_CUDA=mode)
    assert (run.returncode != 0) is fails
    assert says in run.stderr


@pytest.mark.parametrize(("asked", "chips"), [("", "80;90"), ("86;90", "86;90")])
def test_chips_that_nvcc_does_not_know_are_left_out_unless_asked_for(tree, asked, chips):
    nvcc = tree / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'sm_75\\nsm_80\\nsm_90\\n'\n")
    nvcc.chmod(0o755)
    run = configure(tree, f"print(setup.chips({str(nvcc)!r}))", NNRELIEF_CUDA_ARCHS=asked)
    assert run.stdout.strip() == chips, run.stderr

"""The Triton releases that are tested: the one that torch brings, and the oldest supported where `make` has put it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".triton36"
ABSENT = {
    "newest": None if importlib.util.find_spec("triton") else "this torch brings no triton",
    "oldest": None if OLDEST.exists() else "no .triton36, see the Makefile",
}
every_triton = pytest.mark.parametrize(
    "triton", [pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=why or "")) for name, why in ABSENT.items()]
)


def tritons() -> list[str]:
    return [name for name, why in ABSENT.items() if why is None]


def start(triton: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Python in a process of its own: interpreter and compiler cannot share one, nor can two Tritons."""
    paths = [*([str(OLDEST)] if triton == "oldest" else []), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-8000:]


def run(triton: str, *arguments: str, **environment: str) -> None:
    finish(start(triton, *arguments, **environment))

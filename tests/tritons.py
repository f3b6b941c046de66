"""The Triton releases that are tested: the one that torch brings, and the oldest supported where `make` has put it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".triton36"
here = importlib.util.find_spec("triton") is not None
there = here and OLDEST.exists()
every_triton = pytest.mark.parametrize(
    "triton",
    [
        pytest.param("newest", marks=pytest.mark.skipif(not here, reason="this torch brings no triton")),
        pytest.param("oldest", marks=pytest.mark.skipif(not there, reason="no .triton36, see the Makefile")),
    ],
)


def run(triton: str, *arguments: str, **environment: str) -> None:
    """Python in a process of its own: interpreter and compiler cannot share one, nor can two Tritons."""
    paths = [str(ROOT), *([str(OLDEST)] if triton == "oldest" else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(reversed(paths)), **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]

"""Every Triton kernel against the oracle, on the CPU: the tests of tests/interpreted."""

import pytest

from tests.tritons import every_triton, finish, start, tritons


@pytest.fixture(scope="module")
def runs():
    """All at once: the interpreter keeps one core busy."""
    arguments = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/interpreted")
    return {triton: start(triton, *arguments, TRITON_INTERPRET="1", OMP_NUM_THREADS="1") for triton in tritons()}


@every_triton
def test_in_the_interpreter(triton, runs):
    finish(runs[triton])

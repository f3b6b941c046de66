"""Every Triton kernel against the oracle, on the CPU: the tests of tests/interpreted."""

import pytest

from tests.tritons import here, run


@pytest.mark.skipif(not here, reason="this torch brings no triton")
def test_in_the_interpreter():
    run("newest", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/interpreted", TRITON_INTERPRET="1")

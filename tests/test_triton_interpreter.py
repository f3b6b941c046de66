"""Every Triton kernel against the oracle, on the CPU: the tests of tests/interpreted."""

from tests.tritons import every_triton, run


@every_triton
def test_in_the_interpreter(triton):
    run(triton, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/interpreted", TRITON_INTERPRET="1")

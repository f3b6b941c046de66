"""Every Triton kernel against the oracle, on the CPU: the tests of tests/interpreted."""

from tests.tritons import every_triton, run


@every_triton
def test_in_the_interpreter(triton):
    only = ["-k", "each_path"] if triton == "oldest" else []
    run(triton, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/interpreted", *only, TRITON_INTERPRET="1")

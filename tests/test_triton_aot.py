"""Every Triton kernel compiled for five chips, in every configuration the heuristics choose: see benchmarks/aot.py.

With the oldest Triton every configuration for one dtype: a binary takes seconds.
"""

from tests.tritons import ROOT, every_triton, run


@every_triton
def test_no_spills_and_shared_memory_that_fits(triton):
    arguments = ["--one-dtype"] if triton == "oldest" else []
    run(triton, "-m", "benchmarks.aot", *arguments, TRITON_CACHE_DIR=str(ROOT / ".triton_cache" / triton))

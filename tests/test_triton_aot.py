"""Every Triton kernel compiled for five chips, in every configuration the heuristics choose: see benchmarks/aot.py."""

from tests.tritons import ROOT, every_triton, run


@every_triton
def test_no_spills_and_shared_memory_that_fits(triton):
    run(triton, "-m", "benchmarks.aot", TRITON_CACHE_DIR=str(ROOT / ".triton_cache" / triton))

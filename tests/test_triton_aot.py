"""Every Triton kernel compiled for five chips, in every configuration the heuristics choose: see benchmarks/aot.py."""

import pytest

from tests.tritons import ROOT, every_triton, run


@pytest.mark.slow
@every_triton
def test_no_spills_and_shared_memory_that_fits(triton):
    # bfloat16: what float32 does and a conversion; `make aot-report` compiles float32 as well
    run(triton, "-m", "benchmarks.aot", "--dtypes", "bfloat16", TRITON_CACHE_DIR=str(ROOT / ".triton_cache" / triton))

"""Linear layers: the scores beside other ways, a group per layer; `pytest benchmarks --suite NAME` for a whole network."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .race import parametrize, race
from .suites import Layer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, convolutions=False)


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
def test_linear(layer: Layer, contender: str, samples: int, benchmark: BenchmarkFixture) -> None:
    race(layer, contender, samples, benchmark)

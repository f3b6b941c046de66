"""The body of test_conv.py and test_linear.py: check one contender on one layer, then let pytest-benchmark time it."""

from __future__ import annotations

from functools import lru_cache, partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from .baselines import BASELINES, SCORING, score, tolerance
from .check import Oracle, check_oracle, oracle
from .conftest import REPRESENTATIVE
from .report import SCORE
from .suites import Layer, suite

CONTENDERS = {SCORE: score, **{name: BASELINES[name] for name in ("naive", "gram", "forward", "floor")}}


def parametrize(metafunc: pytest.Metafunc, convolutions: bool) -> None:
    """Every contender on every layer of one kind, of --suite or `REPRESENTATIVE`."""
    suites = metafunc.config.getoption("--suite")
    layers = {
        f"{name}/{layer.name}": layer
        for name in suites or REPRESENTATIVE
        for layer in suite(name).layers
        if bool(layer.size) == convolutions and (suites or layer.name in REPRESENTATIVE[name])
    }
    metafunc.parametrize("contender", CONTENDERS)
    metafunc.parametrize("layer", layers.values(), ids=layers)


def race(layer: Layer, contender: str, samples: int, benchmark: BenchmarkFixture) -> None:
    """One contender's turn."""
    weight, acts, known = _course(layer, samples)
    run = partial(CONTENDERS[contender], layer, weight, acts)
    result = run()
    if contender == SCORE or contender in SCORING:
        check_oracle(layer, contender, result, known, tolerance(contender, layer, samples))
    benchmark.group = f"{layer.name} {layer.weight} on {layer.size or 'vectors'}, {samples} samples"
    benchmark(run)


@lru_cache(1)
def _course(layer: Layer, samples: int) -> tuple[Tensor, Tensor, Oracle]:
    weight, acts = layer.inputs(samples)
    return weight, acts, oracle(layer, weight, acts)

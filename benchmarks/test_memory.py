"""The contract on memory: at most 64 MiB above inputs and result, whatever the number of samples and filters."""

from __future__ import annotations

from functools import partial

import pytest

from .baselines import naive, score
from .memory import CASES, LIMIT, peak, places
from .suites import Layer


@pytest.mark.parametrize(("backend", "device"), places())
@pytest.mark.parametrize(("layer", "samples"), CASES, ids=[layer.name for layer, _ in CASES])
def test_peak(layer: Layer, samples: int, backend: str, device: str) -> None:
    assert peak(partial(score, backend=backend), layer, samples, device) <= LIMIT


def test_a_peak_is_seen() -> None:
    """64 samples of 16 maps of 256 KiB."""
    assert peak(naive, Layer("wide", (16, 1, 1, 1), (256, 256)), 64, "cpu") >= 256 << 20

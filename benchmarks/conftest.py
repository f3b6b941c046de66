"""Options of `pytest benchmarks`: which layers, and on how many samples."""

from __future__ import annotations

import pytest

from .suites import SUITES

REPRESENTATIVE = {
    "lenet5": ("conv1", "conv2", "fc1", "fc2"),
    "vgg16_cifar": ("conv1_2", "conv3_2", "conv5_1"),
    "resnet50": ("conv1", "layer1.0.conv1", "layer2.0.conv2"),
    "mobilenet_v2": ("features.2.conv.1.0",),
}
"""What is timed without --suite: every kind of layer, in a few seconds each."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", action="append", choices=list(SUITES), help="time this network's layers; may be repeated")
    parser.addoption("--samples", type=int, default=8, help="samples per layer of the benchmarks (default: %(default)s)")


@pytest.fixture
def samples(request: pytest.FixtureRequest) -> int:
    """--samples."""
    return int(request.config.getoption("--samples"))

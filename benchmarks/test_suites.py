"""The suites are the networks they are named after."""

from __future__ import annotations

import math

import pytest
import torch

from nnrelief_kernels import explain

from .baselines import forward
from .networks import NETWORKS
from .suites import SUITES, Layer, suite

CONVS = {"lenet5": 2, "vgg16_cifar": 13, "resnet20_cifar": 19, "resnet50": 53, "mobilenet_v2": 52}
WEIGHTS = {
    "lenet5": 500 + 25_000 + 400_000 + 5_000,
    "vgg16_cifar": 14_710_464,
    "resnet20_cifar": 267_696,
    "resnet50": 23_454_912,
    "mobilenet_v2": 2_189_760,
}
MACS = {
    "lenet5": 288_000 + 1_600_000 + 400_000 + 5_000,
    "vgg16_cifar": 313_196_544,
    "resnet20_cifar": 40_550_400,
    "resnet50": 4_087_136_256,
    "mobilenet_v2": 299_494_272,
}
"""Multiply-adds of one image through these layers."""


@pytest.mark.parametrize("name", SUITES)
def test_totals(name: str) -> None:
    layers = suite(name).layers
    assert sum(layer.count for layer in layers if layer.size) == CONVS[name]
    assert sum(math.prod(layer.weight) * layer.count for layer in layers) == WEIGHTS[name]
    assert sum(layer.macs(1) * layer.count for layer in layers) == MACS[name]


@pytest.mark.parametrize("name", SUITES)
def test_layers_are_unlike_and_serve(name: str) -> None:
    layers = suite(name).layers
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        weight, acts = layer.inputs(1)
        assert weight.shape == layer.weight
        assert acts.numel() * 4 == layer.bytes(1, torch.float32)
        if layer.size:
            explain(weight, acts, stride=layer.stride, padding=layer.padding, groups=layer.groups)
        else:
            explain(weight, acts)


@pytest.mark.parametrize(("name", "of"), [("resnet20", "resnet20_cifar"), ("vgg16", "vgg16_cifar"), ("resnet50", "resnet50")])
def test_whole_networks_have_the_convolutions_of_the_suites(name: str, of: str) -> None:
    make, image, classes, _ = NETWORKS[name]
    with torch.device("meta"):
        model = make(image, classes)
        assert model(torch.empty(2, *image)).shape == (2, classes)
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == CONVS[of]
    assert sum(conv.weight.numel() for conv in convs) == WEIGHTS[of]


def test_geometry_is_torchs() -> None:
    for name in SUITES:
        for layer in suite(name).layers:
            if layer.size:
                weight, acts = (
                    torch.empty(layer.weight, device="meta"),
                    torch.empty(1, layer.channels, *layer.size, device="meta"),
                )
                assert forward(layer, weight, acts).shape == (1, layer.weight[0], *layer.geometry.out)


def test_score_macs() -> None:
    assert Layer("", (64, 64, 3, 3), (32, 32), padding=1).score_macs(2) == 2 * 64 * (1024 * 13 + 64 * 45)
    assert Layer("", (64, 64, 3, 3), (32, 32), 2, 1).score_macs(1) == 64 * (256 * 45 + 64 * 45)
    assert Layer("", (8, 1, 3, 3), (32, 32), padding=1, groups=8).score_macs(1) == 8 * 1024 * 9  # the maps are cheaper
    assert Layer("", (512, 512, 3, 3), (2, 2), padding=1).score_macs(1) == 512 * 10 * 513  # 10 pairs of pixels
    assert Layer("", (512, 64, 1, 1), (7, 7)).score_macs(3) == 3 * 64 * 49


def test_unknown_suite() -> None:
    with pytest.raises(ValueError, match="suite must be one of"):
        suite("vgg19")

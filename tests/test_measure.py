"""Counts against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import jaccard, measure
from nnrelief_kernels.paper.models import LeNet5, LeNet300100


def test_lenets_count_as_published():
    found = measure(LeNet300100(), torch.zeros(1, 1, 28, 28))
    assert found.parameters == 266_610
    assert found.dense_flops == (2 * 784 - 1) * 300 + (2 * 300 - 1) * 100 + (2 * 100 - 1) * 10
    assert found.active == {"input": 784, "fc1": 300, "fc2": 100, "fc3": 10}
    found = measure(LeNet5(), torch.zeros(1, 1, 28, 28))
    assert found.parameters == 431_080
    conv = 2 * 24 * 24 * (1 * 25 + 1) * 20 + 2 * 8 * 8 * (20 * 25 + 1) * 50
    assert found.dense_flops == conv + (2 * 800 - 1) * 500 + (2 * 500 - 1) * 10


def test_a_unit_counts_only_with_a_connection_in_and_one_out():
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].weight[0] = 0  # channel 0: nothing in
        model[0].weight[:, 1] = 0  # input 1 is not read
        model[3].weight.fill_(1)
        model[3].weight[:, 4:8] = 0  # channel 1: nothing out
    found = measure(model, torch.zeros(1, 2, 2, 2))
    assert found.active == {"input": 1, "0": 1, "3": 2}
    assert found.kept == 2 + 16
    assert found.parameters == 6 + 24
    assert found.compression == 30 / 18
    assert found.flops == 2 * 4 * (1 + 1) * 1 + (2 * 4 - 1) * 2
    assert found.dense_flops == 2 * 4 * (2 + 1) * 3 + (2 * 12 - 1) * 2
    assert found.kept_per_layer == {"0": 100 * 2 / 6, "3": 100 * 16 / 24}


def test_grouped_layers_and_residual_networks_are_counted_per_layer():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

        def forward(self, x):
            return x + self.conv(x)

    found = measure(Block(), torch.zeros(1, 4, 5, 5))
    assert found.active == {"conv": 4}
    assert found.dense_flops == 2 * 25 * (2 * 9 + 1) * 4


def test_no_layer_is_an_error():
    with pytest.raises(ValueError, match="at least one Linear"):
        measure(nn.ReLU(), torch.zeros(1, 2))


def test_jaccard():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert jaccard(a, b) == 1 / 3
    assert jaccard(a, a) == 1
    assert jaccard({"w": a, "v": a}, {"w": b, "v": a}) == 3 / 5
    assert jaccard(a & ~a, b & ~b) == 1
    with pytest.raises(ValueError, match="same names and shapes"):
        jaccard({"w": a}, {"v": a})
    with pytest.raises(ValueError, match="same names and shapes"):
        jaccard(a, b[:2])

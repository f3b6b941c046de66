"""Magnitude pruning: what it keeps, per layer and over all layers."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import apply_masks, magnitude_masks


@pytest.fixture
def model():
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[4.0, -1.0], [2.0, 0.5]]))
        first.bias.copy_(torch.tensor([-3.0, 0.25]))
        second.weight.copy_(torch.tensor([[0.125, -0.75]]))
        second.bias.copy_(torch.tensor([0.0625]))
    return nn.Sequential(first, nn.ReLU(), second)


def test_each_layer_keeps_its_share(model):
    masks = magnitude_masks(model, 0.5)
    assert masks["0.weight"].tolist() == [[True, False], [True, False]]
    assert masks["0.bias"].tolist() == [True, False]
    assert masks["2.weight"].tolist() == [[True, True]]  # round(1.5) = 2 of 3
    assert masks["2.bias"].tolist() == [False]


def test_all_layers_compete_globally(model):
    masks = magnitude_masks(model, 5 / 9, scope="global")
    assert masks["0.weight"].tolist() == [[True, True], [True, False]]
    assert masks["0.bias"].tolist() == [True, False]
    assert masks["2.weight"].tolist() == [[False, True]]
    assert masks["2.bias"].tolist() == [False]


def test_ties_keep_the_exact_count():
    model = nn.Conv2d(3, 4, 3)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    masks = magnitude_masks(model, 0.5)
    assert sum(int(m.sum()) for m in masks.values()) == 56
    assert masks["weight"].flatten()[:56].all()


def test_masked_parameters_count_as_zeros(model):
    apply_masks(model, {"0.weight": torch.tensor([[False, True], [True, True]])})
    assert magnitude_masks(model, 1 / 3)["0.weight"].tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(("keep", "scope", "message"), [(0, "layer", "keep"), (1.5, "layer", "keep"), (0.5, "all", "scope")])
def test_wrong_options(model, keep, scope, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        magnitude_masks(model, keep, scope=scope)


def test_parameters_that_are_not_finite_are_named_and_counted(model):
    model[2].weight.data[0, 1] = float("nan")
    with pytest.raises(ValueError, match=r"2\.weight holds 1 values"):
        magnitude_masks(model, 0.5)
    with pytest.raises(ValueError, match="at least one Linear"):
        magnitude_masks(nn.ReLU(), 0.5)

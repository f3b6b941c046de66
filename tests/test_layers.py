"""Which layers are found: names, patterns, types, tied weights, and what is refused."""

import pytest
import torch
from torch import nn

from nnrelief_kernels.layers import find_layers, matching, unwrap


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[5].weight = model[4].weight
    return model


@pytest.mark.parametrize(
    ("layers", "exclude", "expected"),
    [
        (None, (), ["0", "3", "4"]),
        (["0", "4"], (), ["0", "4"]),
        (["[35]"], (), ["3", "4"]),  # the weight of 5 goes by the name of its first holder
        ([nn.Linear], (), ["3", "4"]),
        ([nn.Conv2d, "3"], (), ["0", "3"]),
        (None, ["5"], ["0", "3"]),  # and stays whole where one of its holders is excluded
        (None, [nn.Linear], ["0"]),
        (["*"], ["0", nn.Linear], []),
    ],
)
def test_chosen_by_name_pattern_and_type(model, layers, exclude, expected):
    assert list(find_layers(model, layers, exclude)) == expected


def test_layers_that_share_a_weight_are_one(model):
    assert find_layers(model)["4"] == (model[4], model[5])


@pytest.mark.parametrize("argument", ["layers", "exclude"])
def test_names_that_fit_nothing_are_told_with_what_is_near(model, argument):
    with pytest.raises(ValueError, match=rf"{argument} names 'fc\*'.*near it: \['0', '3', '4', '5'\]"):
        find_layers(model, **{argument: ["fc*"]})
    with pytest.raises(ValueError, match="names '1'"):  # a ReLU
        find_layers(model, **{argument: ["1"]})


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions_are_refused_until_they_are_excluded(kind):
    model = nn.ModuleDict({"down": nn.Linear(2, 2), "up": kind(2, 2, 2)})
    with pytest.raises(ValueError, match=rf"'up' is a {kind.__name__}.*exclude=\['up'\]"):
        find_layers(model)
    assert list(find_layers(model, exclude=["up"])) == ["down"]
    assert list(find_layers(model, [nn.Linear])) == ["down"]


def test_the_first_pattern_that_fits_counts():
    names = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "fc"]
    found = matching({"layer1.0.*": 0.5, "layer*": 0.7, "fc": 0.9}, names, "alphas")
    assert found == {"layer1.0.conv1": 0.5, "layer1.1.conv1": 0.7, "fc": 0.9}
    with pytest.raises(ValueError, match="alphas names 'layer2"):
        matching({"layer2.*": 0.5}, names, "alphas")


def test_wrappers_are_taken_off(model):
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(model) is model
    with torch.device("meta"):
        assert find_layers(nn.Linear(2, 2)).keys() == {""}

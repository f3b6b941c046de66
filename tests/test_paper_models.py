"""The publication's networks: their sizes, what they take, and that published weights fit."""

import pytest
import torch
import torch.nn.functional as F

from nnrelief_kernels.paper.models import MODELS, LeNet5, load_published
from tests.data import FOLDER, needs_data

MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [
        ("lenet300-100", MNIST, 266_610),
        ("lenet5", MNIST, 431_080),
        ("resnet20", CIFAR, 269_722),
        ("resnet32", CIFAR, 464_154),
        ("resnet44", CIFAR, 658_586),
        ("resnet56", CIFAR, 853_018),
        ("resnet18", TINY, 690_266),
        ("vgg-like", CIFAR, 14_990_922),
        ("vgg13", CIFAR, 9_941_322),
        ("vgg16", CIFAR, 15_253_578),
        ("vgg19", CIFAR, 20_565_834),
    ],
)
def test_sizes(name, image, parameters):
    model = MODELS[name](image, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.rand(2, *image)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet300-100", "lenet5"])
def test_weights_are_he_initialised_and_biases_as_torch_draws_them(name):
    layer = MODELS[name](MNIST, 10).fc1
    assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.03)
    bound = layer.in_features**-0.5
    assert 0.9 * bound < float(layer.bias.detach().abs().max()) <= bound


def test_lenet5_cuts_its_maps_at_zero_unless_it_is_caffes():
    x = torch.rand(2, *MNIST)
    for conv_relu in (True, False):
        model = LeNet5(conv_relu=conv_relu)
        maps = x
        for conv in (model.conv1, model.conv2):
            maps = F.conv2d(maps, conv.weight, conv.bias)
            maps = F.max_pool2d(maps.relu() if conv_relu else maps, 2)
        assert torch.equal(model(x), model.fc2(model.fc1(maps.flatten(1)).relu()))


def test_vgg_halves_large_images_in_its_first_convolution():
    model = MODELS["vgg-like"](TINY, 200)
    assert model.features[0].stride == (2, 2)
    assert model.eval()(torch.rand(2, *TINY)).shape == (2, 200)
    with pytest.raises(ValueError, match="32 x 32"):
        MODELS["vgg-like"]((3, 16, 16), 10)


def test_shortcuts_have_no_parameters_and_pad_with_zeros():
    block = MODELS["resnet20"](CIFAR, 10).layer2[0]
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(block.shortcut(x), expected)


@needs_data
@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet56", "resnet56-4bfd9763.th")])
def test_published_weights_fit(name, file):
    path = FOLDER / "weights" / "resnet_cifar10" / file
    model = load_published(MODELS[name](CIFAR, 10), path)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(model.linear.weight, state["module.linear.weight"])
    with pytest.raises(ValueError, match="does not fit"):
        load_published(MODELS["resnet32"](CIFAR, 10), path)

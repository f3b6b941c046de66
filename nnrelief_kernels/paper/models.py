"""The networks of the publication, weights He-initialised (appendix A of Dekhovich et al. 2024).

It says nothing of biases: they are drawn as torch does by default, as in the authors' scripts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet300100(nn.Module):
    """inputs-300-100-classes, ReLU between; takes (N, ...) and flattens it. 266,610 parameters on MNIST."""

    def __init__(self, image: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        inputs = 1
        for size in image:
            inputs *= size
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """The Caffe LeNet-5: 20 and 50 kernels of 5 x 5, each with 2 x 2 max pooling, then 500 neurons. 431,080 on MNIST.

    Args:
        conv_relu: ReLU behind the convolutions as well, as in the authors' scripts; Caffe's own network has none there.
    """

    def __init__(self, image: tuple[int, ...] = (1, 28, 28), classes: int = 10, conv_relu: bool = True) -> None:
        super().__init__()
        channels, *size = image
        left = [((s - 4) // 2 - 4) // 2 for s in size]
        if len(size) != 2 or min(left) < 1:
            raise ValueError(f"image must be (channels, height, width) of at least 16 x 16 for LeNet-5, got {image}")
        self.conv_activation = nn.ReLU() if conv_relu else nn.Identity()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * left[0] * left[1], 500)
        self.fc2 = nn.Linear(500, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_activation(F.max_pool2d(self.conv1(x), 2))
        x = self.conv_activation(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


class VGG(nn.Module):
    """3 x 3 convolutions with bias, BatchNorm and ReLU, 2 x 2 max pooling, then fully connected layers with dropout.

    Args:
        image: (channels, height, width) of at least 32 x 32; from 64 x 64 on the first convolution has stride 2.
        classes: outputs.
        blocks: the filters of each convolution, a tuple for every map size.
        hidden: the sizes of the hidden fully connected layers.
    """

    def __init__(
        self, image: tuple[int, ...], classes: int, blocks: Sequence[tuple[int, ...]], hidden: Sequence[int] = (512,)
    ) -> None:
        super().__init__()
        channels, height, width = image
        stride = 2 if min(height, width) >= 64 else 1
        left = [size // stride // 2 ** len(blocks) for size in (height, width)]
        if min(left) < 1:
            raise ValueError(f"image must be (channels, height, width) of at least 32 x 32 for a VGG, got {image}")
        layers: list[nn.Module] = []
        for block in blocks:
            for filters in block:
                layers += [nn.Conv2d(channels, filters, 3, stride, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
                channels, stride = filters, 1
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        inputs, head = channels * left[0] * left[1], list[nn.Module]()
        for units in hidden:
            head += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout()]
            inputs = units
        self.classifier = nn.Sequential(*head, nn.Linear(inputs, classes))
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters: strided, with zeros for the channels it lacks (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR ResNet: one 3 x 3 convolution, stages of basic blocks that halve the map, mean over it, one linear layer.

    Args:
        image: (channels, height, width).
        classes: outputs.
        blocks: basic blocks in each stage.
        widths: channels of each stage.
    """

    def __init__(
        self, image: tuple[int, ...], classes: int, blocks: Sequence[int], widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image[0], widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for stage, (count, outputs) in enumerate(zip(blocks, widths), 1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            layer = [BasicBlock(outputs if i else inputs, outputs, stride) for i, stride in enumerate(strides)]
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
            inputs = outputs
        self.stages = len(widths)
        self.linear = nn.Linear(inputs, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


VGG_LIKE = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
VGG13 = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet300-100": LeNet300100,
    "lenet5": LeNet5,
    "vgg-like": functools.partial(VGG, blocks=VGG_LIKE),
    "vgg13": functools.partial(VGG, blocks=VGG13, hidden=(512, 512)),
    "vgg16": functools.partial(VGG, blocks=VGG_LIKE, hidden=(512, 512)),
    "vgg19": functools.partial(VGG, blocks=VGG19, hidden=(512, 512)),
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2), widths=(16, 32, 64, 128)),
    **{f"resnet{6 * n + 2}": functools.partial(ResNet, blocks=(n, n, n)) for n in (3, 5, 7, 9)},
}
"""By name, each taking an image (channels, height, width) and a number of classes."""


def load_published(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a published checkpoint of a CIFAR ResNet: a `state_dict` whose names start with "module.".

    Raises:
        OSError, ValueError: the file is missing, or its names or shapes are not the model's.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
    return model.eval()


def _he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

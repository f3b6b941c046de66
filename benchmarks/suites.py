"""The layers of five networks with their real shapes; identical layers are one entry with a count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnrelief_kernels.geometry import ConvGeometry, conv_geometry


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer where `size` is empty."""

    name: str
    weight: tuple[int, ...]
    """(C_out, C_in/groups, *kernel) or (out, in)."""
    size: tuple[int, ...] = ()
    """The input map."""
    stride: int = 1
    padding: int = 0
    groups: int = 1
    count: int = 1
    """Layers of the network with this shape."""

    @property
    def geometry(self) -> ConvGeometry:
        """A linear layer is one position under one tap."""
        return conv_geometry(self.size, self.weight[2:], self.stride, self.padding, 1, self.groups)

    @property
    def channels(self) -> int:
        """Input channels or features."""
        return self.weight[1] * self.groups

    def inputs(
        self,
        samples: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> tuple[Tensor, Tensor]:
        """A normal weight and rectified normal activations (samples, channels, *size), the same on every call."""
        generator = torch.Generator(device).manual_seed(0)
        weight = torch.randn(self.weight, generator=generator, device=device).to(dtype)
        acts = torch.randn((samples, self.channels, *self.size), generator=generator, device=device).relu_().to(dtype)
        if acts.ndim == 4:
            weight, acts = weight.contiguous(memory_format=memory_format), acts.contiguous(memory_format=memory_format)
        return weight, acts

    def bytes(self, samples: int, dtype: torch.dtype) -> int:
        """Size of the activations."""
        return samples * self.channels * math.prod(self.size) * dtype.itemsize

    def macs(self, samples: int) -> int:
        """Multiply-adds of the forward pass."""
        return samples * math.prod(self.weight) * self.geometry.positions

    def score_macs(self, samples: int) -> int:
        """Multiply-adds the scores need in the cheapest of their exact forms; roots and what is done once a layer left out.

        Per map: the Gram matrix over all lags (stride 1) or all pairs of taps and its product with every filter, the
        feature maps themselves, or the Gram matrix over pixels instead of taps.
        """
        taps, positions, pixels = self.geometry.taps, self.geometry.positions, math.prod(self.size)
        filters = self.weight[0] // self.groups
        if taps == 1:
            return samples * self.channels * positions
        features, pixel_pairs = taps * (taps + 1) // 2, pixels * (pixels + 1) // 2
        lags = (math.prod(2 * k - 1 for k in self.weight[2:]) + 1) // 2 if self.stride == 1 else features
        gram = positions * lags + filters * features
        return samples * self.channels * min(gram, filters * positions * taps, pixel_pairs * (1 + filters))


@dataclass(frozen=True)
class Suite:
    """The layers of a network, and how many samples to score them on."""

    name: str
    samples: int
    layers: tuple[Layer, ...]


def suite(name: str, samples: int | None = None, device: str = "cpu") -> Suite:
    """A network of `SUITES`; without `samples` as many as suit the device ("cpu" or "cuda")."""
    if name not in SUITES:
        raise ValueError(f"suite must be one of {tuple(SUITES)}, got {name!r}")
    layers, defaults = SUITES[name]
    return Suite(name, samples or defaults[device == "cuda"], _folded(layers()))


def _folded(layers: Iterator[Layer]) -> tuple[Layer, ...]:
    """Identical layers as one, named after the first."""
    found: dict[Layer, Layer] = {}
    for layer in layers:
        shape = replace(layer, name="")
        known = found.get(shape, replace(layer, count=0))
        found[shape] = replace(known, count=known.count + 1)
    return tuple(found.values())


def _conv(
    name: str, c_in: int, c_out: int, size: int, kernel: int, stride: int = 1, padding: int | None = None, groups: int = 1
) -> Layer:
    """A square convolution, padded by half its kernel unless told otherwise."""
    pads = kernel // 2 if padding is None else padding
    return Layer(name, (c_out, c_in // groups, kernel, kernel), (size, size), stride, pads, groups)


def _lenet5() -> Iterator[Layer]:
    """Caffe's LeNet-5 on 28 x 28 digits."""
    yield _conv("conv1", 1, 20, 28, 5, padding=0)
    yield _conv("conv2", 20, 50, 12, 5, padding=0)
    yield Layer("fc1", (500, 800))
    yield Layer("fc2", (10, 500))


def _vgg16_cifar() -> Iterator[Layer]:
    """The convolutions of VGG-16 on 32 x 32 images."""
    c_in, size = 3, 32
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for place in range(1, depth + 1):
            yield _conv(f"conv{block}_{place}", c_in, width, size, 3)
            c_in = width
        size //= 2


def _resnet20_cifar() -> Iterator[Layer]:
    """The convolutions of ResNet-20 on 32 x 32 images; its shortcuts have no weights."""
    yield _conv("conv1", 3, 16, 32, 3)
    c_in, size = 16, 32
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            yield _conv(f"layer{stage}.{block}.conv1", c_in, width, size, 3, stride)
            c_in, size = width, size // stride
            yield _conv(f"layer{stage}.{block}.conv2", width, width, size, 3)


def _resnet50() -> Iterator[Layer]:
    """The convolutions of ResNet-50 v1.5 (the 3 x 3 carries the stride) on 224 x 224 images."""
    yield _conv("conv1", 3, 64, 224, 7, 2)
    c_in, size = 64, 56
    for stage, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            yield _conv(f"{name}.conv1", c_in, width, size, 1)
            yield _conv(f"{name}.conv2", width, width, size, 3, stride)
            if block == 0:
                yield _conv(f"{name}.downsample.0", c_in, 4 * width, size, 1, stride)
            c_in, size = 4 * width, size // stride
            yield _conv(f"{name}.conv3", width, 4 * width, size, 1)


def _mobilenet_v2() -> Iterator[Layer]:
    """The convolutions of MobileNetV2 on 224 x 224 images."""
    yield _conv("features.0.0", 3, 32, 224, 3, 2)
    c_in, size, index = 32, 112, 1
    for expand, width, depth, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ]:  # fmt: skip
        for block in range(depth):
            name, stride, hidden = f"features.{index}.conv", first if block == 0 else 1, expand * c_in
            if expand > 1:
                yield _conv(f"{name}.0.0", c_in, hidden, size, 1)
            yield _conv(f"{name}.{int(expand > 1)}.0", hidden, hidden, size, 3, stride, groups=hidden)
            size //= stride
            yield _conv(f"{name}.{1 + int(expand > 1)}", hidden, width, size, 1)
            c_in, index = width, index + 1
    yield _conv(f"features.{index}.0", c_in, 1280, size, 1)


SUITES = {
    "lenet5": (_lenet5, (256, 4096)),
    "vgg16_cifar": (_vgg16_cifar, (128, 1024)),
    "resnet20_cifar": (_resnet20_cifar, (128, 1024)),
    "resnet50": (_resnet50, (8, 256)),
    "mobilenet_v2": (_mobilenet_v2, (32, 256)),
}
"""The layers of each network, and how many samples to score them on: on a CPU, on a GPU."""

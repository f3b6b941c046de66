"""The LeNets of the publication, He-initialised (appendix A of Dekhovich et al. 2024)."""

from __future__ import annotations

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
    """The Caffe LeNet-5: 20 and 50 kernels of 5 x 5, each with 2 x 2 max pooling, then 500 neurons. 431,080 on MNIST."""

    def __init__(self, image: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> None:
        super().__init__()
        channels, *size = image
        left = [((s - 4) // 2 - 4) // 2 for s in size]
        if len(size) != 2 or min(left) < 1:
            raise ValueError(f"image must be (channels, height, width) of at least 16 x 16 for LeNet-5, got {image}")
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * left[0] * left[1], 500)
        self.fc2 = nn.Linear(500, classes)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


MODELS: dict[str, type[LeNet300100] | type[LeNet5]] = {"lenet300-100": LeNet300100, "lenet5": LeNet5}


def _he(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

"""The publication's data sets by name: an npz file, what torchvision downloads, or Tiny-ImageNet's own folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Dataset, digits, from_npz

IMAGES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "tiny-imagenet": (3, 64, 64)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of colour images, as the published CIFAR ResNets take them."""
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def load_named(name: str, folder: Path) -> Dataset:
    """A data set of the publication, colour images normalised with `MEAN` and `STD`.

    Args:
        name: one of `IMAGES`.
        folder: holds NAME.npz (as `from_npz` takes it), or tiny-imagenet-200/; else torchvision downloads into it.

    Raises:
        ValueError: the data is not there and cannot be had; the message says what would help.
    """
    if (folder / f"{name}.npz").is_file():
        data = from_npz(folder / f"{name}.npz")
    elif name == "tiny-imagenet":
        data = _tiny_imagenet(folder / "tiny-imagenet-200")
    else:
        data = _torchvision(name, folder)
    return data if data.image[0] == 1 else normalised(data)


def enlarged_digits(name: str, images: int = 24) -> Dataset:
    """scikit-learn's digits in the shape of the data set `name`: a small stand-in for smoke runs."""
    channels, *size = IMAGES[name]
    data = digits()
    x_train, x_test = (
        F.interpolate(x[:images], size, mode="bilinear").repeat(1, channels, 1, 1) for x in (data.x_train, data.x_test)
    )
    return Dataset(f"digits as {name}", x_train, data.y_train[:images], x_test, data.y_test[:images])


def normalised(data: Dataset) -> Dataset:
    """Colour images less `MEAN`, over `STD`."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return Dataset(data.name, (data.x_train - mean) / std, data.y_train, (data.x_test - mean) / std, data.y_test)


def _torchvision(name: str, folder: Path) -> Dataset:
    try:
        import torchvision.datasets
    except ImportError as error:
        raise ValueError(
            f"no {name}.npz in {str(folder)!r}: put one there, or pip install torchvision to download it"
        ) from error
    make = getattr(torchvision.datasets, TORCHVISION[name])
    parts = [make(str(folder), train=train, download=True) for train in (True, False)]
    images = [_pixels(np.asarray(part.data)) for part in parts]
    labels = [torch.as_tensor(part.targets, dtype=torch.int64) for part in parts]
    return Dataset(name, images[0], labels[0], images[1], labels[1])


def _tiny_imagenet(folder: Path) -> Dataset:
    """200 classes of 500 training images, and the 50 validation images of each as the test."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("Tiny-ImageNet's images need Pillow: pip install pillow") from error
    if not (folder / "wnids.txt").is_file():
        raise ValueError(f"no Tiny-ImageNet in {str(folder)!r}: unpack tiny-imagenet-200.zip there")
    classes = {name: number for number, name in enumerate((folder / "wnids.txt").read_text().split())}
    train = [(path, number) for name, number in classes.items() for path in sorted((folder / "train" / name).rglob("*.JPEG"))]
    lines = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    test = [(folder / "val" / "images" / line[0], classes[line[1]]) for line in lines]

    def read(part: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in part])
        return _pixels(images), torch.tensor([number for _, number in part])

    return Dataset("tiny-imagenet", *read(train), *read(test))


def _pixels(images: npt.NDArray[np.uint8]) -> Tensor:
    """(N, H, W) or (N, H, W, 3) bytes to (N, C, H, W) in [0, 1]."""
    x = torch.from_numpy(images).float() / 255
    return x[:, None] if x.ndim == 3 else x.movedim(3, 1).contiguous()

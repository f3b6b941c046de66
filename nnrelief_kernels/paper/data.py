"""Images and labels in memory: scikit-learn's digits, or any npz file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """Images (N, C, H, W) float32, labels (N,) int64."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def image(self) -> tuple[int, ...]:
        return tuple(self.x_train.shape[1:])

    @property
    def classes(self) -> int:
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return Dataset(self.name, *(getattr(self, key).to(device) for key in KEYS))

    def pixels(self, which: Tensor) -> Dataset:
        """Images (N, len(which)): of the flattened ones, the values at the indices `which`."""
        x_train, x_test = (x.flatten(1).index_select(1, which) for x in (self.x_train, self.x_test))
        return Dataset(self.name, x_train, self.y_train, x_test, self.y_test)

    def epoch(self, batch: int, shuffle: bool = True, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images once, in batches on their device.

        Args:
            shuffle: a random order from torch's global generator.
            augment: each image padded by 4, cropped at random and flipped with probability 1/2.
        """
        x, y = self.x_train, self.y_train
        if shuffle:
            order = torch.randperm(len(x)).to(x.device)
            x, y = x.index_select(0, order), y.index_select(0, order)  # once, so that a batch is a view
        for images, labels in zip(torch.split(x, batch), torch.split(y, batch)):
            yield (augmented(images) if augment else images), labels

    def pruning_set(self, samples: int = 1000, seed: int = 0) -> list[Tensor]:
        """Random training images in batches of 250, the set on which connections are scored."""
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed))
        chosen = self.x_train[order[:samples]]
        return [chosen[i : i + 250] for i in range(0, len(chosen), 250)]


def augmented(x: Tensor, padding: int = 4) -> Tensor:
    """Images (N, C, H, W), each shifted by up to `padding` pixels over zeros and flipped with probability 1/2."""
    n, _, height, width = x.shape
    windows = F.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = torch.randint(2 * padding + 1, (2, n), device=x.device)
    cropped = windows[torch.arange(n, device=x.device), :, rows, columns]
    return torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, cropped.flip(3), cropped)


def load(source: str) -> Dataset:
    """ "digits" or the path of an npz file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or what it holds is not a data set; the message names the key.
    """
    return digits() if source == "digits" else from_npz(source)


def digits() -> Dataset:
    """The 1,797 8 x 8 digits that scikit-learn ships, pixels in [0, 1]; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("data 'digits' needs scikit-learn: pip install 'nnrelief-kernels[data]'") from error
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    test = torch.arange(len(x)) % 5 == 0
    return Dataset("digits", x[~test], y[~test], x[test], y[test])


def from_npz(path: str | Path) -> Dataset:
    """Images (N, H, W), (N, H, W, 1 or 3) or (N, C, H, W), uint8 (scaled to [0, 1]) or float; integer labels (N,)."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in KEYS if key in file}
    except (zipfile.BadZipFile, OSError, ValueError, AttributeError, EOFError) as error:
        raise ValueError(f"{path} is not an npz file of plain arrays: {error}") from error
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"{path} must hold {', '.join(KEYS)}; missing: {', '.join(missing)}")
    x_train, x_test = (_images(arrays[key], f"{key} of {path}") for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"{path}: x_train holds images {tuple(x_train.shape[1:])}, x_test {tuple(x_test.shape[1:])}")
    y_train, y_test = (_labels(arrays[f"y_{s}"], len(x), f"y_{s} of {path}") for s, x in (("train", x_train), ("test", x_test)))
    return Dataset(Path(path).stem, x_train, y_train, x_test, y_test)


def _images(array: npt.NDArray[Any], what: str) -> Tensor:
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(f"{what} must be images (N, H, W), (N, H, W, C) or (N, C, H, W), got shape {array.shape}")
    if array.dtype == np.uint8:
        x = torch.from_numpy(array).float() / 255
    elif array.dtype.kind == "f":
        x = torch.from_numpy(array.astype(np.float32))
    else:
        raise ValueError(f"{what} must be uint8 or float, got {array.dtype}")
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"{what} must be finite, {bad} of {x.numel()} values are NaN or infinite")
    if x.ndim == 3:
        return x[:, None]
    return x.movedim(3, 1).contiguous() if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3) else x


def _labels(array: npt.NDArray[Any], images: int, what: str) -> Tensor:
    if array.shape != (images,) or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"{what} must be {images} integer labels from 0, got shape {array.shape} of {array.dtype}"
            + (f", least {array.min()}" if array.size and array.dtype.kind in "iu" else "")
        )
    return torch.from_numpy(array.astype(np.int64))

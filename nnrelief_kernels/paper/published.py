"""The results that Dekhovich et al. 2024 print, as data; values are "mean" or "mean ± standard deviation"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A row of the publication's own method, and the experiment that reproduces it."""

    network: str
    experiment: str
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table of results after pruning."""

    title: str
    quantities: tuple[str, ...]
    """In %: of "error", "accuracy" (before pruning), its "drop", parameters "kept" or "pruned", and "flops" (pruned)."""
    results: tuple[Result, ...]
    others: tuple[tuple[str, ...], ...] = ()
    """Other methods as printed: network and method, then the quantities."""


def _values(quantities: tuple[str, ...], text: str) -> dict[str, str]:
    return dict(zip(quantities, text.split(" / ")))


_ERROR = ("error", "kept")
_KEPT = ("accuracy", "drop", "kept", "flops")
_PRUNED = ("accuracy", "drop", "pruned", "flops")

_RESNET20_SGD = _values(_PRUNED, "92.25 ± 0.12 / 1.15 ± 0.13 / 63.68 ± 1.52 / 25.85 ± 1.57")
_RESNET56_SGD = _values(_PRUNED, "93.6 ± 0.08 / 1.14 ± 0.22 / 76.2 ± 0.44 / 35.8 ± 2.69")

TABLES = {
    "table1": Table(
        "Table 1: LeNets on MNIST",
        _ERROR,
        (
            Result("LeNet-300-100", "lenet300-100", _values(_ERROR, "1.98 ± 0.07 / 1.51 ± 0.07")),
            Result("LeNet-5", "lenet5", _values(_ERROR, "0.97 ± 0.05 / 0.65 ± 0.02")),
        ),
        (
            ("LeNet-300-100, DNS", "1.99", "1.79"),
            ("LeNet-300-100, L-OBS", "1.96", "1.5"),
            ("LeNet-300-100, SWS", "1.94", "4.3"),
            ("LeNet-300-100, Sparse VD", "1.92", "1.47"),
            ("LeNet-5, DNS", "0.91", "0.93"),
            ("LeNet-5, L-OBS", "1.66", "0.9"),
            ("LeNet-5, SWS", "0.97", "0.5"),
            ("LeNet-5, Sparse VD", "0.75", "0.36"),
        ),
    ),
    "table2": Table(
        "Table 2: VGG-like on CIFAR-10, Adam",
        _KEPT,
        (Result("VGG-like", "vgg-like-cifar10-adam", _values(_KEPT, "92.5 / 0.1 / 1.92 ± 0.02 / 75.5 ± 0.4")),),
        (
            ("Li et al.", "93.25", "-0.15", "36", "34.2"),
            ("Sparse VD", "92.3", "0.0", "2.1", "–"),
            ("BC-GNJ", "91.6", "0.2", "6.7", "55.6"),
            ("BC-GHS", "91.6", "0.6", "5.5", "61.7"),
            ("SNIP", "91.7", "-0.3", "3.0", "–"),
            ("HRank", "93.96", "1.62", "17.9", "65.3"),
            ("CHIP", "93.96", "0.24", "16.7", "66.6"),
        ),
    ),
    "table3": Table(
        "Table 3: VGG-like on Tiny-ImageNet, Adam",
        _KEPT,
        (Result("VGG-like", "vgg-like-tiny-imagenet-adam", _values(_KEPT, "45.63 / 0.03 / 2.32 ± 0.06 / 75 ± 0.32")),),
        (("SNIP", "45.14", "0.87", "5.0", "–"),),
    ),
    "table4": Table(
        "Table 4: ResNets on CIFAR-10",
        _PRUNED,
        (
            Result("ResNet-20, SGD", "resnet20-cifar10-sgd", _RESNET20_SGD),
            Result("ResNet-20, Adam", "resnet20-cifar10-adam",
                   _values(_PRUNED, "91.83 ± 0.16 / 0.39 ± 0.27 / 68.75 ± 1.26 / 13.81 ± 2.6")),
            Result("ResNet-56, SGD", "resnet56-cifar10-sgd", _RESNET56_SGD),
            Result("ResNet-56, Adam", "resnet56-cifar10-adam",
                   _values(_PRUNED, "92.8 ± 0.08 / 0.03 ± 0.23 / 75.95 ± 0.22 / 32.5 ± 0.31")),
        ),
        (
            ("ResNet-20, SFP", "92.2", "1.37", "30", "42.2"),
            ("ResNet-20, SNLI", "92.0", "1.1", "37.2", "–"),
            ("ResNet-20, SSS", "92.8", "2", "45", "60"),
            ("ResNet-20, CNN-CFC", "92.2", "1.07", "42.75", "41.6"),
            ("ResNet-56, Li-B", "93.04", "-0.02", "13.7", "27.6"),
            ("ResNet-56, SFP", "93.59", "-0.19", "30", "41.1"),
            ("ResNet-56, NISP", "–", "0.03", "42.6", "43.61"),
            ("ResNet-56, CNN-CFC", "93.14", "-0.24", "43.09", "42.78"),
            ("ResNet-56, CHIP", "93.36", "0.09", "42.4", "50"),
            ("ResNet-56, HRank", "93.14", "1.22", "69.74", "70.9"),
            ("ResNet-56, CHIP at higher pruning", "–", "1.21–2.54", "68–72", "72–74"),
        ),
    ),
    "table5": Table(
        "Table 5: ResNets on CIFAR-100",
        _PRUNED,
        (
            Result("ResNet-20, SGD", "resnet20-cifar100-sgd",
                   _values(_PRUNED, "68.75 ± 0.15 / 1.26 ± 0.33 / 54.54 ± 0.24 / 12.49 ± 1.52")),
            Result("ResNet-20, Adam", "resnet20-cifar100-adam",
                   _values(_PRUNED, "67.34 ± 0.2 / 0.41 ± 0.23 / 51.82 ± 0.23 / 3.42 ± 1.21")),
            Result("ResNet-56, SGD", "resnet56-cifar100-sgd",
                   _values(_PRUNED, "71.43 ± 0.16 / 0.43 ± 0.26 / 58.62 ± 0.26 / 31.2 ± 3.09")),
            Result("ResNet-56, Adam", "resnet56-cifar100-adam",
                   _values(_PRUNED, "71.68 ± 0.09 / 0.88 ± 0.12 / 67.72 ± 0.29 / 13.79 ± 0.94")),
        ),
    ),
    "pretrained": Table(
        "Table 4 from published weights in place of the first training",
        _PRUNED,
        (
            Result("ResNet-20, SGD", "resnet20-published", _RESNET20_SGD),
            Result("ResNet-56, SGD", "resnet56-published", _RESNET56_SGD),
        ),
    ),
    "beyond": Table(
        "Beyond Table 1: our own recipe beside the publication's",
        _ERROR,
        (
            Result("LeNet-300-100, ours", "lenet300-100-ours", _values(_ERROR, "1.98 ± 0.07 / 1.51 ± 0.07")),
            Result("LeNet-5, ours", "lenet5-ours", _values(_ERROR, "0.97 ± 0.05 / 0.65 ± 0.02")),
        ),
        (("LeNet-300-100, Sparse VD", "1.92", "1.47"), ("LeNet-5, Sparse VD", "0.75", "0.36")),
    ),
}  # fmt: skip
JACCARD = {"structured": ("0.08", "0.11", "0.16"), "unstructured": ("0.08", "0.18", "0.66")}
"""Table 6, by layer: one step with alpha 0.95 against magnitudes within each layer, and over all layers at once."""
FIRST_STEP_KEPT = "15.5"
"""Percent of LeNet-300-100's parameters after that step."""
ACTIVE = {"importance scores": ("380", "131", "96", "10"), "magnitude over all layers": ("530", "136", "97", "10")}
"""Table 7, by layer, after that step."""

"""The experiments of Dekhovich et al. 2024 (appendix A) as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .training import LENET, Recipe


@dataclass(frozen=True)
class Experiment:
    """What is trained, how it is pruned and which iteration the publication reports."""

    model: str
    data: str
    training: Recipe
    retraining: Recipe
    iterations: int
    chosen: int
    """The iteration that the publication reports."""
    alpha_conv: float = 0.95
    alpha_fc: float = 0.95
    unit_alphas: dict[str, float] = field(default_factory=dict)
    """By layer, the share that the units which stay carry of what the next layer takes: `drop_units`, before retraining."""
    rewind: bool = False
    """Retrain from the initial parameters, not from the surviving ones."""
    samples: int = 1000
    """Training images in the pruning set."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of `prune`."""
    weights: str = ""
    """A published checkpoint to start from, in place of training."""
    distillation: float = 0.0
    """The share of the network before pruning in the labels that it is retrained with."""
    temperature: float = 4.0
    """Divides that network's outputs before the softmax that makes labels of them."""
    later: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What changes: an iteration, and fields of the experiment that have other values from it on."""

    def at(self, iteration: int) -> Experiment:
        """The experiment as it is in an iteration."""
        changes = [fields for first, fields in sorted(self.later.items()) if first <= iteration]
        return dataclasses.replace(self, **{name: value for fields in changes for name, value in fields.items()})

    def authors(self) -> Experiment:
        """What the authors' scripts do differently: score, cut-off, no shuffling, the epoch of the least test error."""

        def theirs(fields: dict[str, Any]) -> dict[str, Any]:
            return {
                name: dataclasses.replace(value, shuffle=False, keep_best=True) if isinstance(value, Recipe) else value
                for name, value in fields.items()
            }

        variant = "l1" if self.data == "mnist" else "norm_of_mean"
        return dataclasses.replace(
            self,
            **theirs({"training": self.training, "retraining": self.retraining}),
            later={first: theirs(fields) for first, fields in self.later.items()},
            options=self.options | {"variant": variant, "compat": "authors"},
        )

    def quick(self) -> Experiment:
        """One epoch and one iteration: shows that everything runs, measures nothing."""
        recipes = {name: getattr(self, name).scaled(1) for name in ("training", "retraining")}
        return dataclasses.replace(self, **recipes, iterations=1, chosen=1, samples=20, weights="")


def _sgd(*rates: tuple[float, int], weight_decay: float = 5e-4) -> Recipe:
    return Recipe(rates, "sgd", weight_decay, augment=True)


def _adam(*rates: tuple[float, int], weight_decay: float = 5e-4) -> Recipe:
    return Recipe(rates, "adam", weight_decay, augment=True)


def _resnet(depth: int, data: str, optimizer: str, chosen: int) -> Experiment:
    if optimizer == "sgd":
        make, rate, training = _sgd, 0.1, _sgd((0.1, 80), (0.01, 40), (0.001, 30))
    else:
        make, rate, training = _adam, 1e-3, _adam((1e-3, 120), (1e-4, 40), (1e-5, 40))
    epochs = (20, 20, 20) if data == "cifar10" else (30, 30, 20)
    retraining = make(*((rate / 10**i, n) for i, n in enumerate(epochs)))
    return Experiment(f"resnet{depth}", data, training, retraining, 10, chosen, alpha_fc=0.99)


def _vgg(
    model: str, data: str, optimizer: str, iterations: int, epochs: tuple[int, ...], weight_decay: float = 5e-4
) -> Experiment:
    make, rate = (_sgd, 0.1) if optimizer == "sgd" else (_adam, 1e-3)
    training, retraining = (
        make(*((rate / 10**i, n) for i, n in enumerate(lengths)), weight_decay=weight_decay)
        for lengths in ((80, 40, 30), epochs)
    )
    samples = 2000 if data == "tiny-imagenet" else 1000
    return Experiment(model, data, training, retraining, iterations, iterations, samples=samples)


RESNETS = {
    f"resnet{depth}-{data}-{optimizer}": _resnet(depth, data, optimizer, chosen)
    for (depth, data), iterations in {
        (20, "cifar10"): (7, 10),
        (56, "cifar10"): (6, 2),
        (20, "cifar100"): (7, 8),
        (56, "cifar100"): (6, 9),
    }.items()
    for optimizer, chosen in zip(("sgd", "adam"), iterations)
}
PUBLISHED_WEIGHTS = {
    f"resnet{depth}-published": dataclasses.replace(RESNETS[f"resnet{depth}-cifar10-sgd"], weights=f"resnet_cifar10/{file}.th")
    for depth, file in {20: "resnet20-12fca82f", 56: "resnet56-4bfd9763"}.items()
}
"""From weights that others have published, where there is no time to train."""
VGG13 = {
    # the publication gives no retraining schedule for it: that of the ResNets on the same data
    f"vgg13-cifar100-{optimizer}-{decay:g}": _vgg("vgg13", "cifar100", optimizer, 5, (30, 30, 20), decay)
    for optimizer in ("adam", "sgd")
    for decay in (5e-4, 1e-4)
}
_COOLING = Recipe(((3e-3, 40), (1e-3, 20), (3e-4, 20), (1e-4, 20), (3e-5, 20)), weight_decay=2e-4)
OURS = {
    "lenet300-100-ours": Experiment(
        "lenet300-100",
        "mnist",
        LENET,
        dataclasses.replace(LENET, weight_decay=1e-4),
        iterations=14,
        chosen=13,
        alpha_conv=0.93,
        alpha_fc=0.93,
        distillation=0.7,
    ),
    "lenet5-ours": Experiment(
        "lenet5",
        "mnist",
        LENET,
        _COOLING.scaled(20),
        iterations=6,
        chosen=4,
        alpha_conv=0.6,
        alpha_fc=0.9,
        unit_alphas={"conv2": 0.97},
        distillation=0.5,
        temperature=2.0,
        later={
            2: {"alpha_conv": 0.3, "alpha_fc": 0.8},
            3: {"alpha_conv": 0.9, "retraining": _COOLING.scaled(40)},
            4: {"alpha_fc": 0.85},
            5: {"alpha_fc": 0.93, "retraining": _COOLING.scaled(80)},
            6: {"alpha_fc": 0.97, "retraining": _COOLING},
        },
    ),
}
"""Fewer parameters at the published error: from the surviving weights, towards what the dense network says. LeNet-5 comes down
to one kernel per filter early, as those are most of what a small one has, and its filters go by what the next layer takes."""
EXPERIMENTS = {
    "lenet300-100": Experiment("lenet300-100", "mnist", LENET, LENET, 15, 11, rewind=True),
    "lenet5": Experiment("lenet5", "mnist", LENET, LENET, 20, 20, alpha_conv=0.9, rewind=True),
    "vgg-like-cifar10-adam": _vgg("vgg-like", "cifar10", "adam", 6, (20, 20, 20)),
    "vgg-like-cifar10-sgd": _vgg("vgg-like", "cifar10", "sgd", 6, (20, 20, 20)),
    "vgg-like-tiny-imagenet-adam": _vgg("vgg-like", "tiny-imagenet", "adam", 5, (20, 20, 10)),
    **VGG13,
    **RESNETS,
    **PUBLISHED_WEIGHTS,
    **OURS,
}

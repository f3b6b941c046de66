"""ResNet-56 on CIFAR-10 pruned by Torch-Pruning to equal FLOPs under different criteria: python -m benchmarks.torch_pruning

The channels inside each residual block are pruned (those between its two convolutions; the option-A shortcuts stay whole), on
1000 random training images, without retraining and after one epoch of it. Each run adds a row to the table.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from nnrelief_kernels.integrations.torch_pruning import ReliefImportance, prune_channels
from nnrelief_kernels.paper.data import Dataset, load
from nnrelief_kernels.paper.models import MODELS, load_published
from nnrelief_kernels.paper.sources import normalised
from nnrelief_kernels.paper.training import error

from .rows import read_rows, write_rows

SCOPES = ("layer", "global", "alpha")
Prune = Callable[[nn.Module, float], None]


@dataclass(frozen=True)
class Row:
    """What one criterion gave; errors in percent of the 10,000 test images, `retrained` empty where it was not asked for."""

    criterion: str
    scope: str
    flops_pruned_percent: float
    parameters_pruned_percent: float
    test_error: float
    retrained: float | None
    seconds: float
    seed: int
    versions: str


def channels_last(data: Dataset) -> Dataset:
    x_train, x_test = (x.contiguous(memory_format=torch.channels_last) for x in (data.x_train, data.x_test))
    return Dataset(data.name, x_train, data.y_train, x_test, data.y_test)


def importance(criterion: str, model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """The criterion as Torch-Pruning ships it, or this package's, calibrated on the images x with labels y."""
    if criterion == "relief":
        return ReliefImportance(model, torch.split(x, 250))
    if criterion == "magnitude":
        return tp.importance.MagnitudeImportance()
    if criterion == "taylor":
        for images, labels in zip(torch.split(x, 250), torch.split(y, 250)):
            torch.autograd.backward(F.cross_entropy(model(images), labels))
        return tp.importance.TaylorImportance()
    found = tp.importance.ActivationImportance()
    with found.compute_importance(model), torch.no_grad():  # it keeps the last batch only
        model(x)
    return found


def by_ratio(ranking: Any, whole: bool) -> Prune:
    """Torch-Pruning's own pruner, the same ratio in every layer or one ranking over all of them."""

    def prune(model: nn.Module, ratio: float) -> None:
        pruner = tp.pruner.BasePruner(
            model, torch.zeros(1, 3, 32, 32), ranking, global_pruning=whole, pruning_ratio=ratio, max_pruning_ratio=0.95,
            ignored_layers=whole_layers(model),
        )  # fmt: skip
        pruner.step()

    return prune


def by_alpha(ranking: ReliefImportance) -> Prune:
    """The share 1 - alpha of each block's signal."""

    def prune(model: nn.Module, ratio: float) -> None:
        prune_channels(model, torch.zeros(1, 3, 32, 32), ranking, 1 - ratio, whole_layers(model))

    return prune


def whole_layers(model: nn.Module) -> list[nn.Module]:
    """The layers whose outputs the shortcuts carry, and the classifier."""
    return [m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not name.endswith(".conv1")]


def to_flops(model: nn.Module, ranking: Any, prune: Callable[[Any], Prune], target: float) -> nn.Module:
    """A copy of the model pruned by the least ratio that takes at least the part `target` of its multiply-adds."""
    low, high, best = 0.0, 0.99, None
    for _ in range(12):
        ratio = (low + high) / 2
        candidate, own = copy.deepcopy((model, ranking))  # rankings hold modules of the model they were made for
        for old, new in zip(model.parameters(), candidate.parameters()):
            new.grad = old.grad  # Taylor's, which a copy leaves out
        prune(own)(candidate, ratio)
        if 1 - _macs(candidate) / _macs(model) >= target:
            high, best = ratio, candidate
        else:
            low = ratio
    if best is None:
        raise ValueError(f"no ratio below 0.99 takes {target:.0%} of the multiply-adds")
    return best


def retrain(model: nn.Module, data: Dataset, seed: int, batch: int = 128) -> None:
    """One epoch of SGD, learning rate from 0.01 to 0, in bfloat16; each batch shifted by up to 4 pixels, maybe flipped."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    order = torch.split(torch.randperm(len(data.x_train), generator=generator), batch)
    model.train()
    for step, which in enumerate(order):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / len(order))
        x = F.pad(data.x_train[which], (4, 4, 4, 4))
        top, left, flip = (int(torch.randint(n, (), generator=generator)) for n in (9, 9, 2))
        x = x[:, :, top : top + 32, left : left + 32]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x.flip(3) if flip else x)
        torch.autograd.backward(F.cross_entropy(out.float(), data.y_train[which]))
        optimizer.step()


def run(arguments: argparse.Namespace) -> Row:
    """One row."""
    start = time.perf_counter()
    data = channels_last(normalised(load(arguments.data)))
    dense = load_published(MODELS["resnet56"]((3, 32, 32), 10), arguments.weights).to(memory_format=torch.channels_last)
    which = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(arguments.seed))[:1000]
    ranking = importance(arguments.criterion, dense, data.x_train[which], data.y_train[which])
    rules = {"layer": lambda r: by_ratio(r, False), "global": lambda r: by_ratio(r, True), "alpha": by_alpha}
    model = to_flops(dense, ranking, rules[arguments.scope], arguments.flops)
    model.zero_grad()
    before = error(model, data.x_test, data.y_test)
    after = None
    if arguments.retrain:
        retrain(model, data, arguments.seed)
        after = error(model, data.x_test, data.y_test)
    parameters = [sum(p.numel() for p in m.parameters()) for m in (dense, model)]
    return Row(
        criterion=arguments.criterion,
        scope=arguments.scope,
        flops_pruned_percent=round(100 * (1 - _macs(model) / _macs(dense)), 2),
        parameters_pruned_percent=round(100 * (1 - parameters[1] / parameters[0]), 2),
        test_error=before,
        retrained=after,
        seconds=round(time.perf_counter() - start, 1),
        seed=arguments.seed,
        versions=f"torch {torch.__version__} torch-pruning {importlib.metadata.version('torch-pruning')}",
    )


def _macs(model: nn.Module) -> float:
    with contextlib.redirect_stdout(None):
        return float(tp.utils.count_ops_and_params(model, torch.zeros(1, 3, 32, 32))[0])


def main() -> None:
    """Add one row to the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_pruning", description=__doc__)
    parser.add_argument("--data", required=True, metavar="NPZ", help="CIFAR-10 with x_train, y_train, x_test, y_test")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the published resnet56 checkpoint")
    parser.add_argument("--criterion", choices=["relief", "magnitude", "taylor", "activation"], required=True)
    parser.add_argument("--scope", choices=SCOPES, default="layer", help="alpha is for relief (default: %(default)s)")
    parser.add_argument("--flops", type=float, default=0.5, help="part of the multiply-adds to take (default: %(default)s)")
    parser.add_argument("--retrain", action="store_true", help="one epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args()
    row = run(arguments)
    rows = read_rows(arguments.out) if arguments.out.exists() else []
    write_rows(arguments.out, [field.name for field in fields(Row)], [*rows, asdict(row)])
    print(row)


if __name__ == "__main__":
    main()

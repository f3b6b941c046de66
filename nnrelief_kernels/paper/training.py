"""Training as appendix A of Dekhovich et al. 2024 sets it, on data that fits in the memory of the device."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import atomic_write
from ..progress import progress as progress_bar
from .compact import Compact, compact
from .data import Dataset


@dataclass(frozen=True)
class Recipe:
    """Cross entropy; `rates` are (learning rate, epochs) in order."""

    rates: tuple[tuple[float, int], ...]
    optimizer: str = "adam"
    """"adam", or "sgd" with momentum 0.9."""
    weight_decay: float = 5e-4
    batch: int = 120
    augment: bool = False
    """Random crops after padding by 4 and horizontal flips."""
    shuffle: bool = True
    """False sees the batches in the same order in every epoch (the authors' scripts)."""
    keep_best: bool = False
    """Ends with the epoch of the least test error (the authors' scripts), not with the last."""

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.rates)

    def scaled(self, epochs: int) -> Recipe:
        """The same schedule in another number of epochs."""
        shares = [round(n * epochs / self.epochs) for _, n in self.rates[:-1]]
        lengths = [*shares, epochs - sum(shares)]
        return dataclasses.replace(self, rates=tuple((rate, n) for (rate, _), n in zip(self.rates, lengths)))


LENET = Recipe(rates=((1e-3, 30), (1e-4, 30)))


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave: mean training loss, test error in percent, and the seconds it took with its test."""

    loss: float
    error: float
    seconds: float


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int | None = None,
    checkpoint: Path | None = None,
    bf16: bool = False,
    compiled: bool = False,
    description: str = "training",
    show: bool = True,
) -> list[Epoch]:
    """Train in place, on the device of `data`; masks stay in force. Weights that decay below 1e-30 end an epoch as zeros.

    Args:
        seed: epoch e draws its batches, augmentation and dropout from torch's global generators after
            ``manual_seed(1000 * seed + e)``, so that a run that goes on takes the same way; None draws from them as they are.
        checkpoint: a file that receives the state after every epoch but the last. If it is there, training goes on from it.
        bf16: compute in bfloat16 where that is safe (autocast).
        compiled: torch.compile with CUDA graphs.
    """
    with compact(model) as plain:
        inputs = data if plain.inputs is None else data.pixels(plain.inputs)
        bar = functools.partial(progress_bar, description=description, show=show)
        return _train(plain, inputs, recipe, seed, checkpoint, bf16, compiled, bar)


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor, batch: int = 2000) -> float:
    """Percent of images whose label is not the largest output; `batch` of them at a time."""
    model.eval()
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    for images, labels in zip(torch.split(x, batch), torch.split(y, batch)):
        wrong += (model(images).argmax(1) != labels).sum()
    return 100 * int(wrong) / len(x)


@torch.no_grad()
def distilled(data: Dataset, teacher: nn.Module, share: float, temperature: float = 4.0, batch: int = 2000) -> Dataset:
    """The same images, labelled (N, classes) with probabilities: (1 - share) of the label, share of what a teacher says.

    The teacher's are softmax(outputs / temperature), as in Hinton et al. 2015.
    """
    teacher.eval()
    outputs = torch.cat([teacher(images) for images in torch.split(data.x_train, batch)])
    labels = F.one_hot(data.y_train, outputs.shape[1]).to(outputs.dtype)
    return dataclasses.replace(data, y_train=labels.lerp((outputs / temperature).softmax(1), share))


def _train(
    plain: Compact,
    data: Dataset,
    recipe: Recipe,
    seed: int | None,
    checkpoint: Path | None,
    bf16: bool,
    compiled: bool,
    bar: Callable[[Iterable[float]], Iterable[float]],
) -> list[Epoch]:
    model, device = plain.model.to(memory_format=torch.channels_last), data.x_train.device
    optimizer = _optimizer(model, recipe)
    masked = [(p, plain.masks[name].to(p.dtype)) for name, p in model.named_parameters() if name in plain.masks]
    forward = torch.compile(model, mode="reduce-overhead") if compiled else model
    done: list[Epoch] = []
    best = model.state_dict()
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        best, done = state["best"], [Epoch(**epoch) for epoch in state["epochs"]]
    rates = [rate for rate, epochs in recipe.rates for _ in range(epochs)]
    for rate in bar(rates[len(done) :]):
        start = time.perf_counter()
        if seed is not None:
            torch.manual_seed(1000 * seed + len(done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        loss = torch.zeros((), device=device)
        for x, y in data.epoch(recipe.batch, recipe.shuffle, recipe.augment):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                mean = F.cross_entropy(forward(x), y)
            torch.autograd.backward(mean)
            optimizer.step()
            if masked:
                with torch.no_grad():
                    torch._foreach_mul_(*zip(*masked))
            loss += mean.detach() * len(x)
        _drop_vanished(optimizer)
        wrong = error(model, data.x_test, data.y_test)
        if all(wrong < epoch.error for epoch in done):
            best = copy.deepcopy(model.state_dict())
        done.append(Epoch(float(loss) / len(data.x_train), wrong, time.perf_counter() - start))
        if checkpoint is not None and len(done) < recipe.epochs:
            _save(checkpoint, {"model": model.state_dict(), "best": best, "optimizer": optimizer.state_dict(),
                               "epochs": [dataclasses.asdict(epoch) for epoch in done]})  # fmt: skip
    if recipe.keep_best:
        model.load_state_dict(best)
    return done


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.Adam(model.parameters(), weight_decay=recipe.weight_decay, fused=True)


@torch.no_grad()
def _drop_vanished(optimizer: torch.optim.Optimizer) -> None:
    """Zero the weights and moments below 1e-30.

    What weight decay shrinks without end would turn denormal and stay so, where many CPUs take tens of times as long for it.
    """
    for parameter, state in optimizer.state.items():
        for tensor in (parameter, *(value for value in state.values() if isinstance(value, Tensor))):
            tensor.masked_fill_(tensor.abs() < 1e-30, 0)


def _save(path: Path, state: dict[str, Any]) -> None:
    data = io.BytesIO()
    torch.save(state, data)
    with atomic_write(path) as file:
        file.write(data.getvalue())

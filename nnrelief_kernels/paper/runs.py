"""One network trained and pruned as an experiment says; a run that was stopped goes on from its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import load_checkpoint
from ..files import atomic_write, save_tensors
from ..history import Iteration, read_history
from ..masks import dense_state
from ..pruning import prune_iteratively
from .data import Dataset
from .experiments import Experiment
from .models import MODELS
from .training import Epoch, Recipe, error, train

HISTORY, EPOCHS, DENSE = "history.jsonl", "epochs.jsonl", "dense.safetensors"


def run(experiment: Experiment, data: Dataset, seed: int, folder: Path, **speed: Any) -> None:
    """Train and prune, writing to `folder`: `HISTORY`, `EPOCHS` and `DENSE` (the network before its pruning).

    Args:
        speed: `bf16`, `compiled` of `train`.
    """
    torch.manual_seed(seed)
    model = MODELS[experiment.model](data.image, data.classes).to(data.x_train.device)
    initial = dense_state(model)
    done = len(load_checkpoint(folder, copy.deepcopy(model)))
    numbers = itertools.count(max(done, 1))

    def fit(network: nn.Module, number: int, recipe: Recipe) -> None:
        state = folder / f"training-{number}.pt"
        seeds = 1000 * seed + number
        epochs = train(network, data, recipe, seed=seeds, checkpoint=state, description=f"training {number}", **speed)
        _record(folder / EPOCHS, number, epochs)
        state.unlink()

    if not done:
        fit(model, 0, experiment.training)
        save_tensors(folder / DENSE, dense_state(model))
    prune_iteratively(
        model,
        data.pruning_set(experiment.samples, seed),
        lambda network: fit(network, next(numbers), experiment.retraining),
        iterations=experiment.iterations,
        rewind=initial if experiment.rewind else None,
        evaluate=lambda network: error(network, data.x_test, data.y_test),
        checkpoint=folder,
        log=folder / HISTORY,
        alpha_conv=experiment.alpha_conv,
        alpha_fc=experiment.alpha_fc,
        **experiment.options,
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """An iteration of a run, with the errors of the epochs after it."""

    seed: int
    iteration: Iteration
    epochs: list[Epoch]

    @property
    def last(self) -> float:
        return self.epochs[-1].error

    @property
    def best(self) -> float:
        """The least test error of any epoch, the one that the authors' scripts keep."""
        return min(epoch.error for epoch in self.epochs)


def steps(folder: Path, seed: int) -> list[Step]:
    """What `run` has written so far; [] where nothing was."""
    if not (folder / HISTORY).exists():
        return []
    epochs: dict[int, list[Epoch]] = {}
    for line in _lines(folder / EPOCHS):
        epochs.setdefault(line.pop("iteration"), []).append(Epoch(**line))
    return [Step(seed, i, epochs[i.iteration]) for i in read_history(folder / HISTORY)]


def _record(path: Path, number: int, epochs: list[Epoch]) -> None:
    """Replace the epochs of iteration `number` and what comes after it."""
    lines = [line for line in _lines(path) if line["iteration"] < number]
    lines += [{"iteration": number, **dataclasses.asdict(epoch)} for epoch in epochs]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""One network trained and pruned as an experiment says; a run that was stopped goes on from its checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import load_checkpoint
from ..files import atomic_write, read_tensors, save_tensors
from ..history import Iteration, read_history
from ..masks import dense_state, load_dense
from ..pruning import prune_iteratively
from .data import Dataset
from .experiments import Experiment
from .models import MODELS, load_published
from .training import Epoch, Recipe, distilled, error, train
from .units import drop_units

HISTORY, EPOCHS, DENSE, SETTINGS = "history.jsonl", "epochs.jsonl", "dense.safetensors", "settings.json"


@dataclasses.dataclass(frozen=True)
class Speed:
    """How a training may be made faster than the publication's; recorded with the run."""

    bf16: bool = False
    compiled: bool = False


def run(
    experiment: Experiment,
    data: Dataset,
    seed: int,
    folder: Path,
    *,
    command: str,
    weights: Path,
    speed: Speed = Speed(),
    iterations: int | None = None,
) -> None:
    """Train and prune, writing to `folder`: `HISTORY`, `EPOCHS`, `DENSE` (the network before its pruning) and `SETTINGS`.

    Args:
        command: what the tables name as the way to these results.
        weights: the folder of published checkpoints.
        iterations: stop after so many; None for the experiment's. 0 trains only.

    Raises:
        ValueError: `folder` holds a run with other settings.
    """
    _check_settings(folder, experiment, seed, speed, command, str(data.x_train.device))
    torch.manual_seed(seed)
    model = MODELS[experiment.model](data.image, data.classes).to(data.x_train.device)
    initial = dense_state(model)
    done = len(load_checkpoint(folder, copy.deepcopy(model)))
    numbers = itertools.count(max(done, 1))

    def fit(network: nn.Module, number: int, recipe: Recipe, data: Dataset) -> None:
        state = folder / f"training-{number}.pt"
        epochs = train(network, data, recipe, seed=1000 * seed + number, checkpoint=state, description=f"training {number}",
                       **dataclasses.asdict(speed))  # fmt: skip
        _record(folder / EPOCHS, number, epochs)
        state.unlink(missing_ok=True)

    if (folder / DENSE).exists():
        load_dense(model, read_tensors((folder / DENSE).read_bytes(), str(folder / DENSE)))
    else:
        if experiment.weights:
            load_published(model, weights / experiment.weights)
        else:
            fit(model, 0, experiment.training, data)
        save_tensors(folder / DENSE, dense_state(model))
    teacher = copy.deepcopy(model)

    @functools.cache
    def labelled(share: float, temperature: float) -> Dataset:
        return distilled(data, teacher, share, temperature) if share else data

    def retrain(network: nn.Module) -> None:
        number = next(numbers)
        now = experiment.at(number)
        if now.unit_alphas:
            drop_units(network, batches, now.unit_alphas)
        fit(network, number, now.retraining, labelled(now.distillation, now.temperature))

    batches = data.pruning_set(experiment.samples, seed)
    wanted = experiment.iterations if iterations is None else iterations
    ends = [*(first - 1 for first in sorted(experiment.later) if first <= wanted), wanted]
    for end in ends if wanted else []:
        now = experiment.at(end)
        prune_iteratively(
            model,
            batches,
            retrain,
            iterations=end,
            rewind=initial if experiment.rewind else None,
            evaluate=lambda network: error(network, data.x_test, data.y_test),
            checkpoint=folder,
            log=folder / HISTORY,
            alpha_conv=now.alpha_conv,
            alpha_fc=now.alpha_fc,
            **now.options,
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """An iteration of a run, with the epochs of its training."""

    iteration: Iteration
    epochs: list[Epoch]

    @property
    def last(self) -> float:
        """The test error after the last epoch."""
        return self.epochs[-1].error if self.epochs else float(self.iteration.error_after or 0)

    @property
    def best(self) -> float:
        """The least test error of any epoch, the one that the authors' scripts keep."""
        return min([epoch.error for epoch in self.epochs], default=self.last)


@dataclasses.dataclass(frozen=True)
class Run:
    """What `run` has written so far."""

    seed: int
    steps: list[Step]
    iterations: int
    chosen: int
    """The iteration that is reported."""
    command: str

    @property
    def reached(self) -> bool:
        return len(self.steps) > self.chosen


def read_run(folder: Path, chosen: int) -> Run | None:
    """The run in a folder, of which a table reports iteration `chosen`; None where no pruning has started."""
    if not (folder / HISTORY).exists():
        return None
    settings = json.loads((folder / SETTINGS).read_text())
    epochs: dict[int, list[Epoch]] = {}
    for line in _lines(folder / EPOCHS):
        epochs.setdefault(line.pop("iteration"), []).append(Epoch(**line))
    steps = [Step(i, epochs.get(i.iteration, [])) for i in read_history(folder / HISTORY)]
    return Run(settings["seed"], steps, settings["experiment"]["iterations"], chosen, settings["command"])


def _check_settings(folder: Path, experiment: Experiment, seed: int, speed: Speed, command: str, device: str) -> None:
    path = folder / SETTINGS
    machine = {"command": command, "device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    asked = json.loads(json.dumps({"experiment": dataclasses.asdict(experiment), "seed": seed, **dataclasses.asdict(speed)}))
    if not path.exists():
        with atomic_write(path) as file:
            file.write(json.dumps(asked | machine, indent=1).encode())
        return
    held = json.loads(path.read_text())
    plain = Experiment(experiment.model, experiment.data, experiment.training, experiment.retraining, 0, 0)
    held["experiment"] = dataclasses.asdict(plain) | held["experiment"]  # settings written before Experiment had a field
    held["experiment"]["chosen"] = experiment.chosen  # changes what is reported, not the run
    if other := [key for key, value in asked.items() if held.get(key) != value]:
        raise ValueError(f"{folder} holds a run with another {other[0]}: name another folder with --out, or remove it")


def _record(path: Path, number: int, epochs: list[Epoch]) -> None:
    """Replace the epochs of iteration `number` and what comes after it."""
    lines = [line for line in _lines(path) if line["iteration"] < number]
    lines += [{"iteration": number, **dataclasses.asdict(epoch)} for epoch in epochs]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""All that a pruning run needs to go on with the same bits: weights, masks, history and random generators, as safetensors."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .distributed import gather, on_first, rank, world
from .files import read_tensors, save_tensors
from .history import Iteration, from_lines, to_lines
from .masks import apply_masks, dense_state, get_masks, load_dense

NAME = "checkpoint.safetensors"


def save_checkpoint(folder: str | Path, model: nn.Module, history: Sequence[Iteration]) -> None:
    """Write `folder`/checkpoint.safetensors, whole or not at all; with several processes rank 0 writes for all.

    Raises:
        OSError: the folder cannot be written, or the disk is full. The checkpoint before this one is still there.
        ValueError: safetensors is not installed.
    """
    tensors = {f"model/{name}": value for name, value in dense_state(model).items()}
    tensors |= {f"masks/{name}": mask.cpu() for name, mask in get_masks(model).items()}
    tensors["history"] = _text(to_lines(history))
    for process, state in enumerate(gather(_random_state())):
        tensors |= {f"random/{process}/{name}": value for name, value in state.items()}
    on_first(lambda: save_tensors(Path(folder) / NAME, tensors))


def load_checkpoint(folder: str | Path, model: nn.Module) -> list[Iteration]:
    """Put masks, weights and random generators back as they were, and return the history; [] where nothing was saved.

    Raises:
        ValueError: it is not a checkpoint of this network, or one of another number of processes.
    """
    path = Path(folder) / NAME
    data = on_first(lambda: path.read_bytes() if path.exists() else None)
    if data is None:
        return []
    tensors = read_tensors(data, str(path))
    try:
        history = from_lines(_string(tensors["history"]))
        saved = {name.split("/")[1] for name in tensors if name.startswith("random/")}
        if len(saved) != world():
            raise ValueError(f"it was written by {len(saved)} processes, this run has {world()}")
        apply_masks(model, _part(tensors, "masks/"))
        load_dense(model, _part(tensors, "model/"))
        _set_random_state(_part(tensors, f"random/{rank()}/"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this network: {error}") from error
    return history


def _random_state() -> dict[str, Tensor]:
    """torch's, numpy's and Python's global generators, which retraining may draw from."""
    numpys: Any = numpy.random.get_state(legacy=False)  # noqa: NPY002
    version, words, gauss = random.getstate()
    others = {"numpy": {**numpys, "state": {"pos": numpys["state"]["pos"]}}, "python": [version, gauss]}
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        **{f"cuda/{index}": state for index, state in enumerate(devices)},
        "numpy": torch.from_numpy(numpys["state"]["key"].astype("int64")),
        "python": torch.tensor(words, dtype=torch.int64),
        "others": _text(json.dumps(others)),
    }


def _set_random_state(state: dict[str, Tensor]) -> None:
    others = json.loads(_string(state["others"]))
    key = {"key": state["numpy"].numpy().astype("uint32"), **others["numpy"]["state"]}
    numpy.random.set_state({**others["numpy"], "state": key})  # noqa: NPY002
    version, gauss = others["python"]
    random.setstate((version, tuple(state["python"].tolist()), gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state[f"cuda/{index}"] for index in range(torch.cuda.device_count())])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _string(tensor: Tensor) -> str:
    return tensor.numpy().tobytes().decode()

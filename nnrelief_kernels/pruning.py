"""Pruning a network by the signal its connections carry: Algorithms 1 and 2 of Dekhovich et al. 2024, once or repeatedly."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from torch import Tensor, nn

from .accumulate import CONVS
from .collect import Collector
from .files import atomic_write
from .masks import Masks, apply_masks, dense_state, get_masks, load_dense
from .measure import Layer, inputs_in_use, layer_chain, measure
from .progress import progress as progress_bar
from .selection import keep_mask

Forward = Callable[[nn.Module, Any], Any]


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    alpha_conv: float = 0.95,
    alpha_fc: float = 0.95,
    layers: Iterable[str | type[nn.Module]] | None = None,
    variant: str = "paper",
    compat: str = "paper",
    min_keep: int = 0,
    backend: str = "auto",
    forward: Forward | None = None,
    drop_unread: bool = True,
) -> Masks:
    """Score every connection in one pass over `batches`, and mask those outside the share alpha of each unit's signal.

    The paper's order: each layer is scored on the activations of the network as it came, before any of its layers is pruned
    here. Masks hold in training whatever the optimizer does, only ever shrink, and fold away with `fold_masks`.

    Args:
        model: pruned in place; its Linear and Conv1d/2d/3d layers, or those named in `layers`.
        batches: the pruning set: an iterable of input tensors, of tuples or lists whose first element is the input, of dicts
            handed over as keyword arguments, or of anything `forward(model, batch)` understands; or one tensor.
        alpha_conv, alpha_fc: the share of its signal each filter or neuron keeps, in (0, 1].
        layers: names or module types; None for all.
        variant, backend: as in `score_conv`.
        compat, min_keep: as in `keep_mask`.
        forward: runs the model on a batch.
        drop_unread: where the layers form a chain, a unit that nothing reads any more loses its own connections as well,
            from the last layer to the first. The outputs do not change (the backward pass of the authors' scripts).

    Returns:
        The masks now in force: parameter name to a bool tensor that broadcasts to the parameter, True where it stays.

    Raises:
        ValueError: an option is out of range, `batches` is empty, a layer is unknown, or a layer's scores are not finite (its
            name and how many). The model is then as it was.
    """
    options = {"compat": compat, "min_keep": min_keep}
    for name, alpha in (("alpha_conv", alpha_conv), ("alpha_fc", alpha_fc)):
        _check(name, alpha, options)
    with Collector(model, layers, variant=variant, backend=backend) as collector:
        collector.run([batches] if isinstance(batches, Tensor) else batches, forward)
    if collector.uncalled:
        warnings.warn(f"layers never called, left as they are: {', '.join(collector.uncalled)}", stacklevel=2)
    masks: Masks = {}
    for name, scores in collector.scores().items():
        layer = cast(Layer, model.get_submodule(name))
        try:
            keep = keep_mask(scores, alpha_fc if isinstance(layer, nn.Linear) else alpha_conv, compat=compat, min_keep=min_keep)
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot be pruned: {error}") from error
        prefix = f"{name}." if name else ""
        if layer.bias is not None:
            masks[f"{prefix}bias"] = keep[:, -1]
            keep = keep[:, :-1]
        masks[f"{prefix}weight"] = keep.reshape(*keep.shape, *(1,) * (layer.weight.ndim - 2))
    if drop_unread:
        _drop_unread(model, masks)
    apply_masks(model, masks)
    return get_masks(model)


@dataclass(frozen=True)
class Iteration:
    """One line of a pruning history. Iteration 0 is the network before pruning; errors are what `evaluate` returned."""

    iteration: int
    error_before: float | None
    """After pruning, before retraining."""
    error_after: float | None
    parameters: int
    kept: int
    kept_percent: float
    compression: float
    flops_pruned_percent: float
    active: dict[str, int]
    """Units with at least one connection in and one out (`measure`)."""
    kept_per_layer: dict[str, float]
    """Percent of each layer's connections and biases."""
    seconds: float


def prune_iteratively(
    model: nn.Module,
    batches: Iterable[Any],
    retrain: Callable[[nn.Module], Any],
    *,
    iterations: int,
    rewind: Mapping[str, Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> list[Iteration]:
    """Repeat score, prune, retrain (the iterative procedure of Section 2 of Dekhovich et al. 2024); masks only shrink.

    Args:
        model: the trained network, pruned in place.
        batches: the pruning set as in `prune`, iterable more than once.
        retrain: trains the masked network in place. It may draw from torch's, numpy's and Python's global generators.
        iterations: how many, at least 1.
        rewind: a plain `state_dict` that weights and buffers return to before each retraining (the paper's LeNets: the
            initial parameters); None fine-tunes what the pruning left.
        evaluate: gives the error to record, before and after each retraining.
        checkpoint: a folder that receives the state after every iteration, written atomically. If it already holds one, the
            run goes on from there and ends with the same bits as one that was never stopped.
        log: a file that receives the history as JSON lines.
        progress: show a bar where tqdm is installed.
        options: `prune`'s.

    Returns:
        The history, iteration 0 first.

    Raises:
        TypeError: `batches` can be read only once.
        ValueError: as in `prune`; or the checkpoint is not one of this network.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations!r}")
    if iter(batches) is batches:
        raise TypeError(f"batches must be iterable more than once, got {type(batches).__name__}: pass a list or a loader")
    file = Path(checkpoint) / "checkpoint.pt" if checkpoint is not None else None
    history = _resume(model, file) if file is not None and file.exists() else []
    if not history:
        start = time.perf_counter()
        error = evaluate(model) if evaluate else None
        history.append(_iteration(0, model, batches, None, error, start, options.get("forward")))
        _save(model, history, file, log)
    first = len(history)
    for number in progress_bar(range(first, iterations + 1), "pruning", progress):
        start = time.perf_counter()
        prune(model, batches, **options)
        before = evaluate(model) if evaluate else None
        if rewind is not None:
            load_dense(model, rewind)
        retrain(model)
        after = evaluate(model) if evaluate else None
        history.append(_iteration(number, model, batches, before, after, start, options.get("forward")))
        _save(model, history, file, log)
    return history


def write_history(history: Iterable[Iteration], path: str | Path) -> None:
    """The history as JSON lines, atomically."""
    lines = [json.dumps(dataclasses.asdict(iteration)) + "\n" for iteration in history]
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


def read_history(path: str | Path) -> list[Iteration]:
    """The history in a JSON-lines file."""
    return [Iteration(**json.loads(line)) for line in Path(path).read_text().splitlines()]


def _drop_unread(model: nn.Module, masks: Masks) -> None:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS))}
    for before, after in reversed(list(itertools.pairwise(layer_chain(model, layers)))):
        weight = layers[after].weight
        left = (weight != 0) & masks.get(f"{after}.weight", torch.ones_like(weight, dtype=torch.bool))
        read = inputs_in_use(layers[after], left.flatten(2).any(2) if left.ndim > 2 else left)
        read = read.reshape(len(layers[before].weight), -1).any(1)
        for parameter in ("weight", "bias"):
            if (mask := masks.get(f"{before}.{parameter}")) is not None:
                mask &= read.reshape(-1, *(1,) * (mask.ndim - 1))


def _check(name: str, alpha: float, options: dict[str, Any]) -> None:
    try:
        keep_mask(torch.ones(1, 1), alpha, **options)
    except ValueError as error:
        raise ValueError(str(error).replace("alpha", name, 1)) from None


def _iteration(
    number: int,
    model: nn.Module,
    batches: Iterable[Any],
    before: float | None,
    after: float | None,
    start: float,
    forward: Forward | None,
) -> Iteration:
    example = batches if isinstance(batches, Tensor) else next(iter(batches))
    found = measure(model, example, forward)
    return Iteration(
        iteration=number,
        error_before=before,
        error_after=after,
        parameters=found.parameters,
        kept=found.kept,
        kept_percent=found.kept_percent,
        compression=found.compression,
        flops_pruned_percent=found.flops_pruned_percent,
        active=found.active,
        kept_per_layer=found.kept_per_layer,
        seconds=time.perf_counter() - start,
    )


def _save(model: nn.Module, history: list[Iteration], file: Path | None, log: str | Path | None) -> None:
    if log is not None:
        write_history(history, log)
    if file is None:
        return
    numpy_state = numpy.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what retrain may draw from
    key = torch.from_numpy(numpy_state["state"]["key"].astype("int64"))
    state = {
        "history": [dataclasses.asdict(iteration) for iteration in history],
        "masks": get_masks(model),
        "model": dense_state(model),
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
            "python": random.getstate(),
        },
    }
    with atomic_write(file) as stream:
        torch.save(state, stream)


def _resume(model: nn.Module, file: Path) -> list[Iteration]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        history = [Iteration(**iteration) for iteration in state["history"]]
        apply_masks(model, state["masks"])
        load_dense(model, state["model"])
        generators = state["random"]
        key = generators["numpy"]["state"]["key"].numpy().astype("uint32")
        numpy.random.set_state({**generators["numpy"], "state": {**generators["numpy"]["state"], "key": key}})  # noqa: NPY002
        random.setstate(generators["python"])
        torch.set_rng_state(generators["torch"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(generators["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is not a checkpoint of this network: {error}") from error
    return history

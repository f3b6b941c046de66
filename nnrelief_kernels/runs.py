"""The runs behind `nnrelief demo`, `prune` and `score`; under torchrun every process takes its share of the pruning set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import NAME as CHECKPOINT
from .collect import Collector
from .distributed import in_use, launched, on_first, rank, world
from .files import check_writable, read_tensors, require_safetensors, save_tensors
from .history import Iteration
from .masks import dense_state, fold_masks, get_masks, load_dense, save_masks
from .paper.data import Dataset, load
from .paper.models import MODELS
from .paper.training import LENET, Recipe, error, train
from .plots import plot_architecture, plot_history
from .pruning import prune_iteratively
from .selection import keep_mask


def demo(arguments: argparse.Namespace) -> None:
    """Prune 64-300-100-10 on scikit-learn's digits."""
    _run(arguments.out, arguments.seed, "lenet300-100", load("digits"), LENET.scaled(30), iterations=6, samples=1000)


def prune(arguments: argparse.Namespace) -> None:
    """Prune a LeNet iteratively.

    Raises:
        ValueError: `--out` holds a run and `--resume` is not given, or what `prune_iteratively` refuses.
    """
    data = load(arguments.data)
    with launched():
        if on_first((arguments.out / CHECKPOINT).exists) and not arguments.resume:
            raise ValueError(f"{arguments.out} already holds a run: add --resume to go on with it, or name another folder")
        _run(
            arguments.out,
            arguments.seed,
            arguments.model,
            data,
            LENET.scaled(arguments.epochs),
            iterations=arguments.iterations,
            samples=arguments.samples,
            rewind=not arguments.no_rewind,
            checkpoint=True,
            alpha_conv=arguments.alpha_conv,
            alpha_fc=arguments.alpha_fc,
            alphas=dict(arguments.alpha),
            exclude=arguments.exclude,
            propagate=arguments.propagate,
            variant=arguments.variant,
            compat=arguments.compat,
        )


def _run(
    out: Path,
    seed: int,
    model_name: str,
    data: Dataset,
    recipe: Recipe,
    *,
    iterations: int,
    samples: int,
    rewind: bool = True,
    checkpoint: bool = False,
    **options: Any,
) -> None:
    torch.manual_seed(seed)
    model = MODELS[model_name](data.image, data.classes)
    require_safetensors()  # told before the training, not after; and so is a folder that cannot be written
    on_first(lambda: check_writable(out))
    initial = dense_state(model)
    if not (checkpoint and on_first((out / CHECKPOINT).exists)):
        _train(model, data, recipe, "training")
    history = prune_iteratively(
        model,
        data.pruning_set(samples, seed)[rank() :: world()],
        lambda pruned: _train(pruned, data, recipe, "retraining"),
        iterations=iterations,
        rewind=initial if rewind else None,
        evaluate=lambda m: error(m, data.x_test, data.y_test),
        checkpoint=out if checkpoint else None,
        log=out / "history.jsonl",
        **options,
    )
    if rank() > 0:
        return
    print(table(history))
    title = f"{model_name} on {data.name}"
    plot_history(history, out / "history.png", title)
    plot_architecture(history, out / "architecture.png", title)
    save_masks(get_masks(model), out / "masks.safetensors")
    fold_masks(model)
    save_tensors(out / "pruned.safetensors", model.state_dict())
    print(f"written to {out}: history.jsonl, history.png, architecture.png, masks.safetensors, pruned.safetensors")


def _train(model: nn.Module, data: Dataset, recipe: Recipe, description: str) -> None:
    """Rank 0 trains and the others take its weights, which rounding would tell apart if each trained its own."""

    def here() -> dict[str, Tensor]:
        train(model, data, recipe, description=description)
        return dense_state(model)

    if in_use():
        load_dense(model, on_first(here))
    else:
        here()


def table(history: Sequence[Iteration]) -> str:
    """The history as text, one line per iteration."""
    lines = ["iteration  error before -> after retraining  kept %  compression  FLOPs pruned %  active units"]
    for i in history:
        before = "" if i.error_before is None else f"{i.error_before:.2f} ->"
        after = "" if i.error_after is None else f"{i.error_after:.2f} %"
        units = "-".join(str(count) for count in i.active.values())
        lines.append(
            f"{i.iteration:9}  {before:>13} {after:>17}  {i.kept_percent:6.2f}  {i.compression:10.1f}x  "
            f"{i.flops_pruned_percent:14.1f}  {units}"
        )
    return "\n".join(lines)


def score(arguments: argparse.Namespace) -> None:
    """Score a trained LeNet, print how few of its connections carry the signal.

    Raises:
        ValueError: weights or data cannot be read, or a score is not finite.
    """
    data = load(arguments.data)
    model = MODELS[arguments.model](data.image, data.classes)
    model.load_state_dict(_weights(arguments.weights))
    with Collector(model, variant=arguments.variant) as collector:
        collector.run(data.pruning_set(arguments.samples))
    scores = collector.scores()
    print("layer   connections  kept at alpha 0.95")
    for name, layer_scores in scores.items():
        try:
            kept = keep_mask(layer_scores, 0.95)
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem
        print(f"{name:8}{kept.numel():11}  {100 * float(kept.double().mean()):.2f} %")
    if arguments.out:
        save_tensors(arguments.out, scores)
        print(f"scores written to {arguments.out}")


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist")
    if path.suffix == ".safetensors":
        return read_tensors(path.read_bytes(), str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpickling and parsing raise types of their own
        raise ValueError(f"{path} is not a readable state_dict: {str(problem).splitlines()[0]}") from problem
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a state_dict, names to tensors")
    return state

"""Pruning a network by the signal its connections carry: Algorithms 1 and 2 of Dekhovich et al. 2024, once or repeatedly."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, save_checkpoint
from .collect import Collector, Forward, as_batches
from .dead import Dead, apply_dead, find_dead
from .distributed import broadcast, gather, in_use, on_first, rank
from .history import Iteration, write_history
from .layers import Layer, Which, find_layers, matching, unwrap
from .masks import Masks, apply_masks, get_masks, load_dense
from .measure import measure
from .progress import progress as progress_bar
from .selection import keep_mask
from .tracing import NotTraceable

PROPAGATE = ("original", "pruned")


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    alpha_conv: float = 0.95,
    alpha_fc: float = 0.95,
    alphas: Mapping[str, float] | None = None,
    layers: Iterable[Which] | None = None,
    exclude: Iterable[Which] = (),
    propagate: str = "original",
    variant: str = "paper",
    compat: str = "paper",
    min_keep: int = 0,
    backend: str = "auto",
    forward: Forward | None = None,
    shared: bool | None = None,
    drop_unread: bool = True,
) -> Masks:
    """Score every connection over `batches`, and mask those outside the share alpha of each unit's signal.

    Masks hold in training whatever the optimizer does, only ever shrink, and fold away with `fold_masks`. A layer that is
    called several times is scored on all that enters it; a weight that several layers share is scored once and has one mask;
    a layer that is never called stays as it is, with a warning that names it. `nn.MultiheadAttention`'s output projection
    is pruned, its input projection is no layer and stays.

    Args:
        model: pruned in place; its Linear and Conv1d/2d/3d layers. Of DistributedDataParallel, the module inside.
        batches: the pruning set: an iterable of input tensors, of tuples or lists whose first element is the input, of dicts
            handed over as keyword arguments, or of anything `forward(model, batch)` understands; or one tensor.
        alpha_conv, alpha_fc: the share of its signal each filter or neuron keeps, in (0, 1].
        alphas: other shares by layer name or pattern of names ("layer3.*"); the first that fits counts.
        layers, exclude: names, patterns of names or module types to prune and not to prune; None for all.
        propagate: "original", the paper's order: one pass scores all layers on the activations of the network as it came; or
            "pruned": one more pass per layer, each scored on the activations that the layers before it, already pruned, hand
            on (on a copy of the model).
        variant, backend: as in `score_conv`.
        compat, min_keep: as in `keep_mask`.
        forward: runs the model it is handed on a batch.
        shared: whether the processes of torch.distributed each hold a part of the pruning set (one may hold none) and prune
            together: rank 0's buffers go to all, their sums are added, their masks are equal. None for: where
            torch.distributed is initialised.
        drop_unread: units that nothing reads lose their own connections as well, and so do those that read only zeros
            (`remove_dead` without its folding, on one sample of the first batch). The outputs do not change. A model that
            torch.export cannot trace keeps such units, with a warning.

    Returns:
        The masks now in force: parameter name to a bool tensor that broadcasts to the parameter, True where it stays.

    Raises:
        TypeError: `batches` can be read only once, under ``propagate="pruned"``.
        ValueError: an option is out of range, `batches` is empty, a layer or pattern is unknown, a transposed convolution is
            not excluded, or a layer's scores are not finite (its name and how many). The model is then as it was.
    """
    model = unwrap(model)
    if propagate not in PROPAGATE:
        raise ValueError(f"propagate must be one of {PROPAGATE}, got {propagate!r}")
    rule: dict[str, Any] = {"compat": compat, "min_keep": min_keep}
    wanted = {"alpha_conv": alpha_conv, "alpha_fc": alpha_fc, **{f"alphas[{key!r}]": v for key, v in (alphas or {}).items()}}
    for argument, value in wanted.items():
        _check(argument, value, rule)
    found = find_layers(model, layers, exclude)
    own = matching(alphas or {}, found, "alphas")
    shares = {name: own.get(name, alpha_fc if isinstance(tied[0], nn.Linear) else alpha_conv) for name, tied in found.items()}
    batches = as_batches(batches)
    if propagate == "pruned":
        check_rereadable(batches)
    together = in_use() if shared is None else shared
    example: list[Any] = []

    def remembered() -> Iterator[Any]:
        for batch in batches:
            if not example:
                example.append(batch)
            yield batch

    def collect(scored: nn.Module, names: Iterable[Which]) -> Collector:
        with Collector(scored, names, variant=variant, backend=backend) as collector:
            collector.run(remembered(), forward, allow_empty=together)
        if together:
            collector.all_reduce()
        return collector

    def chosen(collector: Collector, name: str) -> Masks:
        try:
            return layer_masks(model, name, found[name], keep_mask(collector.accumulators[name].scores(), shares[name], **rule))
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot be pruned: {error}") from error

    if together:
        broadcast(model.buffers())  # BatchNorm's running statistics differ between ranks after training
    collector = collect(model, list(found))
    if collector.uncalled:
        warnings.warn(f"layers never called, left as they are: {', '.join(collector.uncalled)}", stacklevel=2)
    order = [name for names in gather(collector.order) for name in names] if together else collector.order
    masks: Masks = {}
    scored = copy.deepcopy(model) if propagate == "pruned" else model
    for place, name in enumerate(dict.fromkeys(order)):
        if propagate == "pruned" and place:
            apply_masks(scored, masks)
            collector = collect(scored, [name])
        masks |= chosen(collector, name)
    apply_masks(model, masks)
    if drop_unread:
        _drop_unread(model, example, list(found), forward, together)
    return get_masks(model)


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

    Under torch.distributed every process calls it, rank 0 writes the files, and each goes on with its own generators.

    Args:
        model: the trained network, pruned in place.
        batches: the pruning set as in `prune`, iterable more than once.
        retrain: trains the masked network in place. It may draw from torch's, numpy's and Python's global generators.
        iterations: how many, at least 1.
        rewind: a plain `state_dict` that weights and buffers return to before each retraining (the paper's LeNets: the
            initial parameters); None fine-tunes what the pruning left.
        evaluate: gives the error to record, before and after each retraining.
        checkpoint: a folder that receives the state after every iteration, written atomically (safetensors). If it already
            holds one, the run goes on from there and ends with the same bits as one that was never stopped.
        log: a file that receives the history as JSON lines, rewritten atomically after every iteration.
        progress: show a bar where tqdm is installed.
        options: `prune`'s.

    Returns:
        The history, iteration 0 first.

    Raises:
        TypeError: `batches` can be read only once.
        ValueError: as in `prune`; or the checkpoint is not one of this network and this number of processes.
        OSError: checkpoint or log cannot be written; what they held before is still there.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations!r}")
    check_rereadable(batches)
    history = load_checkpoint(checkpoint, model) if checkpoint is not None else []
    if not history:
        start = time.perf_counter()
        error = evaluate(model) if evaluate else None
        history.append(_iteration(0, model, batches, None, error, start, options.get("forward")))
        _save(model, history, checkpoint, log)
    first = len(history)
    for number in progress_bar(range(first, iterations + 1), "pruning", progress and rank() == 0):
        start = time.perf_counter()
        prune(model, batches, **options)
        before = evaluate(model) if evaluate else None
        if rewind is not None:
            load_dense(model, rewind)
        retrain(model)
        after = evaluate(model) if evaluate else None
        history.append(_iteration(number, model, batches, before, after, start, options.get("forward")))
        _save(model, history, checkpoint, log)
    return history


def layer_masks(model: nn.Module, name: str, tied: tuple[Layer, ...], keep: Tensor) -> Masks:
    """`keep` (C_out, C_in/groups), with a bias one more column, as masks of the parameters of the layers it is for."""
    weight = tied[0].weight
    paths = {module: path for path, module in model.named_modules()}
    masks = {_parameter(name, "weight"): keep[:, : weight.shape[1]].reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))}
    return masks | {_parameter(paths[layer], "bias"): keep[:, -1] for layer in tied if layer.bias is not None}


def _parameter(layer: str, attribute: str) -> str:
    return f"{layer}.{attribute}" if layer else attribute


def _drop_unread(model: nn.Module, example: list[Any], layers: list[str], forward: Forward | None, together: bool) -> None:
    """What rank 0 finds where several prune together, on the first example that any of them holds."""
    examples = [batch for held in (gather(example) if together else [example]) for batch in held]
    if not examples:
        return

    def find() -> Dead:
        return find_dead(model, examples[0], layers=layers, fold=False, forward=forward)

    try:
        found = on_first(find) if together else find()
    except NotTraceable as cause:
        warnings.warn(f"dead units keep their connections: {cause}", stacklevel=3)
    else:
        apply_dead(model, found)


def check_rereadable(batches: Iterable[Any]) -> None:
    """A TypeError for batches that can be read only once."""
    if iter(batches) is batches:
        raise TypeError(f"batches must be iterable more than once, got {type(batches).__name__}: pass a list or a loader")


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
    example = next(iter(as_batches(batches)), None)
    own = None if example is None else measure(model, example, forward)
    found = next((m for m in gather(own) if m is not None), None)  # a process may hold no batch
    if found is None:
        raise ValueError("batches must hold at least one batch, got none")
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


def _save(model: nn.Module, history: list[Iteration], checkpoint: str | Path | None, log: str | Path | None) -> None:
    if log is not None:
        on_first(lambda: write_history(history, log))
    if checkpoint is not None:
        save_checkpoint(checkpoint, model, history)

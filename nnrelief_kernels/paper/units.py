"""Whole units by the rule that chooses connections: those outside the share alpha of what their reader takes go."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..collect import Collector
from ..dead import apply_dead, find_dead
from ..layers import CONVS, Layer
from ..masks import apply_masks
from ..measure import layer_chain
from ..selection import keep_mask


def drop_units(model: nn.Module, batches: Sequence[Tensor], alphas: Mapping[str, float]) -> None:
    """Mask the units that carry least, beyond the share alpha, of the signal of the layer that reads them.

    A unit's part is the mean of its connections' scores (Eqs. 1 and 2 of Dekhovich et al. 2024) over the reader's units that
    are still connected; the inputs of a linear layer after a flatten add up to their filter. A filter that only a few
    connections read costs all its kernels, which scores of single connections do not see.

    Args:
        model: a chain of Linear and convolutional layers without groups, masked in place.
        batches: the pruning set.
        alphas: name of a layer that another one reads to the share alpha, in (0, 1], of its units.

    Raises:
        ValueError: the model is no such chain, or an alpha is out of range or of a layer that none reads.
    """
    layers: dict[str, Layer] = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS))}
    chain = layer_chain(model, layers)
    if not chain or any(layer.groups > 1 for layer in layers.values() if not isinstance(layer, nn.Linear)):
        raise ValueError(f"model must be a chain of layers without groups, got {type(model).__name__}")
    readers = dict(itertools.pairwise(chain))
    if unread := sorted(set(alphas) - set(readers)):
        raise ValueError(f"alphas must name layers that another one reads, of {list(readers)}; got {unread}")
    with Collector(model, [readers[name] for name in alphas]) as collector:
        collector.run(batches)
    masks, scores = {}, collector.scores()
    for name, alpha in alphas.items():
        reader, units = readers[name], len(layers[name].weight)
        weight = layers[reader].weight
        signal = scores[reader][:, : weight.shape[1]].sum(0).reshape(units, -1).sum(1)
        kept = keep_mask(signal / signal.sum().clamp(min=1e-30), alpha)
        columns = kept.repeat_interleave(weight.shape[1] // units)
        masks[f"{reader}.weight"] = columns.reshape(1, -1, *(1,) * (weight.ndim - 2))
    apply_masks(model, masks)
    apply_dead(model, find_dead(model, batches[0][:1], layers=chain, fold=False))

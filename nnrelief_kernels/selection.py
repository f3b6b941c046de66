"""Which connections to keep: the paper's rule (Algorithms 1 and 2 of Dekhovich et al. 2024) and its form as a threshold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

COMPATS = ("paper", "authors")


def keep_mask(scores: Tensor, alpha: float, *, compat: str = "paper", min_keep: int = 0) -> Tensor:
    """True where a connection stays: per row the largest scores that together carry `alpha` of the row's signal.

    The paper's rule: with the row's scores in descending order and ``p0 = min{p : the sum of the p largest >= alpha}``,
    what is smaller than the p0-th score is pruned; ties with it stay. Rows are independent. Sums are formed in integers, so
    neither the device nor the order of the columns changes a mask. Rounding may leave the sum of a row beside 1: alpha = 1
    keeps every score above zero, and a row whose sum stays below alpha loses its zeros only. A row of zeros is kept.

    Args:
        scores: (..., C), non-negative floats, each row the shares of one neuron or filter (they sum to 1 or are all 0).
        alpha: in (0, 1].
        compat: "paper", or "authors": their scripts prune what is not larger than the score after the p0-th (or the last).
        min_keep: at least this many of each row's largest scores stay, and what ties with them.

    Returns:
        bool, the shape of `scores`.

    Raises:
        TypeError: `scores` is not a floating-point tensor.
        ValueError: NaN, infinite or negative scores (with their count), alpha outside (0, 1], unknown compat, min_keep < 0.

    >>> keep_mask(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), alpha=0.75)
    tensor([[ True,  True, False, False]])
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha!r}")
    if compat not in COMPATS:
        raise ValueError(f"compat must be one of {COMPATS}, got {compat!r}")
    if isinstance(min_keep, bool) or not isinstance(min_keep, int) or min_keep < 0:
        raise ValueError(f"min_keep must be an int of at least 0, got {min_keep!r}")
    mask = keep_rank(scores) > 1 - alpha
    if scores.numel() == 0:
        return mask
    columns = scores.shape[-1]
    descending = scores.sort(dim=-1, descending=True).values
    if compat == "authors":
        fixed, one = _fixed_point(descending)
        short = 1 - fixed.cumsum(-1) / one > 1 - alpha  # the p largest do not carry alpha yet
        p0 = short.sum(-1, keepdim=True) + 1
        mask = scores > descending.gather(-1, p0.clamp(max=columns - 1))
    if min_keep:
        mask = mask | (scores >= descending[..., min(min_keep, columns) - 1, None])
    return mask


def keep_rank(scores: Tensor) -> Tensor:
    """q = 1 - (sum of strictly larger scores in the row), so that ``q > 1 - alpha`` is ``keep_mask(scores, alpha)``.

    Any tool that keeps what exceeds one threshold can use q as its score: the largest of a row has q = 1, ties have equal q.

    Args:
        scores: (..., C), non-negative floats, each row the shares of one neuron or filter (they sum to 1 or are all 0).

    Returns:
        float64, the shape of `scores`, in [0, 1]: 0 only for the zeros of a row that carries something, 1 throughout a row
        of zeros.

    Raises:
        TypeError: `scores` is not a floating-point tensor.
        ValueError: NaN, infinite or negative scores, with their count.

    >>> keep_rank(torch.tensor([[0.5, 0.25, 0.25, 0.0]]))
    tensor([[1.0000, 0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    """
    check_scores(scores)
    if scores.numel() == 0:
        return scores.double()
    fixed, one = _fixed_point(scores)
    ascending, order = fixed.sort(dim=-1)
    sums = ascending.cumsum(-1)
    total = sums[..., -1:]
    last_equal = torch.searchsorted(ascending, ascending, right=True) - 1
    not_larger = sums.gather(-1, last_equal)
    # the second term keeps q above 0 for a score above 0 where rounding took the sum of the larger ones to 1
    q = torch.maximum(1 - (total - not_larger) / one, not_larger / total.clamp(min=1) * 2.0**-60)
    q = q.where((ascending > 0) | (total == 0), 0.0)
    return torch.empty_like(q).scatter_(-1, order, q)


def target_sparsity(scores: Tensor | Mapping[str, Tensor] | Iterable[Tensor], sparsity: float) -> float:
    """The largest alpha whose masks together prune at least the fraction `sparsity` of all connections.

    Args:
        scores: one layer's scores, or those of several layers (a mapping or an iterable of (..., C) tensors).
        sparsity: fraction to prune, in [0, 1).

    Returns:
        alpha in (0, 1], to be handed to `keep_mask` for each layer.

    Raises:
        ValueError: sparsity outside [0, 1), or not reachable: every row keeps its largest score. The message says what is.

    >>> alpha = target_sparsity(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), sparsity=0.5)
    >>> keep_mask(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), alpha)
    tensor([[ True,  True, False, False]])
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity!r}")
    layers = [scores] if isinstance(scores, Tensor) else list(scores.values() if isinstance(scores, Mapping) else scores)
    if not layers or not sum(layer.numel() for layer in layers):
        raise ValueError("scores must hold at least one connection, got none")
    q = torch.cat([keep_rank(layer).flatten().cpu() for layer in layers])
    pruned = math.ceil(sparsity * len(q))
    if pruned == 0:
        return 1.0
    threshold = float(q.kthvalue(pruned).values)
    if threshold == 1:
        most = float((q < 1).double().mean())
        raise ValueError(f"sparsity must be at most {most:.4f} here, where each row keeps its largest scores, got {sparsity}")
    alpha = 1 - threshold
    while 1 - alpha < threshold:  # 1 - alpha is rounded once more when the mask is made
        alpha = math.nextafter(alpha, 0)
    return alpha


def check_scores(scores: Tensor) -> None:
    """Raise unless `scores` is a tensor of finite, non-negative floats with at least one dimension."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"scores must be a floating-point tensor, got {getattr(scores, 'dtype', type(scores).__name__)}")
    if scores.ndim == 0:
        raise ValueError("scores must be (..., C), got a tensor without dimensions")
    bad = (scores.isnan(), scores.isinf(), scores < 0)
    nan, infinite, negative = torch.stack([where.sum() for where in bad]).tolist()  # the one wait for a device
    if nan or infinite or negative:
        raise ValueError(
            f"scores must be finite and not negative, got {nan} NaN, {infinite} infinite and {negative} negative "
            f"of {scores.numel()}"
        )


def _fixed_point(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as int64, whose sums are exact in any order, and the float64 power of two that stands for 1 in that row.

    The row's largest score takes as many bits as leave room for the row's sum; ceil keeps a score above 0 at 1 or more.
    """
    values = scores.double()
    bits = 62 - math.ceil(math.log2(scores.shape[-1]))
    largest = values.amax(-1, keepdim=True)
    power = (largest / torch.frexp(largest)[0]).where(largest > 0, 1.0)  # the power of two above it, exactly
    return (values / power * 2.0**bits).ceil().long(), 2.0**bits / power

"""Continual Prune-and-Select: which connections of a shared network one task uses (Dekhovich et al. 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..scoring import score_conv, score_linear
from ..selection import keep_mask


def task_mask(
    weight: Tensor,
    acts: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float,
    compat: str = "paper",
    min_keep: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The connections that carry the share alpha of each unit's signal under one task's samples.

    Call it layer by layer with the weight multiplied by the task's own mask so far, starting from ones: a connection that is
    0 there is never chosen again, so a task's masks only shrink. Masks of different tasks may overlap; to keep them apart,
    hand over the weight without what earlier tasks have taken.

    Args:
        weight: (out, in), or (C_out, C_in/groups, *kernel); zeros where the task has no connection.
        acts: (..., in), or (N, C_in, *spatial): what enters the layer under the task's samples.
        bias: (out,), masked like the weight, or None.
        alpha, compat, min_keep: as in `keep_mask`; ``compat="authors"`` cuts off as their scripts do.
        options: `score_conv`'s or `score_linear`'s; their convolutions use ``variant="norm_of_mean"``.

    Returns:
        Bool masks: (out, in/groups) of the weight, and (out,) of the bias, None without one. A unit that carries no signal
        keeps what it has.

    Raises:
        TypeError, ValueError: as `score_conv`, `score_linear` and `keep_mask`.

    >>> task_mask(torch.tensor([[4.0, 1.0, 0.0]]), torch.ones(1, 3), alpha=0.8)
    (tensor([[ True, False, False]]), None)
    """
    score = score_linear if weight.ndim == 2 else score_conv
    scores = score(weight, acts, bias, **options)
    keep = keep_mask(scores, alpha, compat=compat, min_keep=min_keep)
    has = weight.flatten(2).any(2) if weight.ndim > 2 else weight != 0
    if bias is None:
        return keep & has, None
    return keep[:, :-1] & has, keep[:, -1] & (bias != 0)

"""torch.nn.utils.prune: masks by the share alpha of each unit's signal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ..selection import keep_mask, keep_rank
from .calibration import per_parameter


class Relief(torch_prune.BasePruningMethod):
    """Keeps the elements whose importance, a value of `keep_rank`, exceeds 1 - alpha.

    The rule is one threshold, so it gives the masks of `keep_mask` however torch slices or joins the tensors it hands over:
    alone, in a PruningContainer and in ``global_unstructured(..., importance_scores=)``.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, alpha: float) -> None:
        keep_mask(torch.ones(1, 1), alpha)  # refuses an alpha out of range
        self.alpha = alpha

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """`default_mask` without the elements of `t`, values of `keep_rank`, that are at most 1 - alpha."""
        return default_mask * (t > 1 - self.alpha)


def importance(scores: Tensor, module: nn.Module, name: str = "weight") -> Tensor:
    """`keep_rank` of the scores in the shape of a parameter, as ``importance_scores`` of torch's pruning functions.

    Args:
        scores: (C_out, C_in/groups), one more column with a bias, as `score_conv` and `score_linear` return them.
        module: the layer scored.
        name: "weight" or "bias".

    Returns:
        float64, the parameter's shape.

    Raises:
        ValueError: the scores are not those of this layer, or hold no column for the bias.
    """
    return per_parameter(keep_rank(scores), module, name)


def nnrelief_unstructured(module: nn.Module, name: str, scores: Tensor, alpha: float) -> nn.Module:
    """Mask the connections outside the share alpha of each unit's signal (Algorithms 1 and 2 of Dekhovich et al. 2024).

    Like ``torch.nn.utils.prune.l1_unstructured``: adds ``name_orig`` and ``name_mask``, and called again it only removes more;
    ``torch.nn.utils.prune.remove`` makes it permanent.

    Args:
        module: a Linear or Conv1d/2d/3d, changed in place.
        name: "weight" or "bias".
        scores: (C_out, C_in/groups), one more column with a bias, of the weight as it is now.
        alpha: in (0, 1].

    Returns:
        `module`.

    Raises:
        ValueError: alpha is out of range, or the scores are not those of this layer.
    """
    Relief.apply(module, name, alpha, importance_scores=importance(scores, module, name))
    return module

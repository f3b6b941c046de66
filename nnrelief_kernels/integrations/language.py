"""Language models: one mask per Linear layer from scores streamed over tokens, unstructured or 2:4, and its fast kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..masks import get_masks
from ..selection import check_scores


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """True for the largest scores of each row: every row loses the same number, as Wanda prunes.

    Of rows of Eq. 1 of Dekhovich et al. 2024 the order is that of ``|w_ij| mean |x_i|``, of Wanda's ``|w_ij| ||x_i||_2``.

    Args:
        scores: (out, in), non-negative; without the column of the bias.
        sparsity: the part of each row to prune, in [0, 1); of `in` scores ``round(sparsity * in)``. Of equal scores the first
            stay.

    Raises:
        TypeError, ValueError: the scores are not finite, non-negative floats of two dimensions, or sparsity is out of range.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity!r}")
    _check_matrix(scores)
    return _first(scores, scores.shape[1] - round(sparsity * scores.shape[1]))


def keep_two_of_four(scores: Tensor) -> Tensor:
    """True for the two largest scores of every four neighbours in a row: the pattern of sparse tensor cores.

    Args:
        scores: (out, in), non-negative, `in` a multiple of 4; without the column of the bias. Of equal scores the first stay.

    Raises:
        TypeError, ValueError: as `keep_largest`, or the number of columns is not a multiple of 4.
    """
    _check_matrix(scores)
    if scores.shape[1] % 4:
        raise ValueError(f"scores must have a multiple of 4 columns, got shape {tuple(scores.shape)}")
    return _first(scores.reshape(-1, 4), 2).reshape(scores.shape)


def compress(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Replace weights under 2:4 masks by ``torch.sparse.to_sparse_semi_structured``, where the hardware has kernels for it.

    Args:
        model: changed in place, for inference only; `fold_masks` first if it is masked.
        masks: weight name to a mask of `keep_two_of_four`; the zeros are written into every weight, compressed or not.

    Returns:
        The weights that stay dense, each with the reason.

    Raises:
        ValueError: the model is masked, or a mask is not of its weight's shape or keeps more than two of four.
    """
    if get_masks(model):
        raise ValueError("model must not be masked: call fold_masks(model) first")
    for name, mask in masks.items():
        shape = tuple(model.get_parameter(name).shape)
        if tuple(mask.shape) != shape or len(shape) != 2 or shape[1] % 4 or int(mask.reshape(-1, 4).sum(1).max()) > 2:
            raise ValueError(f"masks[{name!r}] must be {shape} with at most two of every four kept")
    dense = {}
    for name, mask in masks.items():
        layer, weight = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
        zeroed = weight.detach() * mask
        reason = _refusal(weight)
        if reason is None:
            try:
                zeroed = torch.sparse.to_sparse_semi_structured(zeroed)
            except (RuntimeError, ValueError) as error:  # a shape or dtype that the kernels of this device do not take
                reason = str(error)
        if reason is not None:
            dense[name] = reason
        setattr(layer, name.rpartition(".")[2], nn.Parameter(zeroed, requires_grad=False))
    return dense


def _refusal(weight: Tensor) -> str | None:
    if not weight.is_cuda:
        return f"2:4 kernels need a CUDA device of compute capability 8.0 or more, the weight is on {weight.device}"
    if (found := torch.cuda.get_device_capability(weight.device)) < (8, 0):
        return f"2:4 kernels need compute capability 8.0 or more, this device has {found[0]}.{found[1]}"
    return None


def _first(scores: Tensor, count: int) -> Tensor:
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _check_matrix(scores: Tensor) -> None:
    check_scores(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must be (out, in), got shape {tuple(scores.shape)}")

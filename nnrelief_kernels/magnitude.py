"""Magnitude pruning, the baseline that Section 5.1 of Dekhovich et al. 2024 compares with: keep the largest |w|."""

from __future__ import annotations

import torch
from torch import nn

from .layers import CONVS
from .masks import Masks

SCOPES = ("layer", "global")


def magnitude_masks(model: nn.Module, keep: float, *, scope: str = "layer") -> Masks:
    """Masks for `apply_masks` that keep the share `keep` of the parameters with the largest magnitudes.

    Weights and biases of Linear and Conv1d/2d/3d layers compete element by element, within their layer or all together (the
    paper's "structured" and "unstructured" magnitude rules).

    Args:
        model: read, not changed. Parameters already masked count as zeros.
        keep: in (0, 1]. Of n parameters ``round(keep n)`` stay, at least one; among equal magnitudes those that come first,
            by layer, weight before bias, and position.
        scope: "layer" or "global".

    Returns:
        Parameter name to a bool tensor of its shape, True where it stays.

    Raises:
        ValueError: `keep` or `scope` is none of the above, the model has no such layer, or a parameter is not finite.

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> model.weight.data = torch.tensor([[0.5, -2.0, 1.0]])
    >>> magnitude_masks(model, 0.5)
    {'weight': tensor([[False,  True,  True]])}
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep!r}")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {scope!r}")
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS))]
    if not layers:
        raise ValueError("model must have at least one Linear or Conv1d/2d/3d layer, it has none")
    parameters = [
        {f"{name}.{key}" if name else key: p.detach().abs() for key in ("weight", "bias") if (p := getattr(m, key)) is not None}
        for name, m in layers
    ]
    if scope == "global":
        parameters = [{name: p for layer in parameters for name, p in layer.items()}]
    masks: Masks = {}
    for together in parameters:
        for name, p in together.items():
            if wrong := int((~p.isfinite()).sum()):
                raise ValueError(f"{name} holds {wrong} values that are not finite")
        magnitudes = torch.cat([p.flatten() for p in together.values()])
        order = magnitudes.sort(descending=True, stable=True).indices
        flat = torch.zeros_like(magnitudes, dtype=torch.bool)
        flat[order[: max(1, round(keep * len(flat)))]] = True
        parts = torch.split(flat, [p.numel() for p in together.values()])
        masks |= {name: part.reshape(p.shape) for (name, p), part in zip(together.items(), parts)}
    return masks

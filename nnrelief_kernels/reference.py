"""Eqs. 1-3 and the selection rule of Dekhovich et al. 2024 in float64, written to be read.

*Neural network relief: a pruning algorithm based on neural activity*, Machine Learning 113 (2024) 2597-2618,
doi 10.1007/s10994-024-06516-z. Nothing here is fast: every feature map is formed. It is the oracle of every test.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import ConvGeometry, Ints, Padding, conv_geometry

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def score_linear(weight: Tensor, acts: Tensor, bias: Tensor | None = None, *, normalize: bool = True) -> Tensor:
    """Eq. 1: s_ij = mean_n |w_ij x_ni| / S_j, s_bias,j = |b_j| / S_j; weight (out, in), acts (..., in)."""
    w, x = weight.double(), acts.double().reshape(-1, acts.shape[-1])
    signal = torch.stack([(w_j * x).abs().sum(0) for w_j in w])
    if bias is not None:
        signal = torch.cat([signal, len(x) * bias.double().abs()[:, None]], 1)
    return share(signal) if normalize else signal


def score_conv(
    weight: Tensor,
    acts: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    variant: str = "paper",
    normalize: bool = True,
) -> Tensor:
    """Eqs. 2 and 3: s_ij = mean_n || |K_ij| * |x_ni| ||_F / S_j, s_bias,j = |b_j| sqrt(h w) / S_j."""
    geometry = conv_geometry(tuple(acts.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation, groups, padding_mode)
    samples, (c_out, c_in) = len(acts), weight.shape[:2]
    K, x = weight.double().abs(), acts.double().abs()
    if variant == "norm_of_mean":
        x = x.sum(0, keepdim=True)
    order = 1 if variant == "l1" else 2
    signal = torch.zeros(c_out, c_in, dtype=torch.float64, device=weight.device)
    for j in range(c_out):
        for i in range(c_in):
            channel = (j // (c_out // groups)) * c_in + i
            maps = feature_maps(K[j, i], x[:, channel], geometry)
            signal[j, i] = torch.linalg.vector_norm(maps.flatten(1), order, dim=1).sum()
    if bias is not None:
        size = geometry.positions if variant == "l1" else math.sqrt(geometry.positions)
        signal = torch.cat([signal, samples * bias.double().abs()[:, None] * size], 1)
    return share(signal) if normalize else signal


def feature_maps(kernel: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """K * x for one kernel and one channel of every sample: x (N, *spatial) to (N, *out)."""
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    pads = [p for before_after in reversed(geometry.padding) for p in before_after]
    padded = F.pad(x[:, None], pads, mode=mode)
    return CONV[kernel.ndim](padded, kernel[None, None], stride=geometry.stride, dilation=geometry.dilation)[:, 0]


def share(signal: Tensor) -> Tensor:
    """s = signal / S_j with S_j the row's sum; a row that carries nothing stays 0."""
    S = signal.sum(1, keepdim=True)
    return torch.where(S == 0, 0.0, signal / S)


def keep_mask(scores: Tensor, alpha: float, *, compat: str = "paper") -> Tensor:
    """Algorithms 1 and 2, literally, one row at a time in Python floats.

    p0 = min{p : the sum of the p largest >= alpha}; prune what is smaller than the p0-th. alpha = 1 asks for all that is
    above zero, and so does a sum that stays short of alpha. ``compat="authors"``: prune what is not larger than the element
    after the p0-th (or the last one).
    """
    return torch.tensor([_keep_row(row, alpha, compat) for row in scores.double().tolist()])


def _keep_row(row: list[float], alpha: float, compat: str) -> list[bool]:
    descending = sorted(row, reverse=True)
    reached = [p for p in range(1, len(row) + 1) if math.fsum(descending[:p]) >= alpha]
    if compat == "authors":
        p0 = reached[0] if reached else len(row)
        cut = descending[min(p0, len(row) - 1)]
        return [s > cut for s in row]
    carrying = sum(s > 0 for s in row) or len(row)
    p0 = reached[0] if reached and alpha < 1 else carrying
    return [s >= descending[p0 - 1] for s in row]

"""The importance of every connection of a layer: Eqs. 1-3 of Dekhovich et al. 2024 (doi 10.1007/s10994-024-06516-z)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import backends, ops
from .geometry import ConvGeometry, Ints, Padding, conv_geometry

VARIANTS = ("paper", "norm_of_mean", "l1")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def score_linear(
    weight: Tensor, acts: Tensor, bias: Tensor | None = None, *, normalize: bool = True, backend: str = "auto"
) -> Tensor:
    """Importance of every connection of a fully connected layer (Eq. 1 of Dekhovich et al. 2024).

    ``s_ij = mean_n |w_ij x_ni| / S_j`` and ``s_bias,j = |b_j| / S_j``, with ``S_j`` the sum over neuron j's inputs and bias.

    Args:
        weight: (out, in), float16, bfloat16, float32 or float64.
        acts: (..., in), the activations that enter the layer; every leading dimension counts as samples.
        bias: (out,) or None.
        normalize: False returns the numerators, ``sum_n |w_ij x_ni|`` and ``N |b_j|``, which add over batches.
        backend: "auto" or a name that ``nnrelief info`` lists.

    Returns:
        (out, in), or (out, in + 1) with the bias score in the last column; float32, float64 if an input is float64.
        Rows sum to 1; a neuron that carries no signal has a row of zeros.

    Raises:
        TypeError: an argument is not a floating-point tensor of the dtypes above.
        ValueError: shapes or devices do not fit, or there is no sample.
        RuntimeError: the backend asked for cannot serve this call; the message says why.

    >>> weight = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    >>> score_linear(weight, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    tensor([[0.2500, 0.7500],
            [1.0000, 0.0000]])
    """
    _check_linear(weight, acts, bias)
    weight, acts = weight.detach(), acts.detach()
    sums = ops.linear_signal(weight, acts, backend)
    if bias is not None:
        samples = acts.numel() // acts.shape[-1]
        sums = _with_bias(sums, bias.detach(), float(samples))
    return share(sums) if normalize else sums


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
    backend: str = "auto",
) -> Tensor:
    """Importance of every kernel of a convolution (Eqs. 2 and 3 of Dekhovich et al. 2024).

    ``s_ij = mean_n || |K_ij| * |x_ni| ||_F / S_j`` and ``s_bias,j = |b_j| sqrt(h w) / S_j``, with ``*`` the layer's own
    convolution, ``h, w`` the size of its output map and ``S_j`` the sum over filter j's inputs and bias.

    Args:
        weight: (C_out, C_in/groups, *kernel) with 1, 2 or 3 kernel dimensions; float16, bfloat16, float32 or float64.
        acts: (N, C_in, *spatial), the activations that enter the layer, any strides.
        bias: (C_out,) or None.
        stride, padding, dilation, groups, padding_mode: as in ``torch.nn.Conv2d``, "same" and "valid" included.
        variant: "paper"; "norm_of_mean", ``|| |K_ij| * mean_n |x_ni| ||_F``, and "l1", the plain sum over output positions
            with the bias as ``|b_j| h w``, are those of the authors' scripts.
        normalize: False returns the numerators summed over samples, with ``N |b_j| sqrt(h w)`` for the bias. They add over
            batches, except those of "norm_of_mean": a norm of a sum is not the sum of the norms.
        backend: "auto" or a name that ``nnrelief info`` lists.

    Returns:
        (C_out, C_in/groups), or one more column with the bias score; float32, float64 if an input is float64.
        Rows sum to 1; a filter that carries no signal has a row of zeros.

    Raises:
        TypeError: an argument is not of the type or dtype above.
        ValueError: shapes, devices or options do not fit, there is no sample, or the output map is empty.
        RuntimeError: the backend asked for cannot serve this call; the message says why.

    >>> kernels = torch.tensor([1.0, -3.0]).reshape(1, 2, 1, 1)
    >>> score_conv(kernels, torch.ones(8, 2, 5, 5), torch.tensor([4.0]))
    tensor([[0.1250, 0.3750, 0.5000]])
    """
    geometry = _check_conv(weight, acts, bias, stride, padding, dilation, groups, padding_mode, variant)
    weight, acts = weight.detach(), acts.detach()
    sums = ops.conv_signal(weight, acts, geometry, variant, backend)
    if bias is not None:
        sums = _with_bias(sums, bias.detach(), acts.shape[0] * bias_factor(geometry, variant))
    return share(sums) if normalize else sums


@dataclass(frozen=True)
class Explanation:
    """How a call would be served: the backend, the algorithm it takes, and why each other backend is not used."""

    backend: str
    path: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.path}", *(f"  not {name}: {why}" for name, why in self.others.items())]
        return "\n".join(lines)


def explain(
    weight: Tensor,
    acts: Tensor,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    variant: str = "paper",
    backend: str = "auto",
) -> Explanation:
    """Which backend and algorithm would serve `score_conv` (a weight of 3 to 5 dimensions) or `score_linear` (2), and why.

    Takes and refuses what those functions do, computes nothing.

    >>> explain(torch.ones(4, 2, 3, 3), torch.ones(1, 2, 8, 8), backend="torch").path
    'gram'
    """
    if isinstance(weight, Tensor) and weight.ndim == 2:
        _check_linear(weight, acts, None)
        refusal = backends.linear_refusal(weight, acts)
        name = backends.choose(backend, refusal)
        path = "column sums"
    else:
        geometry = _check_conv(weight, acts, None, stride, padding, dilation, groups, padding_mode, variant)
        refusal = backends.conv_refusal(weight, acts, geometry, variant)
        name = backends.choose(backend, refusal)
        path = backends.get(name).conv_path(weight, acts, geometry, variant)
    why_not = f"backend={name!r} was asked for" if backend != "auto" else f"{name} is faster"
    return Explanation(name, path, {other: refusal(other) or why_not for other in backends.ORDER if other != name})


def bias_factor(geometry: ConvGeometry, variant: str) -> float:
    """What a sample's bias signal is per unit of |b_j|: sqrt(h w) in Eq. 3, h w for "l1"."""
    return float(geometry.positions) if variant == "l1" else math.sqrt(geometry.positions)


def share(sums: Tensor) -> Tensor:
    """Each row over its sum S_j; a row of zeros stays zeros; NaN, Inf and a sum beyond the dtype's range show as NaN."""
    total = sums.sum(1, keepdim=True, dtype=torch.float64).to(sums.dtype)
    total.masked_fill_(total == 0, 1.0).nan_to_num_(nan=math.nan, posinf=math.nan)
    return sums / total


def _with_bias(sums: Tensor, bias: Tensor, factor: float) -> Tensor:
    return torch.cat([sums, (bias.double().abs() * factor).to(sums.dtype)[:, None]], 1)


def _check_tensors(weight: Tensor, acts: Tensor, bias: Tensor | None) -> None:
    for name, value in (("weight", weight), ("acts", acts), ("bias", bias)):
        if value is None and name == "bias":
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in DTYPES or value.layout != torch.strided:
            accepted = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{name} must be a dense tensor of {accepted}, got {value.dtype} ({value.layout})")
        if value.device != weight.device:
            raise ValueError(f"{name} is on {value.device}, weight on {weight.device}; move them to one device")
    if weight.numel() == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},) for this weight, got {tuple(bias.shape)}")


def _check_linear(weight: Tensor, acts: Tensor, bias: Tensor | None) -> None:
    _check_tensors(weight, acts, bias)
    if weight.ndim != 2:
        raise ValueError(f"weight must be (out, in), got shape {tuple(weight.shape)}")
    if acts.ndim == 0 or acts.shape[-1] != weight.shape[1]:
        raise ValueError(f"acts must be (..., {weight.shape[1]}) for this weight, got shape {tuple(acts.shape)}")
    if acts.numel() == 0:
        raise ValueError(f"acts must hold at least one sample, got shape {tuple(acts.shape)}")


def _check_conv(
    weight: Tensor,
    acts: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    variant: str,
) -> ConvGeometry:
    _check_tensors(weight, acts, bias)
    if weight.ndim not in (3, 4, 5):
        raise ValueError(
            f"weight must be (C_out, C_in/groups, *kernel) with 1 to 3 kernel dimensions, got {tuple(weight.shape)}"
        )
    if acts.ndim != weight.ndim:
        raise ValueError(f"acts must be (N, C_in, *spatial) with {weight.ndim - 2} spatial dimensions, got {tuple(acts.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the {weight.shape[0]} filters of weight, got {groups}")
    if acts.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"acts must have {weight.shape[1] * groups} channels for weight {tuple(weight.shape)} with groups={groups}, "
            f"got {acts.shape[1]}"
        )
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    if acts.numel() == 0:
        raise ValueError(f"acts must hold at least one sample and position, got shape {tuple(acts.shape)}")
    return conv_geometry(tuple(acts.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation, groups, padding_mode)

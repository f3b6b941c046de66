"""How far a change inside a network can move what follows, element by element (Eqs. 6 to 14 of Dekhovich et al. 2024)."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .layers import CONVS, Layer

Lipschitz = Mapping[Any, float]
"""Activation (a module type, a function or a method's name) to its Lipschitz constant."""

CONSTANTS: dict[Any, float] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.CELU), 1.0),
    **dict.fromkeys((F.relu, F.relu6, F.hardtanh, F.tanh, F.softplus, F.softsign, F.logsigmoid, F.celu), 1.0),
    **dict.fromkeys((torch.relu, torch.tanh, torch.abs, torch.clamp, abs, "relu", "relu_", "tanh", "abs", "clamp"), 1.0),
    **dict.fromkeys((nn.ELU, F.elu, nn.LeakyReLU, F.leaky_relu), 1.0),  # times the slope that the user set, where above 1
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), 0.25),
    **dict.fromkeys((nn.SELU, F.selu), 1.7581),
    **dict.fromkeys((nn.SiLU, F.silu), 1.0999),
    **dict.fromkeys((nn.GELU, F.gelu), 1.1290),
    **dict.fromkeys((nn.Mish, F.mish), 1.0885),
    **dict.fromkeys((nn.Hardswish, F.hardswish), 1.5),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), 0.1667),
}
"""Largest slopes, rounded up."""

MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d),
)
"""These bring a bound to a bound: they move, repeat, add with weights of at least 0, or take maxima."""
FUNCTIONS = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.max_pool1d, torch.max_pool2d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, F.pad, F.dropout),
    *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, operator.getitem),
    *(torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.mean, torch.sum, torch.amax),
}
METHODS = {
    *("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "expand", "repeat"),
    *("chunk", "split", "mean", "sum", "amax"),
}
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
PRODUCTS = {operator.mul, torch.mul, "mul"}
QUOTIENTS = {operator.truediv, torch.div, "div"}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYER_FORWARDS = {kind.forward for kind in (nn.Linear, *CONVS)}


class Propagation(fx.Interpreter):
    """Runs a network and carries with every value x a bound on its change, ``|x - x'|`` element by element.

    Args:
        module: the traced network before the pruning, in evaluation mode.
        pruned: its layers that are pruned, to what is left of them; may be changed between runs.
        lipschitz: constants of activations that are not in `CONSTANTS`.
    """

    def __init__(self, module: fx.GraphModule, pruned: Mapping[nn.Module, Layer], lipschitz: Lipschitz) -> None:
        super().__init__(module)
        self.pruned = pruned
        self.constants = {**CONSTANTS, **lipschitz}
        self.bounds: dict[fx.Node, Any] = {}
        """Per node still to be read, of its value's structure; nodes that do not change are left out."""
        self.output_bound = torch.empty(0)
        """Of the last run, unless there is a `refusal`: of the network's one output tensor."""
        self.refusal = ""
        """Why the last run could not carry its bounds to the outputs; "" where it could."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.bounds.clear()
        self.refusal = ""
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not self.refusal:
            try:
                self._carry(n, value)
            except ValueError as error:  # the values go on
                self.refusal = str(error)
        for read in self.user_to_last_uses.get(n, []):
            self.bounds.pop(read, None)
        return value

    def _carry(self, n: fx.Node, value: Any) -> None:
        if n.op == "output":
            if not isinstance(value, Tensor):
                raise ValueError(f"the network must return one tensor, got {type(value).__name__}")
            bound = self.bounds.get(n.all_input_nodes[0], torch.zeros_like(value))
            self.output_bound = bound.nan_to_num(nan=math.inf, posinf=math.inf)  # 0 times what overflowed
            return
        bound = self._bound(n, value)
        if bound is not None:
            self.bounds[n] = bound
            self.bounds |= {m: bound for m in n.all_input_nodes if self.env[m] is value}  # changed in place

    def _bound(self, n: fx.Node, value: Any) -> Any:
        module = cast(nn.Module, self.fetch_attr(str(n.target))) if n.op == "call_module" else None
        kind = type(module) if module is not None else n.target
        if isinstance(module, (nn.Linear, *CONVS)) and type(module).forward not in LAYER_FORWARDS:
            raise ValueError(f"bounds cannot be carried through {n.target!r}: {type(module).__name__} has a forward of its own")
        if module is not None and module in self.pruned:
            return self._through_pruned(n, cast(Layer, module), self.pruned[module])
        changed = [m for m in n.all_input_nodes if m in self.bounds]
        if not changed or not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            return None
        bound = self.bounds[changed[0]]
        if isinstance(module, (nn.Linear, *CONVS)):
            return through(module, bound)
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            return _through_batch_norm(module, bound)
        if kind in self.constants and len(n.all_input_nodes) == 1:
            return bound * (self.constants[kind] * max(1.0, _slope(n, module)))
        if kind in SUMS and not n.kwargs:
            return sum(self.bounds[m] for m in n.args if isinstance(m, fx.Node) and m in self.bounds) + torch.zeros_like(value)
        if kind in (PRODUCTS | QUOTIENTS) and not n.kwargs and n.args.count(changed[0]) == len(changed) == 1:
            other = n.args[1 - n.args.index(changed[0])]
            factor = abs(cast(float, self.env[other] if isinstance(other, fx.Node) else other))
            if kind in PRODUCTS:
                return bound * factor
            if n.args[0] is changed[0]:
                return bound / factor
        known = isinstance(module, MODULES) or (kind in METHODS if n.op == "call_method" else kind in FUNCTIONS)
        if known and not _spoils(n) and all(torch.is_floating_point(leaf) for leaf in pytree.tree_leaves(value)):
            return self._itself(n, module)
        raise ValueError(
            f"bounds cannot be carried through {getattr(kind, '__name__', kind)} (at {n.name!r}); an activation's Lipschitz "
            "constant can be given as lipschitz={it: constant}"
        )

    def _through_pruned(self, n: fx.Node, layer: Layer, pruned: Layer) -> Tensor:
        inputs = n.all_input_nodes[0]
        bound = removed(layer, pruned, self.env[inputs])
        return bound + through(pruned, self.bounds[inputs]) if inputs in self.bounds else bound

    def _itself(self, n: fx.Node, module: nn.Module | None) -> Any:
        """The operation on the bounds of its inputs, 0 for those that do not change."""

        def bound(m: fx.Node) -> Any:
            value = self.env[m]
            unchanged = torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value
            return self.bounds.get(m, unchanged)

        args, kwargs = fx.node.map_arg((n.args, n.kwargs), bound)
        if module is not None:
            return module(*args, **kwargs)
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        return cast(Callable[..., Any], n.target)(*args, **kwargs)


def operate(layer: Layer, weight: Tensor, bias: Tensor | None, acts: Tensor) -> Tensor:
    """The layer's own operation with another weight and bias."""
    return F.linear(acts, weight, bias) if isinstance(layer, nn.Linear) else layer._conv_forward(acts, weight, bias)


def difference(layer: Layer, pruned: Layer) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that were pruned, 0 where they stay."""
    bias = layer.bias - pruned.bias if layer.bias is not None and pruned.bias is not None else None
    return layer.weight - pruned.weight, bias


def removed(layer: Layer, pruned: Layer, acts: Tensor) -> Tensor:
    """What pruning the layer changes in its outputs at most: the sum of the pruned ``|w x|``, and |b| (Eqs. 5 and 10)."""
    weight, bias = difference(layer, pruned)
    return operate(layer, weight.abs(), None if bias is None else bias.abs(), acts.abs())


def through(layer: Layer, bound: Tensor) -> Tensor:
    """What a change of at most `bound` at the layer's inputs is at most at its outputs: |W| bound (Eqs. 12 to 14)."""
    return operate(layer, layer.weight.abs(), None, bound)


def _through_batch_norm(module: nn.Module, bound: Tensor) -> Tensor:
    norm = cast(nn.BatchNorm2d, module)
    weight = norm.weight.abs() if norm.weight is not None else None
    return F.batch_norm(bound, torch.zeros_like(cast(Tensor, norm.running_mean)), norm.running_var, weight, eps=norm.eps)


def _slope(n: fx.Node, module: nn.Module | None) -> float:
    """The slope that the user of a leaky or exponential activation set."""
    if isinstance(module, nn.LeakyReLU):
        return abs(module.negative_slope)
    if isinstance(module, nn.ELU):
        return abs(module.alpha)
    if n.target in (F.leaky_relu, F.elu):
        return abs(float(_arguments(n)["negative_slope" if n.target is F.leaky_relu else "alpha"]))
    return 1.0


def _spoils(n: fx.Node) -> bool:
    """Whether the arguments make a function of `FUNCTIONS` one that brings no bound to a bound."""
    if n.target is F.pad:
        return bool(_arguments(n)["value"])
    return n.target is F.dropout and bool(_arguments(n)["training"])


def _arguments(n: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(cast(Callable[..., Any], n.target)).bind(*n.args, **n.kwargs)
    bound.apply_defaults()
    return bound.arguments

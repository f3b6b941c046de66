"""Which values of a forward pass depend on the input, and which the output depends on.

Each operator is replaced by a sum of products with coefficients ≥ 0 that has the same dependencies: a convolution by the
convolution of ones, an activation by the identity. Let `live` be 1 where a value may differ from 0. Then, at that point, the
derivative of the replacement along "depends on the input" is positive exactly where its result does (forwards), and its
transpose maps "the output depends on it" of the result to that of its inputs (backwards). A product with a constant 0 and a
connection with weight 0 carry nothing either way.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.func import jvp, vjp
from torch.utils import _pytree as pytree

from .tracing import Trace

aten = torch.ops.aten

CONVS = {aten.conv1d, aten.conv2d, aten.conv3d}
# Sums of products, copies: these stand for themselves.
ITSELF = {
    *(*CONVS, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
    *(aten.linear, aten.mm, aten.bmm, aten.matmul, aten.mv, aten.dot, aten.sum),
    *(aten.cat, aten.stack, aten.clone, aten._unsafe_view, aten.repeat, aten.flip, aten.roll),
    *(aten.pad, aten.constant_pad_nd, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle),
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
}
INDEXED = {aten.index, aten.index_select}
"""Copies too, where the integers among their tensors say of what."""
AVERAGES = {
    *(aten.mean, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d),
    *(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d),
    *(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d),
    *(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d),
}
"""These stand for themselves as well, with coefficients below 1."""
# Element by element, beside those that torch tags so.
POINTWISE = {
    *(aten.hardswish, aten.leaky_relu, aten._prelu_kernel, aten.dropout, aten.masked_fill, aten.rsub),
    *(aten._to_copy, aten.alias, aten.lift_fresh_copy),
}
# Over windows within each channel, and over how many last dimensions.
MAX_POOLS = {
    **dict.fromkeys((aten.max_pool1d, aten.max_pool1d_with_indices, aten.adaptive_max_pool1d), 1),
    **dict.fromkeys((aten.max_pool2d, aten.max_pool2d_with_indices, aten.adaptive_max_pool2d), 2),
    **dict.fromkeys((aten.max_pool3d, aten.max_pool3d_with_indices, aten.adaptive_max_pool3d), 3),
}


@dataclass(frozen=True)
class Liveness:
    """Of every node: its value, where it varies with the input, where the output depends on it (same structure, bool)."""

    value: dict[fx.Node, Any]
    varies: dict[fx.Node, Any]
    needed: dict[fx.Node, Any]


def liveness(trace: Trace, batch: Any) -> Liveness:
    """Follow dependencies through the graph, forwards and backwards; every output counts as needed.

    Operators that are not known are taken to mix all that enters them. A value that does not vary is the same for every
    input of this shape: `value` tells it.
    """
    value: dict[fx.Node, Any] = {}
    varies: dict[fx.Node, Any] = {}
    for node, result in trace.run(batch):
        value[node] = result
        if node in trace.inputs:
            varies[node] = _like(result, True)
        elif node.op != "call_function" or _is_random(node):
            varies[node] = _like(result, _is_random(node))
        else:
            varies[node] = _forwards(node, value, varies)
    needed = {node: _like(result, False) for node, result in value.items()}
    for node in reversed(trace.graph.nodes):
        if node.op == "output":
            for source in node.all_input_nodes:
                needed[source] = _like(value[source], True)
        elif node.op == "call_function":
            _backwards(node, value, varies, needed)
    return Liveness(value, varies, needed)


def _forwards(node: fx.Node, value: dict[fx.Node, Any], varies: dict[fx.Node, Any]) -> Any:
    sources = _sources(node, value)
    if not _is_signal(value[node]) or not any(_any(varies[source]) for source in sources):
        return _like(value[node], False)
    at = tuple(_live(value[source], varies[source]) for source in sources)
    along = tuple(_ones(varies[source]) for source in sources)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # torch's own, in a process's first jvp
        tangent = jvp(_replacement(node, value, varies), at, along)[1]
    return _positive(node, tangent)


def _backwards(node: fx.Node, value: dict[fx.Node, Any], varies: dict[fx.Node, Any], needed: dict[fx.Node, Any]) -> None:
    sources = _sources(node, value)
    if not sources or not _any(needed[node]):
        return
    at = tuple(_live(value[source], varies[source]) for source in sources)
    results = vjp(_replacement(node, value, varies), *at)[1](_ones(needed[node]))
    for source, result in zip(sources, results):
        needed[source] = pytree.tree_map(torch.logical_or, needed[source], _positive(node, result))


def _replacement(node: fx.Node, value: dict[fx.Node, Any], varies: dict[fx.Node, Any]) -> Callable[..., Any]:
    """The sum of products that stands for `node`, a function of what `_sources` lists."""
    sources, kind = _sources(node, value), packet(node)

    def itself(*signals: Any) -> Any:
        left = iter(signals)

        def signal(source: fx.Node) -> Any:
            if not _is_signal(value[source]):
                return value[source]
            one = next(left)
            return value[source] if kind in INDEXED and not _is_float(value[source]) else one

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), signal)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def sums(*signals: Any) -> Any:
        return sum(signal.to(value[node].device).expand(value[node].shape) for signal in signals)

    def mixed(*signals: Any) -> Any:
        total = sum(leaf.sum() for leaf in pytree.tree_leaves(signals))
        return pytree.tree_map(lambda x: total.expand(_shape(x)), value[node])

    def affine(x: Tensor, parameters: tuple[Tensor, ...], first: int, shape: tuple[int, ...]) -> Tensor:
        """x * scale + shift, where these are the node's arguments number `first` and the next."""
        left = iter(parameters)
        scale, shift = (
            next(left).view(shape) if node.args[i : i + 1] not in ((), (None,)) else None for i in (first, first + 1)
        )
        return (x if scale is None else x * scale) + (0 if shift is None else shift)

    def batch_norm(x: Tensor, *parameters: Tensor) -> Any:
        result = affine(x, parameters, 1, (-1, *(1,) * (x.ndim - 2)))
        return (result, *(torch.zeros(unused.shape, device=x.device) for unused in value[node][1:]))

    def layer_norm(x: Tensor, *parameters: Tensor) -> Tensor:
        shape = cast("list[int]", node.args[1])
        total = x.sum(tuple(range(-len(shape), 0)), keepdim=True).expand(x.shape)
        return affine(total, parameters, 2, tuple(shape))

    def pooled(x: Tensor) -> Any:
        total = x.sum(tuple(range(-MAX_POOLS[kind], 0)), keepdim=True)
        return pytree.tree_map(lambda result: total.expand(result.shape), value[node])

    def extremum(x: Tensor) -> Any:
        return aten.sum.dim_IntList(x, *(node.args[1:] or [[]]), **node.kwargs)

    def attention(query: Tensor, key: Tensor, values: Tensor, *bias: Tensor) -> Tensor:
        weights = torch.ones(*values.shape[:-2], value[node].shape[-2], values.shape[-2], device=values.device)
        scale = query.sum() + key.sum() + sum(b.sum() for b in bias)
        return weights @ values + scale

    if node.target is operator.getitem or getattr(node.target, "is_view", False):
        return itself
    if kind is aten.mul:
        return itself if len(sources) == 2 else sums
    if kind in ITSELF or kind in AVERAGES:
        return itself
    if kind in INDEXED and all(_is_float(value[s]) or not _any(varies[s]) for s in sources):
        return itself
    if kind is aten._native_batch_norm_legit_no_training:
        return batch_norm
    if kind is aten.layer_norm:
        return layer_norm
    if kind in MAX_POOLS:
        return pooled
    if kind in (aten.amax, aten.amin):
        return extremum
    if kind is aten.scaled_dot_product_attention and value[sources[1]].shape[:-2] == value[sources[0]].shape[:-2]:
        return attention
    if kind in POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return sums if isinstance(value[node], Tensor) else mixed
    return mixed


def _sources(node: fx.Node, value: dict[fx.Node, Any]) -> list[fx.Node]:
    """What enters the node, in the order of its arguments, as often as it does; only what holds tensors."""
    sources: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda source: sources.append(source) or source)  # type: ignore[func-returns-value]
    return [source for source in sources if _is_signal(value[source])]


def _is_signal(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _is_float(value: Any) -> bool:
    return all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(value))


def _shape(leaf: Any) -> torch.Size:
    """What is no tensor has a place of its own in the structure, at which nothing is live."""
    return leaf.shape if isinstance(leaf, Tensor) else torch.Size()


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _like(value: Any, fill: bool) -> Any:
    def like(leaf: Any) -> Tensor:
        return torch.full(_shape(leaf), fill and isinstance(leaf, Tensor), device=getattr(leaf, "device", None))

    return pytree.tree_map(like, value)


def _live(value: Any, varies: Any) -> Any:
    return pytree.tree_map(lambda x, v: ((x != 0) | v).float() if isinstance(x, Tensor) else v.float(), value, varies)


def _ones(mask: Any) -> Any:
    return pytree.tree_map(Tensor.float, mask)


def _positive(node: fx.Node, sums: Any) -> Any:
    """Where there is a term at all: terms of averages are small, the others at least 1, which tells them from rounding."""
    least = 0.0 if packet(node) in AVERAGES else 0.5
    return pytree.tree_map(lambda x: x > least, sums)


def packet(node: fx.Node) -> Any:
    """The operator, without which of its overloads."""
    return getattr(node.target, "overloadpacket", node.target)


def _any(mask: Any) -> bool:
    return any(bool(leaf.any()) for leaf in pytree.tree_leaves(mask))

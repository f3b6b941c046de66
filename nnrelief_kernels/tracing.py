"""A model's forward pass as a graph of ATen operators, run one by one on real tensors (torch.export)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .collect import Forward, call_model, device_of, evaluating, unfused


class NotTraceable(RuntimeError):
    """torch.export cannot follow the model's own code; the message says why."""


class _Call(nn.Module):
    def __init__(self, model: nn.Module, run: Forward | None) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Any) -> Any:
        return call_model(self.model, batch, self.run)


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in evaluation mode, without in-place ones, for inputs of one shape.

    Parameters and buffers are the model's own tensors: what is written into them counts in the next `run`.
    """

    graph: fx.Graph
    state: dict[fx.Node, Tensor]
    """The nodes that stand for parameters, buffers and constants."""
    inputs: tuple[fx.Node, ...]
    attributes: dict[fx.Node, Any]

    def run(self, batch: Any) -> Iterator[tuple[fx.Node, Any]]:
        """Each node with its value, in order; a value is let go once nothing reads it any more."""
        values: dict[fx.Node, Any] = {**self.state, **self.attributes}
        values |= zip(self.inputs, pytree.tree_leaves(batch))
        left = {node: len(node.users) for node in self.graph.nodes}
        with torch.no_grad():
            for node in self.graph.nodes:
                if node.op == "call_function":
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
                if node.op != "output":
                    yield node, values[node]
                for source in node.all_input_nodes:
                    left[source] -= 1
                    if not left[source]:
                        del values[source]


def trace(model: nn.Module, batch: Any, forward: Forward | None = None) -> Trace:
    """Trace the forward pass on `batch`, in any form `prune` takes.

    Args:
        model: without masks, which hide its parameters; in any mode.

    Raises:
        NotTraceable: torch.export refuses the model.
    """
    try:
        with evaluating(model), unfused(), warnings.catch_warnings():
            # torch's own affairs
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
            warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
            program = torch.export.export(_Call(model, forward), (batch,), strict=False).run_decompositions({})
    except Exception as cause:  # whatever a model's own code raises under tracing
        reason = str(cause).strip().splitlines() or [""]
        raise NotTraceable(f"{type(model).__name__} cannot be traced: {type(cause).__name__}: {reason[0]}") from cause
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    tensors = {**dict(model.named_buffers(prefix="model")), **program.constants}
    tensors |= model.named_parameters(prefix="model", remove_duplicate=False)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return Trace(
        program.graph,
        {n: tensors[names[n.name]] for n in placeholders if n.name in names},
        tuple(node for node in placeholders if node.name not in names),
        {n: _attribute(program.graph_module, str(n.target)) for n in program.graph.nodes if n.op == "get_attr"},
    )


def first_sample(model: nn.Module, batch: Any) -> Any:
    """The batch with one sample, its tensors cut along their first dimension, where the model is."""
    device = device_of(model)
    return pytree.tree_map(lambda x: x[:1].to(device) if isinstance(x, Tensor) and x.ndim else x, batch)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value

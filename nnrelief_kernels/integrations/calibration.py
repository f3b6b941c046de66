"""What every adapter needs: a model scored over batches, and one score per element of a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..collect import Collector, Forward, as_batches
from ..layers import Layer


def collect(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None, **options: Any) -> Collector:
    """A collector of `model`, closed again, that has seen `batches`.

    Args:
        model: any module; it is left without hooks.
        batches, forward: as in `prune`; a tensor is one batch.
        options: `Collector`'s.

    Raises:
        ValueError: there is no batch, or an option is not `Collector`'s.
    """
    with Collector(model, **options) as collector:
        collector.run(as_batches(batches), forward)
    return collector


def by_module(collector: Collector, values: Mapping[str, Tensor]) -> dict[nn.Module, Tensor]:
    """`values` by layer name, such as `Collector.scores()`, by module; layers that share a weight share a value."""
    return {layer: value for name, value in values.items() for layer in collector.layers[name]}


def input_shares(scores: Tensor, layer: Layer) -> Tensor:
    """``mean_j s_ij``: what each input channel carries of the signal of a layer's units, on average over all of them.

    Args:
        scores: (C_out, C_in/groups), or one more column for the bias, whose share nothing here carries.
        layer: the layer scored.

    Returns:
        (C_in,), which sums to 1 less the mean share of the biases.
    """
    columns = layer.weight.shape[1]
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return scores[:, :columns].reshape(groups, -1, columns).sum(1).flatten() / len(scores)


def per_parameter(values: Tensor, module: nn.Module, name: str) -> Tensor:
    """One value per connection as one value per element of the parameter.

    Args:
        values: (C_out, C_in/groups), or one more column for the bias.
        module: a Linear or convolution, masked by its tool or not.
        name: "weight" or "bias".

    Returns:
        The parameter's shape, contiguous.

    Raises:
        ValueError: `name` is neither, or `values` has another shape or no column for the bias.
    """
    if name not in ("weight", "bias"):
        raise ValueError(f"name must be 'weight' or 'bias', got {name!r}")
    weight = cast(Tensor, module.weight)
    rows, columns = weight.shape[:2]
    accepted = [(rows, columns + 1)] if name == "bias" else [(rows, columns), (rows, columns + 1)]
    if tuple(values.shape) not in accepted:
        accepted_shapes = " or ".join(map(str, accepted))
        raise ValueError(f"scores must be {accepted_shapes} for the {name} of this layer, got {tuple(values.shape)}")
    if name == "bias":
        return values[:, columns].contiguous()
    return values[:, :columns].reshape(rows, columns, *(1,) * (weight.ndim - 2)).expand(weight.shape).contiguous()

"""torch.ao.pruning: a sparsifier whose masks keep the share alpha of each unit's signal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.base_sparsifier import BaseSparsifier
from torch.ao.pruning.sparsifier.utils import FakeSparsity
from torch.nn.utils import parametrize

from ..collect import Forward
from ..selection import keep_mask
from .calibration import by_module, collect, per_parameter


class ReliefSparsifier(BaseSparsifier):
    """Masks of Algorithms 1 and 2 of Dekhovich et al. 2024: `prepare`, `calibrate`, `step`, train, repeat, `squash_mask`.

    Every ``tensor_fqn`` of the configuration is the weight or bias of a Linear or Conv1d/2d/3d; "alpha" beside it overrides
    the default. ``prepare(model, None)`` takes what torch takes then: the weights of all Linear layers. Masks only shrink.

    Args:
        alpha: the share of its signal each filter or neuron keeps, in (0, 1].
    """

    def __init__(self, alpha: float = 0.95) -> None:
        keep_mask(torch.ones(1, 1), alpha)  # refuses an alpha out of range
        super().__init__(defaults={"alpha": alpha})

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None, **options: Any) -> None:
        """Score the prepared layers as they are now; the scores are part of `state_dict`.

        Args:
            batches, forward: as in `prune`; a tensor is one batch.
            options: `Collector`'s variant and backend.
        """
        layers = {config["module_fqn"] for config in self.groups}
        collector = collect(self.model, batches, forward, layers=layers, **options)
        scores = by_module(collector, collector.scores())
        for config in self.groups:
            if config["module"] in scores:
                self.state[config["tensor_fqn"]]["scores"] = scores[config["module"]]

    def update_mask(self, module: nn.Module, tensor_name: str, **config: Any) -> None:
        """Take from the mask what lies outside the share alpha; `step` calls it for every tensor of the configuration.

        Raises:
            RuntimeError: `calibrate` has not seen the layer.
        """
        fqn = config["tensor_fqn"]
        if "scores" not in self.state[fqn]:
            raise RuntimeError(f"{fqn!r} has no scores: call calibrate(batches) before step()")
        scores = self.state[fqn]["scores"]
        _mask(module, tensor_name).mul_(per_parameter(keep_mask(scores, config["alpha"]), module, tensor_name))

    def state_dict(self) -> dict[str, Any]:
        """Masks, scores and configuration, of types that ``torch.load(..., weights_only=True)`` reads."""
        return {**super().state_dict(), "state": dict(self.state)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Go on from a saved `state_dict`, which is left as it is, in a model prepared with the same configuration."""
        super().load_state_dict(copy.deepcopy(dict(state_dict)), strict)
        for config in self.groups:  # torch moves the masks out of the state into the model, and would save none the next time
            self.state[config["tensor_fqn"]]["mask"] = _mask(config["module"], config["tensor_name"])


def _mask(module: nn.Module, tensor_name: str) -> Tensor:
    chain = cast(nn.ModuleDict, module.parametrizations)[tensor_name]
    return next(cast(Tensor, p.mask) for p in cast(parametrize.ParametrizationList, chain) if isinstance(p, FakeSparsity))

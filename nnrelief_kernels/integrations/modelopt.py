"""NVIDIA ModelOpt: this package's sums behind its importance hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelopt.torch.prune.importance_hooks import ForwardHook
from torch import Tensor, nn

from ..accumulate import accumulator_of
from ..layers import Layer
from .calibration import input_shares


class ReliefHook(ForwardHook):  # type: ignore[misc,unused-ignore]
    """A forward hook that scores the inputs of one layer: ``mean_j s_ij`` of Eqs. 1 and 2 of Dekhovich et al. 2024.

    Contract of ModelOpt's own hooks: ``module.register_forward_hook(hook)``, run batches, then `accumulate`, `to_dict` and the
    class's ``dump_activations_logs`` and ``save_hook_states``. A run that stops goes on from `state_dict`. The result does not
    depend on how samples are batched, nor on whether sequence or batch comes first.

    Args:
        layer: a Linear or Conv1d/2d/3d.
        variant, backend: as in `score_conv`.
    """

    def __init__(self, layer: Layer, variant: str = "paper", backend: str = "auto") -> None:
        self.accumulator = accumulator_of((layer,), variant, backend)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """Add what entered the layer: (..., in), or (N, C_in, *spatial)."""
        self.accumulator.update(args[0].detach())

    def scores(self) -> Tensor:
        """(C_out, C_in/groups) as `score_conv` and `score_linear` return them, one more column with a bias.

        Raises:
            RuntimeError: nothing has entered the layer yet.
        """
        if not self.accumulator.samples:
            raise RuntimeError("no activations collected: run batches through the model with this hook registered")
        return self.accumulator.scores()

    def accumulate(self) -> Tensor:
        """(C_in,), larger is kept: the part of the layer's signal that each input carries, averaged over its units."""
        return input_shares(self.scores(), self.accumulator.layer)

    def to_dict(self) -> dict[str, Tensor]:
        """The scores of the inputs and their order, least important first, on the CPU."""
        score = self.accumulate().cpu()
        return {"score": score, "channels_importance_ascending": score.argsort(stable=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, on the CPU."""
        return {key: value.cpu() for key, value in self.accumulator.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from saved sums.

        Raises:
            ValueError: they are not of this layer.
        """
        self.accumulator.load_state_dict(state_dict)

    def get_progress_info(self) -> dict[str, int]:
        """Samples seen."""
        return {"samples": self.accumulator.samples}

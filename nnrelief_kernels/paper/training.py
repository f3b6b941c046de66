"""Training as appendix A of Dekhovich et al. 2024 sets it, on data that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..progress import progress as progress_bar
from .data import Dataset


@dataclass(frozen=True)
class Recipe:
    """Adam on cross entropy; `rates` are (learning rate, epochs) in order."""

    rates: tuple[tuple[float, int], ...]
    weight_decay: float = 5e-4
    batch: int = 120

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.rates)

    def scaled(self, epochs: int) -> Recipe:
        """The same schedule in another number of epochs."""
        shares = [round(n * epochs / self.epochs) for _, n in self.rates[:-1]]
        lengths = [*shares, epochs - sum(shares)]
        return Recipe(tuple((rate, n) for (rate, _), n in zip(self.rates, lengths)), self.weight_decay, self.batch)


LENET = Recipe(rates=((1e-3, 30), (1e-4, 30)))


def train(model: nn.Module, data: Dataset, recipe: Recipe, *, description: str = "training", show: bool = True) -> float:
    """Train in place, batches in random order from torch's global generator; the least test error (percent) of any epoch."""
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=recipe.weight_decay, fused=True)
    rates = [rate for rate, epochs in recipe.rates for _ in range(epochs)]
    best = 100.0
    for rate in progress_bar(rates, description, show):
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        order = torch.randperm(len(data.x_train))
        for batch in torch.split(order, recipe.batch):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(data.x_train[batch]), data.y_train[batch]))
            optimizer.step()
        best = min(best, error(model, data.x_test, data.y_test))
    return best


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of images whose label is not the largest output."""
    model.eval()
    wrong = 0
    for start in range(0, len(x), 2000):
        part = slice(start, start + 2000)
        wrong += int((model(x[part]).argmax(1) != y[part]).sum())
    return 100 * wrong / len(x)

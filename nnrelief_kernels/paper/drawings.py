"""Pictures of one network: its connections coloured by score, and which of them two rules keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..plots import new_figure, save
from .first_step import Outcome


def network(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], path: Path, title: str) -> None:
    """A fully connected network before and after pruning, a line per connection, coloured by its score (Figure 2).

    Args:
        scores: layer to (out, in) shares.
        kept: layer to a bool tensor of that shape.
        path: the PNG.
        title: of the picture.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    figure = new_figure(12, 6)
    figure.suptitle(title)
    norm = LogNorm(1e-5, 1)
    panels = figure.subplots(1, 2)
    for axes, pruned in zip(panels, (False, True)):
        count = 0
        for place, (name, score) in enumerate(scores.items()):
            there = kept[name] if pruned else score > 0
            values = score[there].numpy()
            ends = there.nonzero().numpy()
            order = np.argsort(values)  # the strongest are drawn last, on top
            rows, columns = (ends[order, i] / max(score.shape[i] - 1, 1) for i in (0, 1))
            x = np.broadcast_to([place, place + 1], (len(order), 2))
            lines = LineCollection(list(np.stack([x, np.stack([columns, rows], 1)], 2)), array=values[order], norm=norm,
                                   cmap="viridis_r", linewidths=0.2, alpha=0.4)  # fmt: skip
            axes.add_collection(lines)
            count += len(order)
        sizes = [next(iter(scores.values())).shape[1], *(score.shape[0] for score in scores.values())]
        for place, size in enumerate(sizes):
            axes.plot([place] * size, np.linspace(0, 1, size), ".", color="black", markersize=1)
        axes.set_xticks(range(len(sizes)), [f"{size} units" for size in sizes])
        axes.set_yticks([])
        axes.set_title(f"{'after one step' if pruned else 'before'}: {count:,} connections that carry signal")
        axes.margins(0.02)
    figure.colorbar(lines, ax=panels, label="score: share of the neuron's signal").solids.set_alpha(1)
    save(figure, path)


def heat_maps(importance: Outcome, others: Mapping[str, Outcome], layers: Sequence[str], path: Path, title: str) -> None:
    """Which connections the scores keep, which the magnitudes, and which both (Figure 10)."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = {"neither": "white", "scores only": "tab:blue", "magnitude only": "tab:orange", "both": "black"}
    figure = new_figure(14, 4 * len(others))
    figure.suptitle(title)
    rows = figure.subplots(len(others), len(layers), squeeze=False, width_ratios=[2] + [1] * (len(layers) - 1))
    for row, (rule, other) in zip(rows, others.items()):
        agreement = importance.per_layer(other)
        for axes, layer in zip(row, layers):
            ours, theirs = importance.masks[f"{layer}.weight"], other.masks[f"{layer}.weight"]
            axes.imshow((ours + 2 * theirs.int()).numpy(), cmap=ListedColormap(list(colors.values())), vmin=0, vmax=3,
                        aspect="auto", interpolation="nearest")  # fmt: skip
            axes.set(xlabel="input", ylabel=f"neuron of {layer}", title=f"{rule}: Jaccard {agreement[layer]:.2f}")
    figure.legend(handles=[Patch(facecolor=color, edgecolor="gray", label=name) for name, color in colors.items()],
                  loc="outside lower center", ncols=4, title="kept by")  # fmt: skip
    save(figure, path)


def bounds(bound: Tensor, change: Tensor, path: Path, title: str) -> None:
    """How far each output moves on every image beside how far it may (Figure 11).

    Args:
        bound, change: (images, outputs).
        path: the PNG.
        title: of the picture.
    """
    figure = new_figure(10, 5)
    axes = figure.subplots()
    outputs = range(bound.shape[1])
    for values, shift, color, label in ((change, -0.2, "tab:blue", "change"), (bound, 0.2, "tab:red", "bound")):
        parts = axes.violinplot(values.numpy(), [o + shift for o in outputs], widths=0.38, showmeans=True)
        for part in (*parts["bodies"], *(parts[name] for name in ("cmeans", "cmins", "cmaxes", "cbars"))):
            part.set_color(color)
        axes.plot([], [], "-", color=color, linewidth=6, alpha=0.5, label=f"{label}: least, mean and largest of its values")
    axes.set_xticks(list(outputs))
    axes.set(xlabel="output neuron", ylabel="absolute change of its value", title=f"{title}: {len(change):,} test images")
    axes.set_ylim(0, 1.25 * float(bound.max()))
    axes.legend()
    save(figure, path)

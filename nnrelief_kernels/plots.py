"""Pictures of a pruning history."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import atomic_write
from .history import Iteration


def plot_history(history: Sequence[Iteration], path: str | Path, title: str = "") -> None:
    """Parameters kept and the error after each retraining, by iteration (as in Figures 6 and 7 of Dekhovich et al. 2024)."""
    figure = new_figure(9, 4)
    if title:
        figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    steps = [i.iteration for i in history]
    left.plot(steps, [i.kept_percent for i in history], "o-", color="tab:blue")
    for step, i in zip(steps, history):
        left.annotate(f"{i.kept_percent:.3g}", (step, i.kept_percent), (4, 5), textcoords="offset points", fontsize=8)
    left.set(xlabel="iteration", ylabel="parameters kept, %", yscale="log", title="What is left")
    logarithmic(left.yaxis)
    left.margins(x=0.1, y=0.1)
    right.plot(steps, [i.error_after for i in history], "o-", color="tab:green", label="after retraining")
    if history[0].error_after is not None:
        right.axhline(history[0].error_after, color="gray", linestyle="--", label="dense network")
    right.set(xlabel="iteration", ylabel="test error, %", title="What it costs")
    right.margins(y=0.1)
    right.set_ylim(bottom=0)
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)


def plot_architecture(history: Sequence[Iteration], path: str | Path, title: str = "") -> None:
    """Active units of each layer at the start, after one pruning step and at the end (as in Figures 3 and 5)."""
    figure = new_figure(9, 4)
    if title:
        figure.suptitle(title)
    axes = figure.subplots()
    chosen = list({i.iteration: i for i in (history[0], history[min(1, len(history) - 1)], history[-1])}.values())
    names = list(history[0].active)
    width = 0.8 / len(chosen)
    for place, (found, color) in enumerate(zip(chosen, ("lightgray", "tab:blue", "tab:orange"))):
        label = f"iteration {found.iteration} ({found.kept_percent:.3g} % of parameters)" if found.iteration else "dense"
        left = [x + (place - (len(chosen) - 1) / 2) * width for x in range(len(names))]
        bars = axes.bar(left, [found.active[name] for name in names], width, label=label, color=color)
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="active units", title="Units with a connection in and one out")
    axes.legend()
    save(figure, path)


def logarithmic(axis: Any) -> None:
    """Labels 1, 2, 5, 10, ... instead of powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, inches; a ValueError says how to install what is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'nnrelief-kernels[plots]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with atomic_write(path) as file:
        file.write(picture.getvalue())

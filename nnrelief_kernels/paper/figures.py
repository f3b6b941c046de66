"""Pictures of runs: by iteration, by layer, and accuracy against compression; error bars are standard deviations over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plots import logarithmic, new_figure, save
from .runs import Run, Step

Runs = Mapping[str, Sequence[Run]]
"""Label to the runs of one experiment, a run per seed."""


def by_iteration(runs: Runs, path: Path, title: str) -> None:
    """Test accuracy and parameters kept by iteration (Figures 6, 7 and 9); a star marks the iteration published."""
    figure = new_figure(11, 4.5)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for label, group in runs.items():
        _curve(left, group, lambda step: step.iteration.kept_percent, _count(label, group))
        _curve(right, group, lambda step: 100 - step.last, label)
        _curve(right, group, lambda step: 100 - step.best, f"{label}, best epoch", linestyle=":")
    left.set(xlabel="iteration", ylabel="parameters kept, %", yscale="log", title="What is left")
    logarithmic(left.yaxis)
    right.set(xlabel="iteration", ylabel="test accuracy, %", title="Last epoch, and the best one (dotted)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def by_layer(group: Sequence[Run], path: Path, title: str) -> None:
    """Parameters kept and active units of each layer at the iteration published, or the last one reached (Figures 3 and 5)."""
    number = min(group[0].chosen, *(len(run.steps) - 1 for run in group))
    steps = [run.steps[number] for run in group]
    figure = new_figure(12, 7)
    figure.suptitle(f"{title}: iteration {number}, {_count('', group)}")
    upper, lower = figure.subplots(2, 1)
    names = list(steps[0].iteration.kept_per_layer)
    _bars(upper, names, steps, lambda step, name: step.iteration.kept_per_layer[name], "kept", 0, "tab:blue")
    upper.set(ylabel="parameters kept, %", yscale="log")
    logarithmic(upper.yaxis)
    names = list(steps[0].iteration.active)
    dense = [run.steps[0] for run in group]
    _bars(lower, names, dense, lambda step, name: step.iteration.active[name], "before pruning", -0.2, "lightgray")
    _bars(lower, names, steps, lambda step, name: step.iteration.active[name], f"iteration {number}", 0.2, "tab:orange")
    lower.set(ylabel="active units")
    lower.legend()
    save(figure, path)


def tradeoff(runs: Runs, path: Path, title: str) -> None:
    """Accuracy against compression, a point per iteration (Figure 4); a star marks the iteration published."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for label, group in runs.items():
        points = _steps(group)
        x, x_std = _moments(points, lambda step: step.iteration.compression)
        y, y_std = _moments(points, lambda step: 100 - step.last)
        line = axes.errorbar(x, y, y_std, x_std, fmt="o-", capsize=3, label=_count(label, group))
        _star(axes, group, x, y, line.lines[0].get_color())
    axes.set(xlabel="compression, parameters / parameters kept", ylabel="test accuracy, %", xscale="log", title=title)
    logarithmic(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def blocks(group: Sequence[Run], path: Path, title: str) -> None:
    """What is kept of each residual block by iteration (Figure 8); a block that lacks a convolution is gone."""
    run = group[0]
    names = sorted({name.rpartition(".")[0] for name in run.steps[0].iteration.kept_per_layer if name.endswith("conv2")},
                   key=lambda name: [int(part.removeprefix("layer")) for part in name.split(".")])  # fmt: skip
    kept = [[min(step.iteration.kept_per_layer[f"{name}.conv{n}"] for n in (1, 2)) for name in names] for step in run.steps]
    figure = new_figure(12, 1.5 + 0.4 * len(kept))
    axes = figure.subplots()
    image = axes.imshow([[value or float("nan") for value in line] for line in kept], vmin=0, vmax=100, aspect="auto")
    axes.set_facecolor("white")
    axes.set_xticks(range(len(names)), [name.removeprefix("layer") for name in names], rotation=90)
    axes.set_yticks(range(len(kept)), [f"{i} (published)" if i == run.chosen else str(i) for i in range(len(kept))])
    axes.set(xlabel="block (stage.number)", ylabel="iteration", title=f"{title}, seed {run.seed}; white: the block is gone")
    figure.colorbar(image, label="parameters kept in the smaller convolution, %")
    save(figure, path)


def _curve(axes: Any, group: Sequence[Run], value: Callable[[Step], float], label: str, linestyle: str = "-") -> None:
    means, deviations = _moments(_steps(group), value)
    color = axes.lines[-1].get_color() if linestyle != "-" else None
    line = axes.errorbar(range(len(means)), means, deviations, fmt="o", linestyle=linestyle, capsize=3, markersize=4,
                         label=label, color=color)  # fmt: skip
    _star(axes, group, list(range(len(means))), means, line.lines[0].get_color())


def _star(axes: Any, group: Sequence[Run], x: Sequence[float], y: Sequence[float], color: str) -> None:
    chosen = group[0].chosen
    if chosen < len(x):
        axes.plot(x[chosen], y[chosen], "*", markersize=14, color=color, markeredgecolor="black", zorder=5)


def _bars(
    axes: Any,
    names: Sequence[str],
    steps: Sequence[Step],
    value: Callable[[Step, str], float],
    label: str,
    shift: float,
    color: str,
) -> None:
    columns = [[value(step, name) for step in steps] for name in names]
    deviations = [statistics.stdev(column) for column in columns] if len(steps) > 1 else None
    bars = axes.bar([i + shift for i in range(len(names))], [statistics.fmean(column) for column in columns],
                    0.8 if shift == 0 else 0.4, yerr=deviations, capsize=2, label=label, color=color)  # fmt: skip
    axes.bar_label(bars, fmt="{:.3g}", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 6 else 0, fontsize=8)


def _steps(group: Sequence[Run]) -> list[list[Step]]:
    """By iteration, the steps of the seeds that have reached it."""
    return [[run.steps[n] for run in group if len(run.steps) > n] for n in range(max(len(run.steps) for run in group))]


def _moments(points: Sequence[Sequence[Step]], value: Callable[[Step], float]) -> tuple[list[float], list[float]]:
    columns = [[value(step) for step in steps] for steps in points]
    return [statistics.fmean(c) for c in columns], [statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns]


def _count(label: str, group: Sequence[Run]) -> str:
    seeds = f"{len(group)} seed{'s' if len(group) > 1 else ''}"
    return f"{label} ({seeds})" if label else seeds

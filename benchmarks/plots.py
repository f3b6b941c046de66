"""Two pictures of a suite: the time of every layer, and how near the machine's roofs that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnrelief_kernels.plots import new_figure, save

from .report import SCORE, Record, by_layer

COLORS = {SCORE: "tab:blue", "floor": "silver", "forward": "tab:orange"}
LABELED = 6
"""Points of the roofline that carry a name: those that take most of the time."""


def plot_times(records: Sequence[Record], path: Path) -> None:
    """Median time of the scores per layer beside `floor` and `forward`, on a logarithmic axis."""
    layers = by_layer(records)
    shown = [name for name in COLORS if any(name in found for found in layers.values())]
    figure = new_figure(8.5, 1.3 + 0.38 * len(layers))
    axes = figure.subplots()
    height = 0.8 / len(shown)
    for place, contender in enumerate(shown):
        centers = [y + (place - (len(shown) - 1) / 2) * height for y in range(len(layers))]
        times = [found[contender].p50 for found in layers.values()]
        axes.barh(centers, times, height, label=contender, color=COLORS[contender])
    axes.set_yticks(range(len(layers)), [_label(found[SCORE]) for found in layers.values()], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set(xscale="log", xlabel="µs per call (median)")
    axes.grid(axis="x", which="major", alpha=0.4)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(shown), fontsize=8)
    _save(figure, path, records[0])


def plot_roofline(records: Sequence[Record], path: Path, bandwidth: float, peak: float) -> None:
    """Multiply-adds per second against multiply-adds per byte; roofs in bytes and in multiply-adds per second."""
    figure = new_figure(8.5, 5.2)
    axes = figure.subplots()
    own = [found[SCORE] for found in by_layer(records).values()]
    intensity = {r.layer: r.score_macs / r.bytes for r in own}
    ridge = peak / bandwidth
    ends = [min(ridge, *intensity.values()) / 2, max(ridge, *intensity.values()) * 2]
    axes.plot([ends[0], ridge, ends[1]], [ends[0] * bandwidth, peak, peak], color="black", linewidth=1)
    axes.annotate(f"{bandwidth / 1e9:.3g} GB/s (sum of 256 MiB)", (ends[0], ends[0] * bandwidth), (8, -2),
                  textcoords="offset points", fontsize=8, va="top")  # fmt: skip
    axes.annotate(f"{peak / 1e9:.3g}e9 multiply-adds/s (float32 matrix product)", (ends[1], peak), (-2, 5),
                  textcoords="offset points", fontsize=8, ha="right")  # fmt: skip
    for path_taken in dict.fromkeys(r.path for r in own):
        points = [r for r in own if r.path == path_taken]
        speeds = [r.score_macs / r.p50 * 1e6 for r in points]
        axes.scatter([intensity[r.layer] for r in points], speeds, s=28, label=path_taken, alpha=0.8)
    costliest = sorted(own, key=lambda r: r.p50 * r.count, reverse=True)[:LABELED]
    placed: list[tuple[float, float]] = []
    apart = (peak / min(r.score_macs / r.p50 * 1e6 for r in own)) ** 0.04  # a line of text on the logarithmic axis
    for r in sorted(costliest, key=lambda r: r.score_macs / r.p50):
        x, y = intensity[r.layer], r.score_macs / r.p50 * 1e6
        at = max([y, *(other * apart for near, other in placed if x / 3 < near < x * 3)])
        placed.append((x, at))
        axes.annotate(f"{r.layer} x{r.count}", (x, at), (6, -3), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="multiply-adds the scores need / byte of activations", ylabel="multiply-adds / s"
    )
    axes.grid(which="major", alpha=0.4)
    figure.legend(
        title=f"path (named: the {len(costliest)} costliest)", loc="outside lower center", ncols=3, fontsize=8, title_fontsize=8
    )
    _save(figure, path, records[0])


def _label(record: Record) -> str:
    where = f" on {record.map}" if record.map else ""
    stride = f" /{record.stride}" if record.stride > 1 else ""
    count = f"  (x{record.count})" if record.count > 1 else ""
    return f"{record.layer}  {record.weight}{where}{stride}{count}"


def _save(figure: Any, path: Path, record: Record) -> None:
    figure.suptitle(
        f"{record.suite}, {record.samples} samples, {record.dtype}, {record.memory_format}\n"
        f"{record.device}, {record.threads} threads, torch {record.torch}, nnrelief-kernels {record.package}",
        fontsize=9,
    )
    save(figure, path)

"""Timings as records: CSV to keep, a table to read, and the sums and ratios that summarise a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .rows import read_rows, write_rows

SCORE = "score"
"""The contender that is compared with all others."""


@dataclass(frozen=True)
class Record:
    """One contender on one layer; p20, p50, p80 in microseconds, bytes of the activations, macs of one call."""

    device: str
    threads: int
    torch: str
    package: str
    command: str
    suite: str
    samples: int
    dtype: str
    memory_format: str
    layer: str
    count: int
    weight: str
    map: str
    stride: int
    padding: int
    groups: int
    path: str
    contender: str
    runs: int
    p20: float
    p50: float
    p80: float
    bytes: int
    forward_macs: int
    score_macs: int


Layers = dict[str, dict[str, Record]]


def write_csv(records: Sequence[Record], path: Path) -> None:
    """One row per record under a line of names."""
    rows = ({name: f"{v:.2f}" if isinstance(v, float) else v for name, v in asdict(r).items()} for r in records)
    write_rows(path, [field.name for field in fields(Record)], rows)


def read_csv(path: Path) -> list[Record]:
    """What `write_csv` wrote."""
    numbers = {"int": int, "float": float}
    rows = read_rows(path)
    if not rows or rows[0].keys() != {field.name for field in fields(Record)}:
        raise ValueError(f"{path} must be a CSV of `python -m benchmarks --out`, with its columns and a row or more")
    return [Record(**{f.name: numbers.get(str(f.type), str)(row[f.name]) for f in fields(Record)}) for row in rows]


def by_layer(records: Iterable[Record]) -> Layers:
    """{layer: {contender: record}}, in the order of the network."""
    layers: Layers = {}
    for record in records:
        layers.setdefault(record.layer, {})[record.contender] = record
    return layers


def with_contender(layers: Layers, contender: str) -> Layers:
    """The layers that a contender was timed on."""
    return {name: found for name, found in layers.items() if contender in found}


def total(layers: Layers, contender: str) -> float:
    """Microseconds of all layers of the network, each times its count."""
    return sum(found[contender].p50 * found[contender].count for found in layers.values())


def ratio(found: Mapping[str, Record], baseline: str) -> float:
    """Time of the scores over time of the baseline on one layer."""
    return found[SCORE].p50 / found[baseline].p50


def geometric_mean(layers: Layers, baseline: str) -> float:
    """`ratio` over all layers of the network, each counted as often as it occurs."""
    counts = [found[SCORE].count for found in layers.values()]
    logs = [math.log(ratio(found, baseline)) for found in layers.values()]
    return math.exp(sum(n * log for n, log in zip(counts, logs)) / sum(counts))


def table(records: Sequence[Record]) -> str:
    """A line per layer, then the network's sums and geometric means."""
    layers, first = by_layer(records), records[0]
    baselines = list(dict.fromkeys(r.contender for r in records if r.contender != SCORE))
    head = ["layer", "count", "path", "µs", "GB/s", "% of floor", *(f"/ {name}" for name in baselines)]
    lines = [head]
    for name, found in layers.items():
        own = found[SCORE]
        lines.append(
            [
                name,
                f"x{own.count}",
                own.path,
                f"{own.p50:.1f}",
                f"{own.bytes / own.p50 / 1e3:.2f}",
                f"{100 / ratio(found, 'floor'):.0f}" if "floor" in found else "",
                *(_ratio(ratio(found, b)) if b in found else "" for b in baselines),
            ]
        )
    shared = {b: with_contender(layers, b) for b in baselines}
    size = sum(found[SCORE].bytes * found[SCORE].count for found in layers.values())
    sums = total(layers, SCORE)
    floor = f"{100 * total(layers, 'floor') / sums:.0f}" if "floor" in baselines else ""
    count = f"x{sum(found[SCORE].count for found in layers.values())}"
    times = [_ratio(total(on, SCORE) / total(on, b)) for b, on in shared.items()]
    lines.append(["network", count, "", f"{sums:.1f}", f"{size / sums / 1e3:.2f}", floor, *times])
    lines.append(["geometric mean", "", "", "", "", "", *(_ratio(geometric_mean(on, b)) for b, on in shared.items())])
    title = (
        f"{first.suite}: {first.samples} samples, {first.dtype}, {first.memory_format}; {first.device}, "
        f"{first.threads} threads, torch {first.torch}, nnrelief-kernels {first.package}"
    )
    note = "µs are medians of one call; columns '/ x' are its time over that of x, lower is better; network: calls times count"
    return "\n".join([title, *_aligned(lines), note])


def _ratio(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width; the name and the path to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join(cell.ljust(w) if place in (0, 2) else cell.rjust(w) for place, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    ]

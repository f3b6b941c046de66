"""Tables of what was measured beside what was published, as markdown and JSON lines; the two never share a column."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_write
from .published import Table
from .runs import Run, Step

NOT_RUN = "not run"
MEASURES: dict[str, tuple[tuple[str, Callable[[Step, Step], float]], ...]] = {
    "error": (("error %, last epoch", lambda dense, step: step.last), ("error %, best epoch", lambda dense, step: step.best)),
    "accuracy": (
        ("accuracy before pruning %, last epoch", lambda dense, step: 100 - dense.last),
        ("accuracy before pruning %, best epoch", lambda dense, step: 100 - dense.best),
    ),
    "drop": (
        ("drop of accuracy %, last epochs", lambda dense, step: step.last - dense.last),
        ("drop of accuracy %, best epochs", lambda dense, step: step.best - dense.best),
    ),
    "kept": (("parameters kept %", lambda dense, step: step.iteration.kept_percent),),
    "pruned": (("parameters pruned %", lambda dense, step: 100 - step.iteration.kept_percent),),
    "flops": (("FLOPs pruned %", lambda dense, step: step.iteration.flops_pruned_percent),),
}
"""Each published quantity, and what is measured for it from the network before pruning and the chosen iteration."""


@dataclass(frozen=True)
class Row:
    """A published value and what was measured for it, a value per seed."""

    network: str
    quantity: str
    published: str
    measured: tuple[float, ...]
    seeds: tuple[int, ...]
    command: str


def rows(table: Table, runs: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The table's rows at the iterations that the publication reports; seeds that have not reached them do not count."""
    found = []
    for result in table.results:
        reached = [run for run in runs[result.experiment] if run.reached]
        for quantity, published in result.values.items():
            for name, value in MEASURES[quantity]:
                found.append(
                    Row(
                        network=result.network,
                        quantity=name,
                        published=published,
                        measured=tuple(value(run.steps[0], run.steps[run.chosen]) for run in reached),
                        seeds=tuple(run.seed for run in reached),
                        command=reached[0].command if reached else "",
                    )
                )
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """ "mean ± standard deviation" (of the sample), or the one value."""
    if not values:
        return NOT_RUN
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *lines))


def comparison(found: Sequence[Row]) -> str:
    """Rows as markdown."""
    return markdown(
        ("network", "quantity", "published", "measured ± std", "seeds", "command"),
        [
            (row.network, row.quantity, row.published, spread(row.measured), ", ".join(map(str, row.seeds)) or "–",
             f"`{row.command}`" if row.command else "–")
            for row in found
        ],
    )  # fmt: skip


def by_iteration(runs: Sequence[Run]) -> str:
    """All iterations of an experiment as markdown, the published one in bold; says how far seeds got that are not done."""
    lines = []
    for number in range(max((len(run.steps) for run in runs), default=0)):
        there = [run.steps[number] for run in runs if len(run.steps) > number]
        cells = [
            str(number),
            str(len(there)),
            spread([step.iteration.kept_percent for step in there]),
            spread([step.last for step in there]),
            spread([step.best for step in there]),
            spread([step.iteration.flops_pruned_percent for step in there], 1),
            _units(there),
        ]
        lines.append([f"**{cell}**" for cell in cells] if number == runs[0].chosen else cells)
    text = markdown(
        ("iteration", "seeds", "kept %", "error %, last epoch", "error %, best epoch", "FLOPs pruned %", "active units"), lines
    )
    if any(run.steps[0].iteration.kept_percent < 100 for run in runs if run.steps):
        text += "\nWeights that training itself took to zero do not count as kept before pruning either.\n"
    for run in runs:
        if len(run.steps) <= run.iterations:
            reached = f"iteration {len(run.steps) - 1} of {run.iterations}"
            text += f"\nSeed {run.seed} has got to {reached}; the same command goes on.\n"
    return text


def write(folder: Path, name: str, title: str, parts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """`name`.md from the parts, and `name`.jsonl from the records."""
    with atomic_write(folder / f"{name}.md") as file:
        file.write("\n".join([f"# {title}\n", *parts]).encode())
    with atomic_write(folder / f"{name}.jsonl") as file:
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def _units(steps: Sequence[Step]) -> str:
    names = list(steps[0].iteration.active)
    if len(names) > 6:
        return "–"
    return "-".join(str(math.floor(statistics.fmean(s.iteration.active[name] for s in steps) + 0.5)) for name in names)

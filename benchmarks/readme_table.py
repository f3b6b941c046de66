"""Keep README's benchmark table equal to the committed CSVs: python -m benchmarks.readme_table [--check]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .report import SCORE, Layers, by_layer, geometric_mean, ratio, read_csv, total, with_contender

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
LARGE = 28
"""Maps from this size on are bound by reading them."""


def table(paths: list[Path]) -> str:
    """Markdown: a row per CSV and what it was measured on."""
    head = [
        "network", "samples", "scores, ms", "/ naive", "/ compiled", "/ plain Gram", "/ forward",
        f"/ floor, maps ≥ {LARGE}²", "worst / plain Gram", "worst / forward",
    ]  # fmt: skip
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    origins = []
    for path in paths:
        records = read_csv(path)
        first, layers = records[0], by_layer(records)
        large = {n: found for n, found in layers.items() if found[SCORE].map and int(found[SCORE].map.split("x")[0]) >= LARGE}
        details = [first.suite, *([first.dtype] if first.dtype != "float32" else [])]
        details += [first.memory_format] if first.memory_format != "contiguous" else []
        lines.append(
            [
                ", ".join(details),
                str(first.samples),
                f"{total(layers, SCORE) / 1e3:.3g}",
                _cell(layers, "naive", geometric_mean),
                _cell(layers, "compiled", geometric_mean),
                _cell(layers, "gram", geometric_mean),
                _cell(layers, "forward", lambda on, name: total(on, SCORE) / total(on, name)),
                _cell(large, "floor", geometric_mean),
                _worst(layers, "gram"),
                _worst(layers, "forward"),
            ]
        )
        origins.append(f"{first.device}, {first.threads} threads, torch {first.torch}, nnrelief-kernels {first.package}")
    rows = [f"| {' | '.join(line)} |" for line in lines]
    note = (
        "Time of the scores over the time of each other way (lower is better): geometric mean over the network's layers, "
        "of forward the whole network's sums. "
        f"Measured on {'; '.join(dict.fromkeys(origins))}. The CSVs in `benchmarks/results` hold the command of each row."
    )
    return "\n".join([*rows, "", note])


def refreshed(readme: str, paths: list[Path]) -> str:
    """The text of a README with the table between its markers made anew."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README must hold one line {BEGIN} and after it one line {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(paths)}\n\n{END}{rest.split(END)[1]}"


def _cell(layers: Layers, baseline: str, summary: Callable[[Layers, str], float]) -> str:
    on = with_contender(layers, baseline)
    return _number(summary(on, baseline)) if on else ""


def _worst(layers: Layers, baseline: str) -> str:
    on = with_contender(layers, baseline)
    if not on:
        return ""
    name = max(on, key=lambda layer: ratio(on[layer], baseline))
    return f"{_number(ratio(on[name], baseline))} ({name})"


def _number(value: float) -> str:
    """1/n where the scores are many times faster."""
    return f"1/{1 / value:.0f}" if value < 0.1 else f"{value:.2f}"


def main() -> int:
    """0 when README holds the table, 1 when `--check` finds that it does not, 2 when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description="Refresh README's benchmark table.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README differs from the CSVs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of cpu-*.csv")
    arguments = parser.parse_args()
    try:
        paths = sorted(arguments.results.glob("cpu-*.csv"))
        if not paths:
            raise ValueError(f"{arguments.results} holds no cpu-*.csv; python -m benchmarks --out makes them")
        old = arguments.readme.read_text()
        new = refreshed(old, paths)
        if arguments.check and new != old:
            print(
                f"{arguments.readme} differs from {arguments.results}: run python -m benchmarks.readme_table", file=sys.stderr
            )
            return 1
        if not arguments.check:
            arguments.readme.write_text(new)
    except (ValueError, OSError) as problem:
        print(f"readme_table: error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

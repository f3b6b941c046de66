"""The machine code of the compiled library's sm_90 kernels, and the ways that warps take through it."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.aot import Instruction, Loop, instructions, loops, slots, tool


class Unclear(ValueError):
    """The compiler made other loops than the model knows."""


@dataclass(frozen=True)
class Kernel:
    """The machine code of one kernel, without what follows its last exit: blocks for warps that have come apart."""

    code: list[Instruction]

    @cached_property
    def whole(self) -> Loop:
        return loops(self.code)

    def count(self, loop: Loop, operation: str) -> int:
        """In the loop, not in loops inside it."""
        return sum(n for name, n in loop.operations.items() if name.split(".")[0] == operation)

    def around(self, wanted: Loop) -> list[Loop]:
        """The loops that hold it, from the kernel itself to the loop."""
        return [loop for loop in self.whole.in_order() if loop.first <= wanted.first and wanted.last <= loop.last]

    def way(
        self, loop: Loop, first: int | None = None, last: int | None = None, *, never: Collection[int] = (),
        through: Collection[int] = (),
    ) -> int:  # fmt: skip
        """Issue slots on the longest way through the loop, or from `first` to `last` of it, that avoids `never`, without those
        of the loops inside it; with `through`, on the shortest way that has all of these."""
        start, end = loop.first if first is None else first, loop.last if last is None else last
        inside = {index for inner in loop.inside for index in range(inner.first, inner.last)}
        own = {index: slots(self.code[index].operation) for index in range(start, end) if index not in inside}
        sign, reward = (-1, 1 + sum(own.values())) if through else (1, 0)
        best = [-math.inf] * (end - start) + [0.0]
        for index in range(end - 1, start - 1, -1):
            if index in never:
                continue
            one, following = self.code[index], [index + 1]
            if one.operation.startswith("BRA") and one.operation != "BRA.DIV" and one.target is not None:
                forward = one.target > index
                following = ([index + 1] if one.predicated or not forward else []) + ([one.target] if forward else [])
            elif one.operation == "EXIT" and not one.predicated:
                following = [end]
            rest = max(best[min(to, end) - start] for to in following)
            best[index - start] = sign * own.get(index, 0) + reward * (index in through) + rest
        length = sign * (best[0] - reward * len(through))
        if not 0 <= length <= sum(own.values()):
            raise Unclear(f"no way from {start} to {end}")
        return int(length)

    def places(self, loop: Loop, operation: str) -> list[int]:
        """Where an operation stands in the loop, not in loops inside it."""
        inside = {index for inner in loop.inside for index in range(inner.first, inner.last)}
        whole = range(loop.first, loop.last)
        return [index for index in whole if index not in inside and self.code[index].operation.startswith(operation)]


def kernels(library: Path) -> dict[str, Kernel]:
    """The library's sm_90 kernels by their mangled names; none where it has no code for sm_90."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        tool("cuobjdump", "-xelf", "sm_90", str(library.resolve()), folder=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            for section in re.split(r"^\s*\.section\s+\.text\.", tool("nvdisasm", "-c", str(cubin)), flags=re.MULTILINE)[1:]:
                code = instructions(section)
                exits = [index for index, one in enumerate(code) if one.operation == "EXIT"]
                found[section.split(",")[0]] = Kernel(code[: exits[-1] + 1])
    return found


def named(found: dict[str, Kernel], part: str) -> Kernel:
    names = [name for name in found if part in name]
    if len(names) != 1:
        raise Unclear(f"kernels named {part}: {len(names)}")
    return found[names[0]]


def only(what: str, found: list[Loop]) -> Loop:
    if len(found) != 1:
        raise Unclear(f"expected one loop with {what}, found {len(found)}")
    return found[0]

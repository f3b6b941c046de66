"""Rules that every Triton kernel keeps, read off the sources."""

import ast
import re
from pathlib import Path

import pytest

import nnrelief_kernels

FOLDER = Path(nnrelief_kernels.__file__).parent / "backends" / "triton"
SOURCES = sorted(FOLDER.glob("*.py"))


def broken_rules(source):
    """The (line, rule) pairs that a source breaks."""
    tree = ast.parse(source)
    parent = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]

    def named(node, name):
        return isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == name

    def converted(node, types):
        attribute = parent[node]
        if not (isinstance(attribute, ast.Attribute) and attribute.attr == "to"):
            return False
        return any(ast.unparse(argument) in types for argument in parent[attribute].args)

    def used_as(node):
        """The names that a result is assigned to."""
        return [ast.unparse(target) for target in getattr(parent[node], "targets", [])]

    for node in calls:
        if named(node, "tl.program_id"):
            variable = (used_as(node) or [""])[0]
            uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == variable and isinstance(n.ctx, ast.Load)]
            cast = all(isinstance(parent[use], ast.BinOp) and converted(parent[use], {"tl.int64"}) for use in uses)
            if ast.unparse(node.args[0]) != "0":
                yield node.lineno, "grid x only"
            if not (converted(node, {"tl.int64"}) or (uses and cast)):
                yield node.lineno, "program ids become int64 at once"
        if named(node, "tl.load"):
            raw = set(used_as(node)) & {"row", "halo"}  # lags.py converts what it fetched ahead where it uses it
            wide = {"tl.float32", "tl.float64", "tl.int32", "inner.dtype"}
            if not converted(node, wide) and not all(f"{name}.to(tl.float32)" in source for name in raw or {"?"}):
                yield node.lineno, "what is loaded is upcast"
        if named(node, "tl.dot") and "input_precision" not in {keyword.arg for keyword in node.keywords}:
            yield node.lineno, "a dot states its precision"
        if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("atomic_"):
            yield node.lineno, "no atomics"
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("item", "tolist", "cpu", "synchronize"):
            yield node.lineno, "nothing waits for the device"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kernels_keep_the_rules(path):
    assert not list(broken_rules(path.read_text()))
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("i = tl.program_id(0)", "program ids become int64 at once"),
        ("i = tl.program_id(1).to(tl.int64)", "grid x only"),
        ("x = tl.load(p)", "what is loaded is upcast"),
        ("x = tl.dot(a, b)", "a dot states its precision"),
        ("tl.atomic_add(p, x)", "no atomics"),
        ("least = sums.item()", "nothing waits for the device"),
    ],
)
def test_the_rules_can_be_broken(line, rule):
    assert rule in {found for _, found in broken_rules(line)}


class Forgetter(ast.NodeTransformer):
    """Takes one conversion of what is loaded or of a program id, or one dot's precision, out of a source: the `left`th."""

    def __init__(self, left):
        self.left = left

    def visit_Call(self, node):
        self.generic_visit(node)
        converted = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) and node.func.attr == "to" else ""
        stated = [keyword for keyword in node.keywords if keyword.arg == "input_precision"]
        if stated or re.match(r"\(?(tl\.load\(|program\b|row$|halo$)", converted):
            self.left -= 1
            if self.left == -1:
                if not stated:
                    return node.func.value
                node.keywords.remove(stated[0])
        return node


def test_no_kernel_can_forget_a_rule():
    forgotten = 0
    for path in SOURCES:
        left = 0
        while True:
            forgetter = Forgetter(left)
            source = ast.unparse(forgetter.visit(ast.parse(path.read_text())))
            if forgetter.left >= 0:
                break
            assert list(broken_rules(source)), f"{path.name}, {left}"
            left, forgotten = left + 1, forgotten + 1
    assert forgotten > 20

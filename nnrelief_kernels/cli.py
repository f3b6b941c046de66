"""The nnrelief command: info, demo, prune, score and bench."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import backends
from .collect import Collector
from .files import atomic_write
from .masks import dense_state, fold_masks
from .paper.data import Dataset, load
from .paper.models import MODELS
from .paper.training import LENET, Recipe, error, train
from .plots import plot_architecture, plot_history
from .pruning import Iteration, prune_iteratively
from .scoring import VARIANTS
from .selection import COMPATS, keep_mask

SOURCE = Path(__file__).parents[1]
"""A checkout, or the folder that the package is installed in."""
EXTRAS = {"plots": "matplotlib", "data": "sklearn", "progress": "tqdm", "safetensors": "safetensors"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it worked, 2 with one line on standard error when what was asked for is wrong."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
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
    demo.set_defaults(run=_demo)

    prune = commands.add_parser(
        "prune",
        help="train a LeNet and prune it iteratively",
        description="Train a LeNet with the recipe of the publication, then repeat: score, prune, rewind, retrain.",
        epilog="example: nnrelief prune --model lenet300-100 --data mnist.npz --iterations 8 --out mnist",
    )
    _add_model_and_data(prune)
    prune.add_argument(
        "--alpha-conv", type=_alpha, default=0.9, help="share of its signal a filter keeps (default: %(default)s)"
    )
    prune.add_argument(
        "--alpha-fc", type=_alpha, default=0.95, help="share of its signal a neuron keeps (default: %(default)s)"
    )
    prune.add_argument("--iterations", type=_positive, default=8)
    prune.add_argument(
        "--epochs", type=_positive, default=LENET.epochs, help="of each training (default: %(default)s, the paper's)"
    )
    prune.add_argument("--samples", type=_positive, default=1000, help="training images to score on (default: %(default)s)")
    prune.add_argument("--variant", choices=VARIANTS, default="paper", help="score of convolutions (default: %(default)s)")
    prune.add_argument("--compat", choices=COMPATS, default="paper", help="selection rule (default: %(default)s)")
    prune.add_argument("--no-rewind", action="store_true", help="retrain from the surviving weights, not from the initial ones")
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument("--out", type=Path, required=True, help="folder for history, pictures and weights")
    prune.add_argument("--resume", action="store_true", help="go on with the run that --out holds")
    prune.set_defaults(run=_prune)

    score = commands.add_parser(
        "score",
        help="score the connections of a trained LeNet",
        description="Score every connection of a trained LeNet on training images, and show how few carry the signal.",
        epilog="example: nnrelief score --model lenet300-100 --data digits --weights demo/pruned.safetensors",
    )
    _add_model_and_data(score)
    score.add_argument(
        "--weights", type=Path, required=True, help="a state_dict: .safetensors, or .pt (loaded with weights_only)"
    )
    score.add_argument("--samples", type=_positive, default=1000, help="training images to score on (default: %(default)s)")
    score.add_argument("--variant", choices=VARIANTS, default="paper")
    score.add_argument("--out", type=Path, help="file for the scores, as safetensors")
    score.set_defaults(run=_score)

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


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--data", required=True, metavar="digits|PATH.npz", help="npz keys: x_train, y_train, x_test, y_test")


def _alpha(text: str) -> float:
    try:
        keep_mask(torch.ones(1, 1), float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text!r}") from None
    return float(text)


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


def _demo(arguments: argparse.Namespace) -> None:
    _run(arguments.out, arguments.seed, "lenet300-100", load("digits"), LENET.scaled(30), iterations=6, samples=1000)


def _prune(arguments: argparse.Namespace) -> None:
    checkpoint = arguments.out / "checkpoint.pt"
    if checkpoint.exists() and not arguments.resume:
        raise ValueError(f"{arguments.out} already holds a run: add --resume to go on with it, or name another folder")
    _run(
        arguments.out,
        arguments.seed,
        arguments.model,
        load(arguments.data),
        LENET.scaled(arguments.epochs),
        iterations=arguments.iterations,
        samples=arguments.samples,
        rewind=not arguments.no_rewind,
        checkpoint=True,
        alpha_conv=arguments.alpha_conv,
        alpha_fc=arguments.alpha_fc,
        variant=arguments.variant,
        compat=arguments.compat,
    )


def _run(
    out: Path,
    seed: int,
    model_name: str,
    data: Dataset,
    recipe: Recipe,
    *,
    iterations: int,
    samples: int,
    rewind: bool = True,
    checkpoint: bool = False,
    **options: Any,
) -> None:
    safetensors = _safetensors()
    torch.manual_seed(seed)
    model = MODELS[model_name](data.image, data.classes)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / ".writable"):  # a folder that cannot be written is told before the training, not after
        pass
    (out / ".writable").unlink()
    initial = dense_state(model)
    if not (checkpoint and (out / "checkpoint.pt").exists()):
        train(model, data, recipe)
    history = prune_iteratively(
        model,
        data.pruning_set(samples, seed),
        lambda pruned: train(pruned, data, recipe, description="retraining"),
        iterations=iterations,
        rewind=initial if rewind else None,
        evaluate=lambda m: error(m, data.x_test, data.y_test),
        checkpoint=out if checkpoint else None,
        log=out / "history.jsonl",
        **options,
    )
    print(table(history))
    title = f"{model_name} on {data.name}"
    plot_history(history, out / "history.png", title)
    plot_architecture(history, out / "architecture.png", title)
    fold_masks(model)
    with atomic_write(out / "pruned.safetensors") as file:
        file.write(safetensors.save({name: value.contiguous() for name, value in model.state_dict().items()}))
    print(f"written to {out}: history.jsonl, history.png, architecture.png, pruned.safetensors")


def table(history: Sequence[Iteration]) -> str:
    """The history as text, one line per iteration."""
    lines = ["iteration  error before -> after retraining  kept %  compression  FLOPs pruned %  active units"]
    for i in history:
        before = "" if i.error_before is None else f"{i.error_before:.2f} ->"
        after = "" if i.error_after is None else f"{i.error_after:.2f} %"
        units = "-".join(str(count) for count in i.active.values())
        lines.append(
            f"{i.iteration:9}  {before:>13} {after:>17}  {i.kept_percent:6.2f}  {i.compression:10.1f}x  "
            f"{i.flops_pruned_percent:14.1f}  {units}"
        )
    return "\n".join(lines)


def _score(arguments: argparse.Namespace) -> None:
    safetensors = _safetensors()
    data = load(arguments.data)
    model = MODELS[arguments.model](data.image, data.classes)
    model.load_state_dict(_weights(arguments.weights))
    with Collector(model, variant=arguments.variant) as collector:
        collector.run(data.pruning_set(arguments.samples))
    scores = collector.scores()
    print("layer   connections  kept at alpha 0.95")
    for name, layer_scores in scores.items():
        try:
            kept = keep_mask(layer_scores, 0.95)
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem
        print(f"{name:8}{kept.numel():11}  {100 * float(kept.double().mean()):.2f} %")
    if arguments.out:
        with atomic_write(arguments.out) as file:
            file.write(safetensors.save(scores))
        print(f"scores written to {arguments.out}")


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(_safetensors().load(path.read_bytes()))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpickling and parsing raise types of their own
        raise ValueError(f"{path} is not a readable state_dict: {str(problem).splitlines()[0]}") from problem
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a state_dict, names to tensors")
    return state


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as problem:
        raise ValueError("weights are stored as safetensors: pip install 'nnrelief-kernels[safetensors]'") from problem
    return safetensors.torch

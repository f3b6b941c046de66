"""`nnrelief paper`: train or go on with what a table or figure needs, and write it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from . import reports
from .data import Dataset
from .experiments import EXPERIMENTS, OURS, PUBLISHED_WEIGHTS, Experiment
from .reports import Context
from .runs import Run, Speed, read_run, run
from .sources import enlarged_digits, load_named

LENETS, VGGS = ("lenet300-100", "lenet5"), ("vgg-like-cifar10-adam", "vgg-like-cifar10-sgd")


def _resnets(data: str) -> tuple[str, ...]:
    return tuple(f"resnet{depth}-{data}-{optimizer}" for depth in (20, 56) for optimizer in ("sgd", "adam"))


@dataclasses.dataclass(frozen=True)
class Product:
    """A table or figure: who writes it, from which experiments, and after how many iterations (None: all of them)."""

    write: Callable[[Context, str, tuple[str, ...]], None]
    needs: tuple[str, ...]
    iterations: int | None = None


PRODUCTS = {
    "table1": Product(reports.results, LENETS),
    "table2": Product(reports.results, VGGS[:1]),
    "table3": Product(reports.results, ("vgg-like-tiny-imagenet-adam",)),
    "table4": Product(reports.results, _resnets("cifar10")),
    "table5": Product(reports.results, _resnets("cifar100")),
    "pretrained": Product(reports.results, tuple(PUBLISHED_WEIGHTS)),
    "table6": Product(reports.jaccard_table, LENETS[:1], 0),
    "table7": Product(reports.active_table, LENETS[:1], 0),
    "figure2": Product(reports.network_figure, LENETS[:1], 0),
    "figure3": Product(reports.layer_figure, VGGS[:1]),
    "figure4": Product(reports.tradeoff_figure, tuple(name for name in EXPERIMENTS if name.startswith("vgg13"))),
    "figure5": Product(reports.layer_figure, ("vgg-like-tiny-imagenet-adam",)),
    "figure6": Product(reports.iteration_figure, VGGS),
    "figure7": Product(reports.iteration_figure, _resnets("cifar10")),
    "figure8": Product(reports.blocks_figure, ("resnet56-cifar10-sgd",)),
    "figure9": Product(reports.iteration_figure, _resnets("cifar100")),
    "figure10": Product(reports.heat_map_figure, LENETS[:1], 0),
    "figure11": Product(reports.bounds_figure, ("resnet20-published",), 0),
    "beyond": Product(reports.results, tuple(OURS)),
    "lenets": Product(reports.iteration_figure, LENETS),
    "first-step": Product(reports.rules_table, ("lenet300-100", "lenet5", "resnet20-published", "resnet56-published"), 0),
}
"""The publication's, and our own: "pretrained" is Table 4 from weights that others have published, "beyond" Table 1 by another
recipe, "lenets" draws Table 1 by iteration, "first-step" compares the authors' rules."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=[*PRODUCTS, "all"], metavar="WHAT", help=", ".join([*PRODUCTS, "all"]))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with mnist.npz, cifar10.npz, ...; torchvision "
                        "downloads into it what is missing (default: %(default)s)")  # fmt: skip
    parser.add_argument("--weights", type=Path, help="folder of published checkpoints (default: weights/ in --data)")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder for runs and results (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--only", choices=list(EXPERIMENTS), nargs="+", help="train no other experiments than these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--authors", action="store_true", help="with the choices of the authors' scripts in place of the text; "
                        "results go to authors/ in --out")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="train nothing: write what the runs in --out give so far")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute: one epoch on a few enlarged digits")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile with CUDA graphs")


def main(arguments: argparse.Namespace) -> None:
    """Write one table or figure, or all.

    Raises:
        ValueError: data or weights are missing, or --out holds runs with other settings.
    """
    context = Context(
        out=arguments.out / "authors" if arguments.authors else arguments.out,
        data={},
        load=lambda name: _load(name, arguments),
        experiments={name: _adapted(experiment, arguments) for name, experiment in EXPERIMENTS.items()},
        runs=lambda name: _runs(arguments, name),
        run_folder=lambda name, seed: _folder(arguments, name, seed),
        seeds=arguments.seeds,
    )
    wanted = list(PRODUCTS) if arguments.what == "all" else [arguments.what]
    for what in wanted:
        product = PRODUCTS[what]
        if not arguments.report:
            for name in product.needs:
                if arguments.only is None or name in arguments.only:
                    _train(context, arguments, what, name, product.iterations)
        product.write(context, what, product.needs)


def _train(context: Context, arguments: argparse.Namespace, what: str, name: str, iterations: int | None) -> None:
    for seed in arguments.seeds[:1] if context.experiments[name].weights else arguments.seeds:
        print(f"{what}: {name}, seed {seed}", flush=True)
        run(
            context.experiments[name],
            context.dataset(name),
            seed,
            _folder(arguments, name, seed),
            command=_command(arguments, name),
            weights=arguments.weights or arguments.data / "weights",
            speed=Speed(arguments.bf16, arguments.compile),
            iterations=iterations,
        )


def _adapted(experiment: Experiment, arguments: argparse.Namespace) -> Experiment:
    if arguments.authors:
        experiment = experiment.authors()
    return experiment.quick() if arguments.quick else experiment


def _load(name: str, arguments: argparse.Namespace) -> Dataset:
    data = enlarged_digits(name) if arguments.quick else load_named(name, arguments.data)
    return data.to(arguments.device)


def _folder(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = arguments.out / "runs" / (f"{name}-authors" if arguments.authors else name) / f"seed{seed}"
    return folder


def _runs(arguments: argparse.Namespace, name: str) -> list[Run]:
    chosen = _adapted(EXPERIMENTS[name], arguments).chosen
    found = [read_run(_folder(arguments, name, seed), chosen) for seed in arguments.seeds]
    return [one for one in found if one is not None]


def _command(arguments: argparse.Namespace, name: str) -> str:
    """The shortest command that gives this experiment's results."""
    whole = [what for what, product in PRODUCTS.items() if name in product.needs and product.iterations is None]
    what = whole[0] if whole else "first-step"
    flags = [flag for flag in ("authors", "quick", "bf16", "compile") if getattr(arguments, flag)]
    return " ".join(["nnrelief paper", what, "--only", name, *(f"--{flag}" for flag in flags)])

"""The arguments and the run of `python -m benchmarks` and `nnrelief bench`."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nnrelief_kernels import explain
from nnrelief_kernels.progress import progress

from .baselines import BASELINES, SCORING, Contender, score, tolerance
from .check import check, check_oracle, oracle
from .machine import bandwidth, machine, peak
from .plots import plot_roofline, plot_times
from .report import SCORE, Record, table, write_csv
from .suites import SUITES, Layer, Suite, suite
from .timing import measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DEFAULT_BASELINES = "naive,compiled,gram,forward,floor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    parser.add_argument(
        "--suite", action="append", choices=[*SUITES, "all"], help="network; may be repeated (default: vgg16_cifar)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=_samples, metavar="N", help="default: a number that suits suite and device")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous")
    parser.add_argument("--backend", default="auto", help="the backend that is timed (default: %(default)s)")
    parser.add_argument(
        "--baselines",
        type=_baselines,
        default=DEFAULT_BASELINES,
        metavar="LIST",
        help=f"of {','.join(BASELINES)}; loop runs on the smallest layer only (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for a CSV and two pictures per suite")


def run(arguments: argparse.Namespace) -> None:
    """Check, time and print every suite asked for.

    Raises:
        ValueError: the device or the backend does not exist, or `--out` cannot be written.
        RuntimeError: the backend cannot serve, or a result is wrong.
    """
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device cuda needs a GPU, and torch {torch.__version__} sees none; accepted here: cpu")
    if arguments.out:
        _check_out(arguments.out)
    wanted = arguments.suite or ["vgg16_cifar"]
    for name in SUITES if "all" in wanted else dict.fromkeys(wanted):
        network = suite(name, arguments.samples, device.type)
        records = [
            record
            for layer in progress(network.layers, f"{name}, {network.samples} samples")
            for record in _records(layer, network, device, arguments)
        ]
        print(table(records), end="\n\n", flush=True)
        if arguments.out:
            dtype = f"-{arguments.dtype}" if arguments.dtype != "float32" else ""
            layout = "-channels_last" if arguments.memory_format == "channels_last" else ""
            stem = arguments.out / f"{device.type}-{name}{dtype}{layout}"
            write_csv(records, stem.with_suffix(".csv"))
            written = f"{stem}.csv, no pictures without matplotlib"
            if importlib.util.find_spec("matplotlib"):
                plot_times(records, stem.with_suffix(".png"))
                plot_roofline(records, stem.with_name(f"{stem.name}-roofline.png"), bandwidth(device), peak(device))
                written = f"{stem}.csv, {stem}.png, {stem}-roofline.png"
            print(f"written: {written}", end="\n\n")


def _records(layer: Layer, network: Suite, device: torch.device, arguments: argparse.Namespace) -> list[Record]:
    samples, dtype = network.samples, DTYPES[arguments.dtype]
    weight, acts = layer.inputs(samples, dtype, device, FORMATS[arguments.memory_format])
    options: dict[str, Any] = {"backend": arguments.backend}
    if layer.size:
        options |= {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    explanation = explain(weight, acts, **options)

    names = [name for name in arguments.baselines if name != "loop" or layer == _smallest(network)]
    contenders: dict[str, Contender] = {SCORE: partial(score, backend=arguments.backend), **{n: BASELINES[n] for n in names}}
    torch.compiler.reset()
    results = {name: contender(layer, weight, acts) for name, contender in contenders.items()}  # this warms up as well
    check_oracle(layer, SCORE, results[SCORE], oracle(layer, weight, acts), 1e-5)
    for name in SCORING:
        if name in results:
            check(layer, name, results[name], results[SCORE], "the scores", 1e-5 + tolerance(name, layer, samples))
    del results

    timings = measure({name: partial(c, layer, weight, acts) for name, c in contenders.items()}, device)
    return [
        Record(
            **asdict(machine(device)),
            command=_command(network, arguments),
            suite=network.name,
            samples=samples,
            dtype=arguments.dtype,
            memory_format=arguments.memory_format,
            layer=layer.name,
            count=layer.count,
            weight="x".join(map(str, layer.weight)),
            map="x".join(map(str, layer.size)),
            stride=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
            path=f"{explanation.backend}: {explanation.path}",
            contender=name,
            runs=timing.runs,
            p20=timing.p20 * 1e6,
            p50=timing.p50 * 1e6,
            p80=timing.p80 * 1e6,
            bytes=layer.bytes(samples, dtype),
            forward_macs=layer.macs(samples),
            score_macs=layer.score_macs(samples),
        )
        for name, timing in timings.items()
    ]


def _smallest(network: Suite) -> Layer:
    """The convolution over which `loop` takes the fewest steps."""
    return min((layer for layer in network.layers if layer.size), key=lambda layer: layer.geometry.positions * layer.weight[0])


def _command(network: Suite, arguments: argparse.Namespace) -> str:
    """What repeats this suite, every option written out."""
    return (
        f"python -m benchmarks --suite {network.name} --device {arguments.device} --samples {network.samples} "
        f"--dtype {arguments.dtype} --memory-format {arguments.memory_format} --backend {arguments.backend} "
        f"--baselines {','.join(arguments.baselines)}"
    )


def _check_out(out: Path) -> None:
    """Say what cannot be written before the measurement, not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as problem:
        raise ValueError(f"--out must be a folder that can be written, got {str(out)!r}: {problem.strerror}") from problem


def _samples(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _baselines(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in BASELINES]:
        raise argparse.ArgumentTypeError(f"must be a list of {','.join(BASELINES)}, got {','.join(unknown)!r}")
    return names

"""Published CIFAR-10 ResNets pruned without retraining, and their certificates: python -m benchmarks.pretrained --help"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrelief_kernels import certify, measure, prune
from nnrelief_kernels.bounds import Certificate, LayerBounds
from nnrelief_kernels.collect import Forward
from nnrelief_kernels.files import atomic_write
from nnrelief_kernels.masks import Masks
from nnrelief_kernels.paper.data import Dataset, from_npz
from nnrelief_kernels.paper.models import MODELS, load_published
from nnrelief_kernels.paper.sources import normalised
from nnrelief_kernels.paper.training import error
from nnrelief_kernels.plots import new_figure, save
from nnrelief_kernels.progress import progress

from .rows import read_rows, write_rows

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
ALPHAS = ((0.95, 0.99), (0.99, 0.99))
"""(alpha_conv, alpha_fc)."""
FC_ALPHA = 0.95
"""Of the last layer alone, as in Figure 11 of Dekhovich et al. 2024."""
CERTIFIED = 250
"""Test images on which all layers are certified together; the last layer alone is on all of them."""
BATCH = 50
"""So that a map of all its images stays in the cache of a core: twice as fast as 1000."""


def main() -> int:
    """0 when it worked, 2 with one line on standard error when data or weights are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cifar10.npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--weights", type=Path, required=True, help=f"folder of {', '.join(WEIGHTS.values())}")
    parser.add_argument("--network", action="append", choices=WEIGHTS, help="may be repeated (default: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pretrained")
    parser.add_argument("--samples", type=int, default=1000, help="training images to score on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="picks those images")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (ValueError, OSError) as problem:
        print(f"pretrained: error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Write networks.csv, networks.md, last-layer.csv and last-layer.png into `--out`; other networks' rows stay there."""
    data = normalised(from_npz(arguments.data))
    batches = data.pruning_set(arguments.samples, arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.network or WEIGHTS:
        model = load_published(MODELS[name](data.image, data.classes), arguments.weights / WEIGHTS[name])
        neurons = rows(name, last_layer(model, batches, data.x_test))
        before = 100 - error(model, data.x_test, data.y_test, BATCH)
        networks = [pruned_network(name, model, before, a, data, batches) for a in progress(ALPHAS, name)]
        neurons = merged(neurons, arguments.out / "last-layer.csv")
        networks = merged(networks, arguments.out / "networks.csv")
        with atomic_write(arguments.out / "networks.md") as table:
            table.write(markdown(networks, arguments).encode())
        draw(neurons, arguments.out / "last-layer.png")


def merged(table: Sequence[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """The rows of `table` and those of the other networks in the CSV at `path`, written there in the order of `WEIGHTS`."""
    if path.exists():
        table = [*table, *(row for row in read_rows(path) if row["network"] != table[0]["network"])]
    table = sorted(table, key=lambda row: list(WEIGHTS).index(row["network"]))
    write_rows(path, list(table[0]), table)
    return table


def pruned_network(
    name: str, model: nn.Module, before: float, alphas: tuple[float, float], data: Dataset, batches: Sequence[Tensor]
) -> dict[str, str]:
    """One row: what is left of the network and of its accuracy, and how its outputs moved against their bounds."""
    pruned = copy.deepcopy(model)
    masks = prune(pruned, batches, alpha_conv=alphas[0], alpha_fc=alphas[1])
    found = measure(pruned, batches[0][:1])
    certificate = certified(model, masks, data.x_test[:CERTIFIED])
    outputs = certificate.outputs
    if outputs is None:
        raise ValueError(f"the outputs of {name} cannot be bounded: {certificate.reason}")
    return {
        "network": name,
        "alpha conv": str(alphas[0]),
        "alpha fc": str(alphas[1]),
        "accuracy before, %": f"{before:.2f}",
        "accuracy after, %": f"{100 - error(pruned, data.x_test, data.y_test, BATCH):.2f}",
        "parameters before": str(found.parameters),
        "parameters after": str(found.kept),
        "kept, %": f"{found.kept_percent:.2f}",
        "FLOPs before": f"{found.dense_flops}",
        "FLOPs after": f"{found.flops}",
        "FLOPs pruned, %": f"{found.flops_pruned_percent:.2f}",
        "layers: largest change / bound": f"{max(layer.tightest for layer in certificate.layers.values()):.4f}",
        "outputs: average change": f"{float(outputs.average_change.max()):.4g}",
        "outputs: average bound": f"{float(outputs.average_bound.max()):.4g}",
        "outputs: largest change / bound": f"{outputs.tightest:.4g}",
    }


def last_layer(model: nn.Module, batches: Sequence[Tensor], images: Tensor) -> LayerBounds:
    """Only the last layer pruned, on every image."""
    masks = prune(copy.deepcopy(model), batches, layers=["linear"], alpha_fc=FC_ALPHA)
    return certified(model, masks, images, forward=lambda network, batch: network(batch)).layers["linear"]


def certified(model: nn.Module, masks: Masks, images: Tensor, forward: Forward | None = None) -> Certificate:
    """The certificate; a RuntimeError if a bound of a layer or of an output is exceeded."""
    found = certify(model, masks, torch.split(images, BATCH), forward=forward)
    bounds = [*found.layers.values(), *([found.outputs] if found.outputs else [])]
    if (tightest := max(b.tightest for b in bounds)) > 1 + 1e-5:
        raise RuntimeError(f"a change is {tightest} times its bound")
    return found


def rows(name: str, bounds: LayerBounds) -> list[dict[str, str]]:
    """Per neuron: the average and the largest over images of bound and change, and the share of its signal that was removed."""
    kinds = ("average_bound", "average_change", "largest_bound", "largest_change")
    columns = {kind.replace("_", " "): getattr(bounds, kind).tolist() for kind in kinds}
    columns["removed share"] = (bounds.removed / bounds.signal).tolist()
    return [
        {"network": name, "neuron": str(neuron), **{column: f"{value:.6g}" for column, value in zip(columns, values)}}
        for neuron, values in enumerate(zip(*columns.values()))
    ]


def markdown(table: Sequence[Mapping[str, str]], arguments: argparse.Namespace) -> str:
    """The table, and what made it."""
    lines = [list(table[0]), ["---", *["---:"] * (len(table[0]) - 1)], *(list(row.values()) for row in table)]
    note = (
        f"One pass over {arguments.samples} training images (seed {arguments.seed}), no retraining; accuracy on the test set "
        f"of CIFAR-10. Changes and bounds of the outputs are those of the class with the largest, of all layers pruned "
        f"together, over {CERTIFIED} test images; torch {torch.__version__}.\n\n"
        "    python -m benchmarks.pretrained --data data/cifar10.npz --weights ../shared/data/weights/resnet_cifar10\n"
    )
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note])


def draw(neurons: Sequence[Mapping[str, str]], path: Path) -> None:
    """Bounds beside measured changes per output neuron (as in Figure 11 of Dekhovich et al. 2024)."""
    names = list(dict.fromkeys(row["network"] for row in neurons))
    figure: Any = new_figure(9, 3 * len(names))
    figure.suptitle(f"Last layer pruned with alpha {FC_ALPHA}: change of its outputs over the test images of CIFAR-10")
    for axes, name in zip(figure.subplots(len(names), 2, squeeze=False), names):
        for side, kind in zip(axes, ("average", "largest")):
            for offset, what, color in ((-0.2, "bound", "lightgray"), (0.2, "change", "tab:blue")):
                heights = [float(row[f"{kind} {what}"]) for row in neurons if row["network"] == name]
                side.bar([place + offset for place in range(len(heights))], heights, 0.4, label=what, color=color)
            side.set(title=f"{name}, {kind}", xlabel="output neuron", ylabel="|z - z'|")
    figure.legend(*side.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())

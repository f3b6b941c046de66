"""Published CIFAR-10 ResNets pruned without retraining, and their certificates: python -m benchmarks.pretrained --help"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrelief_kernels import certify, measure, prune
from nnrelief_kernels.bounds import Certificate, LayerBounds
from nnrelief_kernels.files import atomic_write
from nnrelief_kernels.paper.data import Dataset, from_npz
from nnrelief_kernels.paper.models import MODELS, load_published
from nnrelief_kernels.paper.training import error
from nnrelief_kernels.plots import new_figure, save
from nnrelief_kernels.progress import progress

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
"""Of the images that these networks take."""
ALPHAS = ((0.95, 0.99), (0.99, 0.99))
"""(alpha_conv, alpha_fc)."""
FC_ALPHA = 0.95
"""Of the last layer alone, as in Figure 11 of Dekhovich et al. 2024."""
CERTIFIED = 1000
"""Test images on which all layers are certified together; the last layer alone is on all of them."""
BATCH = 250


def main() -> int:
    """0 when it worked, 2 with one line on standard error when data or weights are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="cifar10.npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--weights", type=Path, required=True, help=f"folder of {', '.join(WEIGHTS.values())}")
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
    """Write networks.csv, networks.md, last-layer.csv and last-layer.png into `--out`."""
    data = normalised(from_npz(arguments.data))
    batches = data.pruning_set(arguments.samples, arguments.seed)
    networks: list[dict[str, str]] = []
    neurons: list[dict[str, str]] = []
    last_layers: dict[str, LayerBounds] = {}
    for name, file in WEIGHTS.items():
        model = load_published(MODELS[name](data.image, data.classes), arguments.weights / file)
        accuracy = 100 - error(model, data.x_test, data.y_test)
        for alphas in progress(ALPHAS, name):
            networks.append(pruned_network(name, model, accuracy, alphas, data, batches))
            print("  ".join(f"{key}: {value}" for key, value in networks[-1].items()), flush=True)
        last_layers[name] = last_layer(model, batches, data.x_test)
        neurons += [
            {"network": name, "neuron": str(neuron), **{key: f"{value:.6g}" for key, value in row.items()}}
            for neuron, row in enumerate(rows(last_layers[name]))
        ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(networks, arguments.out / "networks.csv")
    write_csv(neurons, arguments.out / "last-layer.csv")
    with atomic_write(arguments.out / "networks.md") as table:
        table.write(markdown(networks, arguments).encode())
    draw(last_layers, arguments.out / "last-layer.png")


def normalised(data: Dataset) -> Dataset:
    """The images as the published networks take them."""
    return Dataset(data.name, (data.x_train - MEAN) / STD, data.y_train, (data.x_test - MEAN) / STD, data.y_test)


def pruned_network(
    name: str, model: nn.Module, accuracy: float, alphas: tuple[float, float], data: Dataset, batches: Sequence[Tensor]
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
        "accuracy before, %": f"{accuracy:.2f}",
        "accuracy after, %": f"{100 - error(pruned, data.x_test, data.y_test):.2f}",
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
    return certified(model, masks, images).layers["linear"]


def certified(model: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> Certificate:
    """The certificate; a RuntimeError if a bound of a layer or of an output is exceeded."""
    found = certify(model, dict(masks), torch.split(images, BATCH))
    bounds = [*found.layers.values(), *([found.outputs] if found.outputs else [])]
    if (tightest := max(b.tightest for b in bounds)) > 1 + 1e-5:
        raise RuntimeError(f"a change is {tightest} times its bound")
    return found


def rows(bounds: LayerBounds) -> list[dict[str, float]]:
    """Per neuron: its average and largest bound and change, and the share of its signal that was removed."""
    names = ("average_bound", "average_change", "largest_bound", "largest_change")
    columns = {name.replace("_", " "): getattr(bounds, name).tolist() for name in names}
    columns["removed share"] = (bounds.removed / bounds.signal).tolist()
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def write_csv(table: Sequence[Mapping[str, str]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


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


def draw(last_layers: Mapping[str, LayerBounds], path: Path) -> None:
    """Bounds beside measured changes per output neuron (as in Figure 11 of Dekhovich et al. 2024)."""
    figure: Any = new_figure(9, 3 * len(last_layers))
    figure.suptitle(f"Last layer pruned with alpha {FC_ALPHA}: change of its outputs over the 10,000 test images of CIFAR-10")
    for axes, (name, bounds) in zip(figure.subplots(len(last_layers), 2, squeeze=False), last_layers.items()):
        for side, kind in zip(axes, ("average", "largest")):
            bound, change = (getattr(bounds, f"{kind}_{what}").tolist() for what in ("bound", "change"))
            side.bar([x - 0.2 for x in range(len(bound))], bound, 0.4, label="bound", color="lightgray")
            side.bar([x + 0.2 for x in range(len(bound))], change, 0.4, label="measured", color="tab:blue")
            side.set(title=f"{name}, {kind} of an image", xlabel="output neuron", ylabel="|z - z'|")
            side.set_xticks(range(len(bound)))
            side.legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())

"""What it costs to score a whole network, over its forward pass alone: python -m benchmarks.networks --out FILE"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrelief_kernels import Collector
from nnrelief_kernels.collect import evaluating
from nnrelief_kernels.paper.models import MODELS

from .machine import machine
from .rows import write_rows


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which carries the stride) and 1 x 1 convolutions beside a shortcut, projected where its shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50(image: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-50 v1.5."""
    layers = [nn.Conv2d(image[0], 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(depth):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int, int]] = {
    "resnet20": (MODELS["resnet20"], (3, 32, 32), 10, 128),
    "vgg16": (MODELS["vgg16"], (3, 32, 32), 10, 128),
    "resnet50": (resnet50, (3, 224, 224), 1000, 8),
}
"""What makes each network, its image and classes, and the samples of one batch."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, and seconds that all threads of this process work: those that others' work changes little."""


@dataclass(frozen=True)
class Row:
    """Milliseconds per batch; of the ratio of neighbouring passes, the quartiles."""

    network: str
    samples: int
    device: str
    threads: int
    torch: str
    package: str
    clock: str
    turns: int
    forward_ms: float
    scored_ms: float
    """Of the forward pass with the scores."""
    ratio_p25: float
    """What the scores add, over the forward pass."""
    ratio_p50: float
    ratio_p75: float


def measured(name: str, turns: int, clock: str) -> Row:
    """Plain and scored passes in turn over one batch of normal images."""
    now = CLOCKS[clock]
    make, image, classes, samples = NETWORKS[name]
    torch.manual_seed(0)
    model = make(image, classes)
    batch = torch.randn(samples, *image)
    collector = Collector(model)

    def forward() -> float:
        start = now()
        model(batch)
        return now() - start

    def scored() -> float:
        with collector:
            return forward()

    with evaluating(model):
        times = np.array([(forward(), scored()) for _ in range(turns + 1)])[1:]  # the first one warms up
    plain, both = (1e3 * np.median(times, 0)).tolist()
    quartiles = np.quantile(times[:, 1] / times[:, 0] - 1, (0.25, 0.5, 0.75)).tolist()
    return Row(
        network=name,
        samples=samples,
        **asdict(machine(torch.device("cpu"))),
        clock=clock,
        turns=turns,
        forward_ms=plain,
        scored_ms=both,
        ratio_p25=quartiles[0],
        ratio_p50=quartiles[1],
        ratio_p75=quartiles[2],
    )


def main() -> int:
    """Print a line per network, and write them all to `--out`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="may be repeated (default: all)")
    parser.add_argument("--turns", type=int, default=30, help="passes of each kind (default: %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time that passes, or that of all threads together")
    parser.add_argument("--out", type=Path, help="a CSV file")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.network or NETWORKS:
        row = measured(name, arguments.turns, arguments.clock)
        print(
            f"{name:9} {row.samples:4} samples  forward {row.forward_ms:7.1f} ms  with scores {row.scored_ms:7.1f} ms  "
            f"scores / forward {row.ratio_p50:.2f} ({row.ratio_p25:.2f} to {row.ratio_p75:.2f})",
            flush=True,
        )
        rows.append({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in asdict(row).items()})
    if arguments.out:
        write_rows(arguments.out, [field.name for field in fields(Row)], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

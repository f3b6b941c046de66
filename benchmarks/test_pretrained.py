"""The report on published networks, made of a random one."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from nnrelief_kernels.paper.data import Dataset
from nnrelief_kernels.paper.models import MODELS
from nnrelief_kernels.paper.sources import normalised

from .pretrained import FC_ALPHA, draw, last_layer, markdown, merged, pruned_network, rows


def test_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(60, 3, 8, 8), torch.randint(10, (60,))
    data = normalised(Dataset("random", images[:40], labels[:40], images[40:], labels[40:]))
    assert data.x_test.mean() == pytest.approx((0.5 - 0.449) / 0.226, abs=0.05)
    model = MODELS["resnet20"](data.image, data.classes)
    row = pruned_network("resnet20", model, 10.0, (0.9, 0.9), data, data.pruning_set(30))
    assert int(row["parameters after"]) < int(row["parameters before"])
    assert 0 < float(row["layers: largest change / bound"]) <= 1
    neurons = rows("resnet20", last_layer(model, data.pruning_set(30), data.x_test))
    assert len(neurons) == 10
    for neuron in neurons:
        assert 0 < float(neuron["average change"]) <= float(neuron["average bound"]) <= float(neuron["largest bound"])
        assert float(neuron["removed share"]) == pytest.approx(1 - FC_ALPHA, abs=0.05)
    both = merged(neurons, tmp_path / "rows.csv")
    both = merged([{**row, "network": "resnet56"} for row in neurons], tmp_path / "rows.csv")
    assert [row["network"] for row in both] == ["resnet20"] * 10 + ["resnet56"] * 10
    assert merged(neurons, tmp_path / "rows.csv") == both
    draw(both, tmp_path / "last-layer.png")
    assert (tmp_path / "last-layer.png").read_bytes().startswith(b"\x89PNG")
    assert "| resnet20 | 0.9 |" in markdown([row], argparse.Namespace(samples=30, seed=0))

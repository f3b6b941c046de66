"""The process that test_interruption kills: a pruning run of six iterations, as `python -m tests.interrupted_worker FOLDER`."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nnrelief_kernels import prune_iteratively
from nnrelief_kernels.masks import dense_state

ITERATIONS = 6


def retrain(model):
    """Steps on images from all three generators."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        images = torch.randn(8, 12) * random.random() + np.random.rand()  # noqa: NPY002
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        time.sleep(0.02)


def run(folder, iterations=ITERATIONS):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    batches = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(1))
    options = {"iterations": iterations, "alpha_fc": 0.9, "checkpoint": folder, "log": folder / "log.jsonl", "progress": False}
    prune_iteratively(model, list(batches), retrain, **options)
    return dense_state(model)


if __name__ == "__main__":
    torch.save(run(Path(sys.argv[1])), Path(sys.argv[1]) / "weights.pt")

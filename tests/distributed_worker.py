"""One process of test_distributed: prune on this rank's shard and store the masks, as `torchrun ... WORKER FOLDER CASE`."""

import sys
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from nnrelief_kernels import get_masks, prune, prune_iteratively, save_masks
from nnrelief_kernels.masks import dense_state

CUTS = {1: [0, 30], 2: [0, 19, 30], 3: [0, 19, 30, 30]}
"""Where each rank's shard of 30 images begins, by how many ranks there are; of three, the last has none."""
OPTIONS = {
    "paper": {},
    "norm_of_mean": {"variant": "norm_of_mean"},
    "pruned": {"propagate": "pruned"},
    "iterative": {},
    "disk full": {},
}


def network():
    torch.manual_seed(0)
    conv, grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), grouped, nn.Flatten(), nn.Linear(128, 5))


def batches(rank=0, world=1):
    images = torch.randn(30, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    start, end = CUTS[world][rank : rank + 2]
    return list(images[start:end].split(4)) if end > start else []


def retrain(model):
    """Two steps of every rank on images of its own, under DistributedDataParallel so that the weights stay equal."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        optimizer.step()


def retrain_plainly(model):
    """The same without DistributedDataParallel, which adds in another order once it knows the order of the gradients."""

    def add(gradient):
        torch.distributed.all_reduce(gradient)

    hooks = [parameter.register_hook(lambda gradient: add(gradient) or gradient) for parameter in model.module.parameters()]
    retrain(model.module)
    for hook in hooks:
        hook.remove()


def main(folder, case, iterations):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = nn.parallel.DistributedDataParallel(network())
    shard = batches(rank, world)
    if case in ("iterative", "disk full"):
        torch.manual_seed(rank)
        options = {"checkpoint": folder, "log": folder / "log.jsonl", "iterations": iterations, "alpha_fc": 0.8}
        try:
            prune_iteratively(model, shard, retrain_plainly, **options)
        except OSError as error:
            (folder / f"{rank}.error").write_text(str(error))
    else:
        prune(model, shard, alpha_conv=0.8, alpha_fc=0.7, **OPTIONS[case])
        retrain(model)
    save_masks(get_masks(model), folder / f"{rank}.masks")
    torch.save(dense_state(model), folder / f"{rank}.weights")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)

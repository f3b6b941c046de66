"""Pruning on several gloo processes that torchrun starts: uneven shards, an empty one, equal masks, runs that go on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnrelief_kernels import get_masks, load_masks, prune
from nnrelief_kernels.history import read_history
from tests.distributed_worker import OPTIONS, batches, network

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def torchrun(processes, *command):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def work(processes, folder, case, *more):
    done = torchrun(processes, "tests/distributed_worker.py", folder, case, *more)
    assert done.returncode == 0, done.stderr
    masks = [load_masks(folder / f"{rank}.masks") for rank in range(processes)]
    weights = [torch.load(folder / f"{rank}.weights", weights_only=True) for rank in range(processes)]
    for rank in range(1, processes):
        assert masks[rank].keys() == masks[0].keys()
        assert all(torch.equal(masks[rank][name], mask) for name, mask in masks[0].items())
        assert all(torch.equal(weights[rank][name], value) for name, value in weights[0].items() if "running" not in name)
    return masks[0], weights[0]


@pytest.mark.parametrize(("processes", "case"), [(2, "paper"), (3, "paper"), (3, "norm_of_mean"), (3, "pruned")])
def test_ranks_agree_with_each_other_and_with_one_process(tmp_path, processes, case):
    masks, weights = work(processes, tmp_path, case)
    alone = network()
    prune(alone, batches(), alpha_conv=0.8, alpha_fc=0.7, **OPTIONS[case])
    assert all(torch.equal(masks[name], mask) for name, mask in get_masks(alone).items())
    assert all(not weights[name][~mask.expand_as(weights[name])].any() for name, mask in masks.items())


def test_a_run_of_three_processes_goes_on_with_the_same_bits(tmp_path):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    masks, weights = work(3, tmp_path / "whole", "iterative", 3)
    work(3, tmp_path / "parts", "iterative", 1)
    resumed_masks, resumed = work(3, tmp_path / "parts", "iterative", 3)
    assert all(torch.equal(resumed_masks[name], mask) for name, mask in masks.items())
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    kept = [i.kept for i in read_history(tmp_path / "parts" / "log.jsonl")]
    assert len(kept) == 4
    assert kept[-1] < kept[0]


def test_a_disk_that_fills_up_is_told_on_every_rank(tmp_path):
    work(2, tmp_path, "iterative", 1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / ".checkpoint.safetensors.partial").symlink_to("/dev/full")
    work(2, tmp_path, "disk full", 2)
    for rank in range(2):
        assert "checkpoint.safetensors: No space left" in (tmp_path / f"{rank}.error").read_text()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_the_command_under_torchrun(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.random((240, 6, 6), dtype=np.float32), random.integers(0, 3, 240)
    images[np.arange(240), labels] += 1
    data = tmp_path / "data.npz"
    np.savez(data, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    command = ["prune", "--model", "lenet300-100", "--data", data, "--epochs", "2"]
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = torchrun(processes, "-m", "nnrelief_kernels", *command, "--iterations", "2", "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
    alone, together = (load_masks(tmp_path / name / "masks.safetensors") for name in ("1", "2"))
    assert all(torch.equal(together[name], mask) for name, mask in alone.items())
    done = torchrun(2, "-m", "nnrelief_kernels", *command, "--out", tmp_path / "2")
    assert done.returncode != 0
    assert "already holds a run" in done.stderr

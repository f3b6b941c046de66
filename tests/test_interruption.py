"""Runs that are killed, and disks that cannot take what is written: the last checkpoint is whole, and the run goes on."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnrelief_kernels.files import atomic_write, check_writable
from nnrelief_kernels.history import read_history
from tests.interrupted_worker import ITERATIONS, run

ROOT = Path(__file__).parents[1]


def start(folder):
    return subprocess.Popen([sys.executable, "-m", "tests.interrupted_worker", str(folder)], cwd=ROOT)


def iterations_done(folder):
    """Of the checkpoint, read without the package."""
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        return -1
    data = checkpoint.read_bytes()
    size = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + size])["history"]["data_offsets"]
    return data[8 + size + begin : 8 + size + end].decode().count("\n") - 1


def test_a_run_killed_again_and_again_loses_one_iteration_at_most_and_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    moments = random.Random(0)
    kills, lost = 0, []
    for target in range(1, ITERATIONS):
        if (before := iterations_done(folder)) >= target:
            continue
        process = start(folder)
        while iterations_done(folder) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.15))  # within an iteration, or while a file is written
        process.kill()
        process.wait()
        kills += 1
        assert iterations_done(folder) >= max(before, target)
        lines = read_history(folder / "log.jsonl")
        lost.append(len(lines) - 1 - iterations_done(folder))
    process = start(folder)
    assert process.wait(timeout=120) == 0
    assert kills >= 2
    assert set(lost) <= {0, 1}
    found = torch.load(folder / "weights.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    without_time = [[{**vars(i), "seconds": None} for i in read_history(f / "log.jsonl")] for f in (folder, tmp_path / "whole")]
    assert without_time[0] == without_time[1]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    run(tmp_path, 1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / ".checkpoint.safetensors.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.safetensors: No space left on device"):
        run(tmp_path, 2)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    run(tmp_path, 2)
    assert iterations_done(tmp_path) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"cannot write .*taken"):
        run(tmp_path / "taken" / "run", 1)
    if os.geteuid():  # the superuser may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(OSError, match=r"cannot write .*closed.*Permission denied"):
            check_writable(tmp_path / "closed")


def test_an_error_while_writing_leaves_the_file_before(tmp_path):
    (tmp_path / "file").write_text("before")

    def write():
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_is_a_pickle_is_not_loaded(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "checkpoint.safetensors").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="not a safetensors file"):
        run(tmp_path, 1)
    assert not marker.exists()


def test_bars_are_silent_where_nobody_looks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from nnrelief_kernels.progress import progress; print(sum(progress(range(9), 'adding')))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("36\n", "")

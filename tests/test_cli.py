"""The nnrelief command: what it writes, and one line with exit code 2 for whatever is wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from nnrelief_kernels.cli import main
from nnrelief_kernels.history import read_history


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    images, labels = random.random((240, 6, 6), dtype=np.float32), random.integers(0, 3, 240)
    images[np.arange(240), labels] += 1
    return {"x_train": images[:200], "y_train": labels[:200], "x_test": images[200:], "y_test": labels[200:]}


@pytest.fixture
def data(arrays, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz")


def prune(data, out, *more):
    return main(["prune", "--model", "lenet300-100", "--data", data, "--out", str(out), "--epochs", "2", *more])


def refused(capsys, code):
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("nnrelief: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_info_names_every_backend(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "matplotlib" in out or "plots" in out


def test_a_reader_that_wants_no_more_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as output:
        ended = subprocess.run([sys.executable, "-m", "nnrelief_kernels", "info"], stdout=output, stderr=subprocess.PIPE)
    assert ended.returncode == 141
    assert not ended.stderr


def test_prune_writes_history_pictures_and_weights_that_score_reads(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert prune(data, out, "--iterations", "2") == 0
    history = read_history(out / "history.jsonl")
    assert [i.iteration for i in history] == [0, 1, 2]
    assert history[2].kept < history[1].kept < history[0].kept
    for picture in ("history.png", "architecture.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    scores = tmp_path / "scores.safetensors"
    weights = str(out / "pruned.safetensors")
    arguments = ["score", "--model", "lenet300-100", "--data", data, "--weights", weights, "--out", str(scores)]
    assert main(arguments) == 0
    assert "fc1" in capsys.readouterr().out
    from safetensors.torch import load_file

    rows = load_file(scores)["fc1"].sum(1)
    torch.testing.assert_close(rows[rows > 0], torch.ones_like(rows[rows > 0]))


def test_a_run_goes_on_where_it_stopped(data, tmp_path, capsys):
    assert prune(data, tmp_path / "whole", "--iterations", "2") == 0
    assert prune(data, tmp_path / "parts", "--iterations", "1") == 0
    assert "--resume" in refused(capsys, prune(data, tmp_path / "parts", "--iterations", "2"))
    assert prune(data, tmp_path / "parts", "--iterations", "2", "--resume") == 0
    whole, parts = ((tmp_path / f / "pruned.safetensors").read_bytes() for f in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--alpha-fc", "1.5", "alpha-fc"),
        ("--alpha-conv", "zero", "alpha-conv"),
        ("--iterations", "0", "iterations"),
        ("--model", "lenet6", "lenet6"),
        ("--data", "absent.npz", "absent.npz"),
    ],
)
def test_wrong_options(data, tmp_path, capsys, option, value, message):
    assert message in refused(capsys, prune(data, tmp_path / "run", option, value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("x_train", lambda x: np.where(x > 0.99, np.nan, x), "x_train"),
        ("x_train", lambda x: x[:, 0, 0], "x_train"),
        ("x_test", lambda x: x[:, :5], "x_test"),
        ("x_test", lambda x: x.astype(complex), "x_test"),
        ("y_test", lambda y: y[:-1], "y_test"),
        ("y_train", lambda y: y - 2, "y_train"),
        ("y_train", lambda y: y / 2, "y_train"),
    ],
)
def test_wrong_data(arrays, tmp_path, capsys, key, change, message):
    arrays[key] = change(arrays[key])
    np.savez(tmp_path / "bad.npz", **arrays)
    assert message in refused(capsys, prune(str(tmp_path / "bad.npz"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_missing_key_and_other_files(arrays, tmp_path, capsys):
    del arrays["y_test"]
    np.savez(tmp_path / "bad.npz", **arrays)
    assert "y_test" in refused(capsys, prune(str(tmp_path / "bad.npz"), tmp_path / "run"))
    (tmp_path / "text.npz").write_text("not an archive")
    assert "text.npz" in refused(capsys, prune(str(tmp_path / "text.npz"), tmp_path / "run"))
    (tmp_path / "taken").write_text("a file, not a folder")
    np.savez(tmp_path / "good.npz", **arrays, y_test=np.zeros(40, dtype=np.int64))
    refused(capsys, prune(str(tmp_path / "good.npz"), tmp_path / "taken"))


@pytest.mark.parametrize("weights", ["absent.pt", "text.pt", "other.pt"])
def test_wrong_weights(data, tmp_path, capsys, weights):
    (tmp_path / "text.pt").write_text("not weights")
    torch.save({"fc9.weight": torch.ones(2)}, tmp_path / "other.pt")
    out = tmp_path / "scores.safetensors"
    arguments = ["score", "--model", "lenet300-100", "--data", data, "--weights", str(tmp_path / weights)]
    refused(capsys, main([*arguments, "--out", str(out)]))
    assert not out.exists()

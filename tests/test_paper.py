"""`nnrelief paper`: everything runs, runs go on where they stopped, measured values have a column of their own."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnrelief_kernels.cli import main
from nnrelief_kernels.paper.command import PRODUCTS
from nnrelief_kernels.paper.experiments import EXPERIMENTS, Experiment
from nnrelief_kernels.paper.published import TABLES
from nnrelief_kernels.paper.runs import SETTINGS, read_run, run
from nnrelief_kernels.paper.sources import IMAGES, MEAN, STD, enlarged_digits, load_named
from nnrelief_kernels.paper.tables import by_iteration, comparison, rows, spread
from nnrelief_kernels.paper.training import Recipe

SMALL = Experiment("lenet300-100", "mnist", Recipe(((1e-3, 2),)), Recipe(((1e-3, 2),)), 2, 1, rewind=True, samples=20)


def small_run(folder, experiment=SMALL, iterations=None):
    run(experiment, enlarged_digits("mnist"), 0, folder, command="a command", weights=Path(), iterations=iterations)
    return read_run(folder, experiment.chosen)


def test_all_of_it_in_a_smoke_run(tmp_path, capsys):
    assert main(["paper", "all", "--quick", "--seeds", "0", "--device", "cpu", "--out", str(tmp_path)]) == 0, (
        capsys.readouterr()
    )
    for name in PRODUCTS:
        if name.startswith("figure") or name == "lenets":
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        else:
            records = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            assert all(record["seeds"] == [0] for record in records if "another seed" not in record.get("quantity", "")), name
    arguments = ["paper", "table1", "--quick", "--authors", "--seeds", "0", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "--authors --quick`" in (tmp_path / "authors" / "table1.md").read_text()
    text = (tmp_path / "table4.md").read_text()
    assert "| network | quantity | published | measured ± std | seeds | command |" in text
    assert "| ResNet-20, SGD | parameters pruned % | 63.68 ± 1.52 |" in text


def test_nothing_run_is_marked_as_such(tmp_path):
    assert main(["paper", "table2", "--report", "--out", str(tmp_path), "--data", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "table2.jsonl").read_text().splitlines()]
    assert [line["measured"] for line in lines] == [[]] * len(lines)
    measured = [line.split(" | ")[3] for line in (tmp_path / "table2.md").read_text().splitlines() if line.startswith("| VGG")]
    assert measured == ["not run"] * len(lines)


@pytest.mark.parametrize("later", [{}, {2: {"alpha_fc": 0.8, "temperature": 1.0}}], ids=["", "changes"])
def test_a_run_goes_on_where_it_stopped(tmp_path, later):
    experiment = dataclasses.replace(SMALL, distillation=0.5, later=later)
    whole = small_run(tmp_path / "whole", experiment)
    for iterations in (0, 1, 2, None):
        parts = small_run(tmp_path / "parts", experiment, iterations=iterations)
    timeless = {"seconds": 0.0}
    for ours, theirs in zip(parts.steps, whole.steps, strict=True):
        assert dataclasses.replace(ours.iteration, **timeless) == dataclasses.replace(theirs.iteration, **timeless)
        assert [(e.loss, e.error) for e in ours.epochs] == [(e.loss, e.error) for e in theirs.epochs]
        assert len(ours.epochs) == 2
        assert ours.best <= ours.last == ours.iteration.error_after
    assert not list(tmp_path.rglob("training-*.pt"))


def test_what_changes_later_changes_from_its_iteration_on(tmp_path):
    later = {2: {"alpha_fc": 0.5, "retraining": Recipe(((1e-3, 1),))}, 3: {"alpha_fc": 0.4}}
    plain, changed = dataclasses.replace(SMALL, iterations=3), dataclasses.replace(SMALL, iterations=3, later=later)
    before, after = small_run(tmp_path / "before", plain), small_run(tmp_path / "after", changed)
    kept = [[step.iteration.kept for step in one.steps] for one in (before, after)]
    assert kept[0][:2] == kept[1][:2]
    assert [len(step.epochs) for step in after.steps] == [2, 2, 1, 1]
    assert after.steps[1].iteration.error_after == before.steps[1].iteration.error_after
    shares = [[now / last for last, now in itertools.pairwise(one[1:])] for one in kept]
    assert shares[1][1] < shares[1][0] < min(shares[0])


def test_units_go_after_the_connections_and_before_the_retraining(tmp_path):
    kept = [small_run(tmp_path / str(share), dataclasses.replace(SMALL, unit_alphas={"fc1": share})).steps[1].iteration.active
            for share in (1.0, 0.5)]  # fmt: skip
    assert kept[1]["fc1"] < kept[0]["fc1"] / 2


def test_a_folder_holds_one_experiment(tmp_path):
    small_run(tmp_path, iterations=0)
    with pytest.raises(ValueError, match="experiment"):
        small_run(tmp_path, dataclasses.replace(SMALL, alpha_fc=0.9))


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    small_run(tmp_path, iterations=0)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    for name in ("distillation", "temperature", "later"):
        del settings["experiment"][name]
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    assert len(small_run(tmp_path, iterations=1).steps) == 2
    with pytest.raises(ValueError, match="experiment"):
        small_run(tmp_path, dataclasses.replace(SMALL, distillation=0.5))


def test_rows_count_the_seeds_that_reached_the_published_iteration(tmp_path):
    reached = small_run(tmp_path / "a", dataclasses.replace(SMALL, iterations=1))
    short = dataclasses.replace(reached, seed=1, steps=reached.steps[:1])
    table = dataclasses.replace(TABLES["table1"], results=TABLES["table1"].results[:1])
    found = rows(table, {"lenet300-100": [reached, short]})
    assert {row.seeds for row in found} == {(0,)}
    assert [row.measured for row in found] == [
        (reached.steps[1].last,),
        (reached.steps[1].best,),
        (reached.steps[1].iteration.kept_percent,),
    ]
    for line in comparison(found).splitlines()[2:]:
        _, network, _, published, measured, seeds, *_ = (cell.strip() for cell in line.split("|"))
        assert (network, seeds) == ("LeNet-300-100", "0")
        assert published in ("1.98 ± 0.07", "1.51 ± 0.07")
        assert measured in [spread(row.measured) for row in found]


@pytest.mark.parametrize(("kept", "explained"), [(100.0, False), (40.0, True)])
def test_a_dense_network_that_lacks_parameters_is_explained(tmp_path, kept, explained):
    found = small_run(tmp_path, iterations=1)
    iteration = dataclasses.replace(found.steps[0].iteration, kept_percent=kept)
    text = by_iteration([dataclasses.replace(found, steps=[dataclasses.replace(found.steps[0], iteration=iteration)])])
    assert ("took to zero" in text) == explained


def test_spread_is_the_deviation_of_a_sample():
    assert spread([1.0, 2.0, 6.0]) == "3.00 ± 2.65"
    assert spread([1.0]) == "1.00"
    assert spread([]) == "not run"


@pytest.mark.parametrize(
    ("name", "training", "retraining", "alphas", "iterations", "chosen"),
    [
        ("lenet300-100", 60, 60, (0.95, 0.95), 15, 11),
        ("lenet5", 60, 60, (0.9, 0.95), 20, 20),
        ("vgg-like-cifar10-adam", 150, 60, (0.95, 0.95), 6, 6),
        ("vgg-like-tiny-imagenet-adam", 150, 50, (0.95, 0.95), 5, 5),
        ("resnet20-cifar10-sgd", 150, 60, (0.95, 0.99), 10, 7),
        ("resnet56-cifar10-adam", 200, 60, (0.95, 0.99), 10, 2),
        ("resnet56-cifar100-adam", 200, 80, (0.95, 0.99), 10, 9),
    ],
)
def test_experiments_are_those_of_the_appendix(name, training, retraining, alphas, iterations, chosen):
    found = EXPERIMENTS[name]
    assert (found.training.epochs, found.retraining.epochs) == (training, retraining)
    assert ((found.alpha_conv, found.alpha_fc), found.iterations, found.chosen) == (alphas, iterations, chosen)
    assert found.training.rates[0][0] == (0.1 if "sgd" in name else 1e-3)
    authors = found.authors()
    assert authors.options == {"variant": "l1" if "lenet" in name else "norm_of_mean", "compat": "authors"}
    later = dataclasses.replace(found, later={2: {"retraining": found.retraining, "alpha_fc": 0.5}}).authors().later
    assert later == {2: {"retraining": authors.retraining, "alpha_fc": 0.5}}
    assert authors.retraining.keep_best
    assert not authors.retraining.shuffle


def test_colour_images_are_normalised(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(12) % 10
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
    found = load_named("cifar10", tmp_path).x_test[2, :, 5, 7]
    expected = (images[2, 5, 7] / 255 - np.array(MEAN)) / np.array(STD)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_tiny_imagenet_is_read_from_its_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n2\nn1\n")
    for name, value in (("n1", 40), ("n2", 200)):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        image.new("L" if name == "n1" else "RGB", (64, 64), value if name == "n1" else (value,) * 3).save(folder / "0.JPEG")
    image.new("RGB", (64, 64)).save(root / "val" / "images" / "v.JPEG")
    (root / "val" / "val_annotations.txt").write_text("v.JPEG\tn1\t0\t0\t1\t1\n")
    data = load_named("tiny-imagenet", tmp_path)
    assert data.image == IMAGES["tiny-imagenet"]
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1], [1])
    pixels = data.x_train[:, 0, 0, 0] * STD[0] + MEAN[0]
    torch.testing.assert_close(pixels, torch.tensor([200, 40]) / 255)


@pytest.mark.parametrize(("name", "message"), [("tiny-imagenet", "tiny-imagenet-200"), ("mnist", r"mnist\.npz")])
def test_missing_data_says_what_would_help(tmp_path, monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=message):
        load_named(name, tmp_path)

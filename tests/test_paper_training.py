"""Training: compact networks take the steps of the masked ones, and what was stopped goes on with the same bits."""

import copy

import pytest
import torch
import torch.nn.functional as F

from nnrelief_kernels import apply_masks, get_masks
from nnrelief_kernels.paper import training
from nnrelief_kernels.paper.compact import compact
from nnrelief_kernels.paper.data import Dataset, augmented
from nnrelief_kernels.paper.models import MODELS
from nnrelief_kernels.paper.training import Recipe, distilled, train

SIZES = {"lenet300-100": (1, 6, 6), "lenet5": (1, 16, 16), "resnet20": (3, 8, 8)}
FEW = Recipe(rates=((1e-3, 2), (1e-4, 1)), batch=7)


def images(name, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, *SIZES[name], generator=generator, dtype=dtype)
    y = torch.randint(4, (30,), generator=generator)
    return Dataset("noise", x[:20], y[:20], x[20:], y[20:])


def masked(name, kept=0.2):
    """A network with random masks, in which some units are then read by nothing."""
    torch.manual_seed(1)
    model = MODELS[name](SIZES[name], 4).double()
    generator = torch.Generator().manual_seed(2)
    masks = {n: torch.rand(p.shape, generator=generator) < kept for n, p in model.named_parameters() if p.ndim > 1}
    for mask in masks.values():
        mask[:, ::3] = False
    if name == "lenet5":
        for layer in ("conv1", "conv2"):
            masks[f"{layer}.weight"] = masks[f"{layer}.weight"][:, :, :1, :1]
        masks["fc1.weight"][:, : 2 * masks["fc1.weight"].shape[1] // 50] = False  # two whole maps
    apply_masks(model, masks)
    return model


def steps_of_the_masked_network(model, data, recipe, seed):
    """What `train` does, with the masks in the forward pass."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0, momentum=0.9, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=0, weight_decay=recipe.weight_decay)
    number = 0
    for rate, epochs in recipe.rates:
        for _ in range(epochs):
            torch.manual_seed(1000 * seed + number)
            order = torch.randperm(len(data.x_train))
            optimizer.param_groups[0]["lr"] = rate
            model.train()
            for batch in order.split(recipe.batch):
                optimizer.zero_grad()
                F.cross_entropy(model(data.x_train[batch]), data.y_train[batch]).backward()
                optimizer.step()
            number += 1
    return model


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", SIZES)
def test_compact_training_takes_the_steps_of_the_masked_network(name, optimizer):
    data, recipe = images(name), Recipe(FEW.rates, optimizer, batch=FEW.batch)
    expected = steps_of_the_masked_network(masked(name), data, recipe, seed=3)
    model = masked(name)
    before = get_masks(model)
    train(model, data, recipe, seed=3, show=False)
    assert before.keys() == get_masks(model).keys()
    assert all(torch.equal(mask, before[n]) for n, mask in get_masks(model).items())
    x = data.x_test
    torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-8, atol=1e-10)
    for (n, ours), (_, theirs) in zip(model.named_buffers(), expected.named_buffers()):
        if "running" in n:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SIZES)
def test_compact_networks_compute_the_same_with_less(name):
    model, x = masked(name).eval(), images(name).x_test
    expected, full = model(x), sum(p.numel() for p in model.parameters())
    with compact(model) as plain:
        found = plain.model(x if plain.inputs is None else x.flatten(1)[:, plain.inputs])
        left = sum(p.numel() for p in plain.model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (left < 0.8 * full) if name.startswith("lenet") else (left == full)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_masks_come_back_when_the_block_fails():
    model = masked("lenet300-100")
    before = get_masks(model)
    with pytest.raises(KeyboardInterrupt), compact(model):
        raise KeyboardInterrupt
    assert all(torch.equal(mask, before[n]) for n, mask in get_masks(model).items())


@pytest.mark.parametrize("keep_best", [False, True])
def test_training_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch, keep_best):
    data, recipe = images("lenet300-100"), Recipe(FEW.rates, batch=7, keep_best=keep_best)
    whole, parts = masked("lenet300-100"), masked("lenet300-100")
    epochs = train(whole, data, recipe, seed=5, show=False)
    calls, error = [], training.error

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return error(*arguments)

    monkeypatch.setattr(training, "error", stops)
    with pytest.raises(KeyboardInterrupt):
        train(parts, data, recipe, seed=5, checkpoint=tmp_path / "state.pt", show=False)
    monkeypatch.setattr(training, "error", error)
    again = train(parts, data, recipe, seed=5, checkpoint=tmp_path / "state.pt", show=False)
    assert [(e.loss, e.error) for e in again] == [(e.loss, e.error) for e in epochs]
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name


def test_keep_best_ends_with_the_epoch_of_the_least_error():
    data, model = images("lenet300-100"), masked("lenet300-100", kept=0.9)
    epochs = train(model, data, Recipe(rates=((0.05, 12),), batch=7, keep_best=True), seed=0, show=False)
    assert training.error(model, data.x_test, data.y_test) == min(e.error for e in epochs)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_and_moments_that_all_but_vanished_end_as_zeros(tmp_path, optimizer):
    data, path = images("lenet300-100", torch.float32), tmp_path / "state.pt"
    model = MODELS["lenet300-100"](SIZES["lenet300-100"], 4)
    data.x_train[:, :, 0] = 0  # the weights of a row of pixels decay and nothing else
    with torch.no_grad():
        model.fc1.weight[:, :6] = 1e-33
    train(model, data, Recipe(((1e-12, 2),), optimizer, batch=7), checkpoint=path, show=False)
    held = torch.load(path)  # after the first epoch
    moments = [value for state in held["optimizer"]["state"].values() for value in state.values() if value is not None]
    assert not model.fc1.weight[:, :6].any()
    assert model.fc1.weight[:, 6:].all()
    assert all(torch.equal(tensor, torch.where(tensor.abs() < 1e-30, 0, tensor)) for tensor in moments)


def test_without_shuffling_every_epoch_sees_the_same_batches():
    data = images("lenet300-100")
    first, second = (list(data.epoch(7, shuffle=False)) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second))
    assert torch.equal(torch.cat([x for x, _ in first]), data.x_train)
    shuffled = torch.cat([x for x, _ in data.epoch(7)])
    assert not torch.equal(shuffled, data.x_train)
    torch.testing.assert_close(shuffled.sum(0), data.x_train.sum(0))


def test_distilled_labels_are_shares_of_the_label_and_of_the_teacher():
    data, teacher = images("lenet300-100"), masked("lenet300-100")
    labels = distilled(data, teacher, share=0.3, temperature=2.0, batch=7).y_train
    with torch.no_grad():
        said = (teacher(data.x_train) / 2.0).softmax(1)
    torch.testing.assert_close(labels, 0.7 * F.one_hot(data.y_train, 4) + 0.3 * said)
    torch.testing.assert_close(labels.sum(1), torch.ones(20, dtype=torch.float64))


def test_labels_of_which_the_teacher_has_no_share_train_as_they_are():
    data, model = images("lenet300-100"), masked("lenet300-100")
    other = copy.deepcopy(model)
    train(model, data, FEW, seed=3, show=False)
    train(other, distilled(data, model, share=0.0), FEW, seed=3, show=False)
    torch.testing.assert_close(dict(model.named_parameters()), dict(other.named_parameters()), rtol=1e-9, atol=1e-12)


def test_augmented_images_are_shifts_and_mirrors_of_their_own():
    x = torch.rand(40, 2, 5, 6)
    torch.manual_seed(0)
    found = augmented(x, padding=2)
    padded = F.pad(x, (2, 2, 2, 2))
    shifts = set()
    for number, image in enumerate(found):
        fits = [
            (row, column, flip)
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
            if torch.equal(image.flip(2) if flip else image, padded[number, :, row : row + 5, column : column + 6])
        ]
        assert len(fits) == 1
        shifts.update(fits)
    assert len(shifts) > 20

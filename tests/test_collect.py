"""Collector: the oracle's scores, whatever the batches, and sums that merge, save and go on."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import Collector, reference


@pytest.fixture
def model():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="reflect")
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))


@pytest.fixture
def images():
    return torch.randn(70, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def collect(model, batches, variant="paper"):
    with Collector(model, variant=variant) as collector:
        collector.run(batches)
    return collector


@pytest.mark.parametrize("variant", ["paper", "norm_of_mean", "l1"])
@pytest.mark.parametrize("batch", [1, 7, 64, 70])
def test_scores_are_the_oracles_for_any_batch_size(model, images, variant, batch):
    scores = collect(model, images.split(batch), variant).scores()
    conv, fc = model[0], model[4]
    options = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "reflect", "variant": variant}
    expected = reference.score_conv(conv.weight, images, conv.bias, **options)
    torch.testing.assert_close(scores["0"].double(), expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        flat = model.eval()[:4](images)
    torch.testing.assert_close(scores["4"].double(), reference.score_linear(fc.weight, flat, fc.bias), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "norm_of_mean", "l1"])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_does_not_matter(model, images, variant, batch):
    whole = collect(model, [images], variant).scores()
    for name, scores in collect(model, images.split(batch), variant).scores().items():
        torch.testing.assert_close(scores, whole[name], rtol=1e-6, atol=1e-9)


def test_two_halves_merge_to_the_whole(model, images):
    first, second = collect(model, images[:32].split(8)), collect(model, images[32:].split(8))
    first.merge(second)
    whole = collect(model, [images])
    assert first.counts == whole.counts == {"0": 70, "4": 70}
    for name, scores in whole.scores().items():
        torch.testing.assert_close(first.scores()[name], scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "norm_of_mean", "l1"])
def test_saved_half_way_and_resumed_gives_the_same_bits(model, images, tmp_path, variant):
    batches = images.split(10)
    torch.save(collect(model, batches[:3], variant).state_dict(), tmp_path / "sums.pt")
    with Collector(model, variant=variant) as resumed:
        resumed.load_state_dict(torch.load(tmp_path / "sums.pt", weights_only=True))
        resumed.run(batches[3:])
    for name, scores in collect(model, batches, variant).scores().items():
        assert torch.equal(resumed.scores()[name], scores)


def test_compiles_without_a_graph_break(model, images):
    expected = collect(model, [images]).scores()
    model.eval()
    with Collector(model) as collector, torch.no_grad():
        torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    for name, scores in expected.items():
        torch.testing.assert_close(collector.scores()[name], scores, rtol=1e-6, atol=1e-9)


def test_modes_and_hooks_are_as_before_after_an_error(model, images):
    model.train()
    model[1].eval()
    with pytest.raises(ValueError, match="at least one batch"), Collector(model) as collector:
        collector.run([])
    assert model.training
    assert not model[1].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_unknown_layers_and_states_are_named(model):
    with pytest.raises(ValueError, match="'fc'"):
        Collector(model, ["fc"])
    with pytest.raises(ValueError, match="state must hold"):
        Collector(model, [nn.Linear]).load_state_dict({"0": {}})

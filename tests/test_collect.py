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


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.out(x + self.attention(x, x, value=x, need_weights=False)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_scored_on_what_enters_its_output_projection(bias):
    torch.manual_seed(0)
    model, tokens = Attention(bias=bias).eval(), torch.randn(5, 7, 6)
    attention = model.attention
    with torch.no_grad():
        x = model.embed(tokens)
        q, k, v = torch.nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        expected = model.out(x + attention.out_proj(mixed))
    with Collector(model) as collector:
        collector.run([tokens])
    assert collector.counts == {"embed": 35, "attention.out_proj": 35, "out": 35}
    projection = attention.out_proj
    wanted = reference.score_linear(projection.weight, mixed, projection.bias)
    torch.testing.assert_close(collector.scores()["attention.out_proj"].double(), wanted, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_every_layer_of_a_transformer_is_seen_in_spite_of_its_fused_path(norm_first):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first)
    before = torch.backends.mha.get_fastpath_enabled()
    scores = collect(model, [torch.randn(4, 5, 8)]).scores()
    names = ("self_attn.out_proj", "linear1", "linear2")
    assert list(scores) == [f"layers.{block}.{name}" for block in range(2) for name in names]
    assert torch.backends.mha.get_fastpath_enabled() == before


class Shared(nn.Module):
    """One layer called twice, two of one weight, one called by a keyword, one never called as a module."""

    def __init__(self):
        super().__init__()
        self.twice, self.keyword = nn.Linear(5, 5), nn.Linear(5, 5)
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.alias = self.twice
        self.unused = nn.Linear(5, 2)

    def forward(self, x):
        x = self.keyword(input=self.alias(self.twice(x).relu()))
        return torch.nn.functional.linear(self.second(self.first(x).relu()), self.unused.weight)


def test_signals_of_one_layer_called_twice_and_of_one_weight_held_twice_add_up():
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(6, 5)
    with torch.no_grad():
        a = model.twice(x).relu()
        b = model.keyword(model.twice(a))
        c = model.first(b).relu()
    collector = collect(model, [x])
    assert collector.counts == {"twice": 12, "keyword": 6, "first": 12, "unused": 0}
    assert collector.uncalled == ["unused"]
    assert collector.order == ["twice", "keyword", "first"]
    scores = collector.scores()
    expected = reference.score_linear(model.twice.weight, torch.cat([x, a]), model.twice.bias)
    torch.testing.assert_close(scores["twice"].double(), expected, rtol=1e-5, atol=1e-9)
    parts = [(b, model.first.bias), (c, model.second.bias)]
    signal = sum(reference.score_linear(model.first.weight, acts, bias, normalize=False) for acts, bias in parts)
    torch.testing.assert_close(scores["first"].double(), reference.share(signal), rtol=1e-5, atol=1e-9)


def test_tied_convolutions_may_differ_in_stride():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, stride=2))
    model[1].weight = model[0].weight
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        maps = model[0](images)
    first = reference.score_conv(model[0].weight, images, padding=1, normalize=False)
    second = reference.score_conv(model[0].weight, maps, model[1].bias, stride=2, normalize=False)
    signal = torch.cat([first + second[:, :3], second[:, 3:]], 1)
    found = collect(model, [images]).scores()
    assert list(found) == ["0"]
    torch.testing.assert_close(found["0"].double(), reference.share(signal), rtol=1e-5, atol=1e-9)

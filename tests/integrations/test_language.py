"""Masks for language models: per row, 2:4, and scores streamed over the tokens of a real transformer."""

import copy

import pytest
import torch
from torch import nn

from nnrelief_kernels import Collector, apply_masks, keep_mask, reference
from nnrelief_kernels.integrations.language import compress, keep_largest, keep_two_of_four
from tests.integrations.conformance import Conformance


class TestConformance(Conformance):
    """Every row of the linear layers loses the part 1 - alpha of its connections, whatever the network around them."""

    def masks(self, model, batches, alpha):
        with Collector(model, [nn.Linear]) as collector:
            collector.run(batches)
        return self.expected(model, collector.scores(), alpha)

    def expected(self, model, scores, alpha):
        linear = {n: s for n, s in scores.items() if isinstance(model.get_submodule(n), nn.Linear)}
        return {n: keep_largest(s[:, : model.get_submodule(n).in_features], 1 - alpha) for n, s in linear.items()}


def scores(rows=7, columns=16, seed=0):
    """Few different values, so that many tie."""
    return torch.randint(0, 6, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_every_row_loses_its_least_scores(sparsity):
    s = scores()
    mask = keep_largest(s, sparsity)
    assert (mask.sum(1) == 16 - round(16 * sparsity)).all()
    for row, kept in zip(s, mask):
        order = sorted(range(16), key=lambda i: (-row[i], i))
        assert kept.nonzero().flatten().tolist() == sorted(order[: int(kept.sum())])


def test_two_of_every_four_stay():
    s = scores()
    mask = keep_two_of_four(s)
    for row, kept in zip(s.reshape(-1, 4), mask.reshape(-1, 4)):
        best = sorted(range(4), key=lambda i: (-row[i], i))[:2]
        assert kept.nonzero().flatten().tolist() == sorted(best)


def test_without_the_hardware_weights_stay_dense_and_the_reason_is_given():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
    x = torch.randn(3, 64)
    masks = {f"{i}.weight": keep_two_of_four(model[i].weight.detach().abs()) for i in (0, 2)}
    expected = copy.deepcopy(model)
    for name, mask in masks.items():
        expected.get_parameter(name).data.mul_(mask)
    reasons = compress(model, masks)
    assert reasons.keys() == masks.keys()
    assert all("compute capability 8.0 or more, the weight is on cpu" in reason for reason in reasons.values())
    assert torch.equal(model(x), expected(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of compute capability 8.0 or more")
def test_on_a_gpu_the_compressed_network_gives_what_the_masked_one_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)).cuda().half()
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    masks = {f"{i}.weight": keep_two_of_four(model[i].weight.detach().abs()) for i in (0, 2)}
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    assert compress(model, masks) == {}
    assert isinstance(model[0].weight, torch.sparse.SparseSemiStructuredTensor)
    torch.testing.assert_close(model(x), masked(x), rtol=1e-2, atol=1e-2)  # float16 has 11 bits, sums of 128 products


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: keep_largest(scores(), 1.0), ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        (lambda: keep_largest(scores()[0], 0.5), ValueError, r"scores must be \(out, in\), got shape \(16,\)"),
        (lambda: keep_largest(scores() * float("nan"), 0.5), ValueError, "112 NaN"),
        (lambda: keep_two_of_four(scores(columns=6)), ValueError, "multiple of 4 columns"),
        (lambda: keep_two_of_four(scores().long()), TypeError, "floating-point"),
        (
            lambda: compress(nn.Sequential(nn.Linear(8, 4)), {"0.weight": torch.ones(4, 8, dtype=torch.bool)}),
            ValueError,
            "at most two of every four",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture(scope="module")
def minilm():
    language = pytest.importorskip("benchmarks.language")
    try:
        model, tokenizer = language.load_minilm()
    except ImportError as error:
        pytest.skip(f"{error}: make test-integrations")
    scoring, testing = language.passages(tokenizer)
    return language, model, scoring[:1], testing[:1]


def test_scores_streamed_over_tokens_are_the_oracles_whatever_the_batches(minilm):
    language, model, (tokens,), _ = minilm
    inputs, name = [], "encoder.layer.3.intermediate.dense"
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=tokens)
    hook.remove()
    expected = reference.score_linear(layer.weight[:40], inputs[0], layer.bias[:40])
    found = []
    for size in (1, 5, 16):
        with Collector(model, [name]) as collector:
            collector.run({"input_ids": part} for part in tokens.split(size))
        assert collector.counts[name] == tokens.numel()
        found.append(collector.scores()[name])
        torch.testing.assert_close(found[-1][:40].double(), expected, rtol=1e-4, atol=1e-9)  # activations differ by batch size
    agree = (keep_mask(found[0], 0.8) == keep_mask(found[2], 0.8)).float().mean()
    assert agree > 0.9999
    assert len(language.linears(model)) == 36


def test_scores_that_know_the_activations_beat_magnitude(minilm):
    language, model, scoring, testing = minilm
    found = {(row.score, row.pattern): row for row in language.rows(model, scoring, testing, (0.5,))}
    assert all(row.pruned_percent == pytest.approx(50, abs=0.1) for row in found.values())
    for pattern in ("rows", "2:4"):
        assert found["relief", pattern].loss < found["magnitude", pattern].loss
        assert found["wanda", pattern].loss < found["magnitude", pattern].loss

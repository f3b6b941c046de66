"""Torch-Pruning with this package's scores."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import fold_masks, keep_mask, prune
from tests.integrations.conformance import Conformance, images, network, oracle

tp = pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed: pip install 'nnrelief-kernels[integrations]'")
from nnrelief_kernels.integrations.torch_pruning import ReliefImportance, prune_channels  # noqa: E402

GROUPS = {
    "flatten": {"0": ["2"], "2": ["5"], "5": ["7"]},
    "grouped": {"0": ["2"], "4": ["6"], "6": ["9"]},
    "residual": {"stem": ["first", "head"], "first": ["second"]},
    "residual_bias": {"stem": ["first", "head"], "first": ["second"]},
}
"""For each network the first layer of every group of channels, to the layers that read them."""


def shares_of(model, scores, first, readers):
    """(channels + 1,): what each channel carries of its readers' signal, and what their biases carry."""
    channels = len(model.get_submodule(first).weight)
    total = torch.zeros(channels + 1, dtype=torch.float64)
    for name in readers:
        layer, bias = model.get_submodule(name), model.get_submodule(name).bias is not None
        for j, row in enumerate(scores[name]):
            weights = row[:-1] if bias else row
            start = 0 if isinstance(layer, nn.Linear) else j // (layer.out_channels // layer.groups) * len(weights)
            per_channel = len(weights) // channels if isinstance(layer, nn.Linear) else 1
            for i, share in enumerate(weights):
                total[(start + i) // per_channel] += share / len(scores[name]) / len(readers)
            total[-1] += row[-1] / len(scores[name]) / len(readers) if bias else 0
    return total


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        channels = {name: len(model.get_submodule(name).weight) for name in GROUPS[model.network]}
        removed = prune_channels(model, batches[0][:1], ReliefImportance(model, batches), alpha)
        model(batches[0])
        kept = {name: torch.ones(count, dtype=torch.bool) for name, count in channels.items()}
        for name, gone in removed.items():
            kept[name][gone] = False
            assert len(model.get_submodule(name).weight) == kept[name].sum()
        return kept

    def expected(self, model, scores, alpha):
        kept = {}
        for first, readers in GROUPS[model.network].items():
            shares = shares_of(model, scores, first, readers)
            groups = 2 if model.network == "grouped" and first in "04" else 1  # layer 2 reads and makes channels in two groups
            units = shares[:-1].reshape(groups, -1).sum(0)
            kept[first] = keep_mask(torch.cat([units, shares[-1:]]), alpha)[:-1]
            kept[first] = (kept[first] | (units == units.max())).repeat(groups)
        return kept


@pytest.mark.parametrize("settings", [{}, {"global_pruning": True}, {"iterative_steps": 2}, {"round_to": 2}])
@pytest.mark.parametrize("name", GROUPS)
def test_pruners_driven_by_a_ratio(name, settings):
    model = network(name)
    importance = ReliefImportance(model, [images()])
    pruner = tp.pruner.BasePruner(model, images()[:1], importance, pruning_ratio=0.5, **settings)
    before = sum(p.numel() for p in model.parameters())
    for _ in range(settings.get("iterative_steps", 1)):
        importance.calibrate(model, [images()])
        pruner.step()
    assert sum(p.numel() for p in model.parameters()) < before
    assert model(images()).shape == network(name)(images()).shape


def test_the_least_important_channels_go_first():
    model = network("residual_bias")
    shares = shares_of(model, oracle(model, images()), "first", ["second"])[:-1]
    bias = model.first.bias.detach().clone()
    pruner = tp.pruner.BasePruner(model, images()[:1], ReliefImportance(model, [images()]), pruning_ratio=0.5)
    pruner.step()
    kept = shares.argsort(descending=True)[:6].sort().values
    assert torch.equal(model.first.bias, bias[kept])


def test_the_importance_of_some_channels_is_theirs_among_all():
    model = network("flatten")
    importance = ReliefImportance(model, [images()])
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images()[:1])
    whole = importance.shares(graph.get_pruning_group(model[2], tp.prune_conv_out_channels, list(range(6))))
    some = importance.shares(graph.get_pruning_group(model[2], tp.prune_conv_out_channels, [4, 1]))
    assert torch.equal(some, whole[[4, 1]])
    assert importance(graph.get_pruning_group(model[7], tp.prune_linear_out_channels, [0])) is None  # the network's output


def test_what_cannot_be_done_is_said():
    model = network("flatten")
    importance = ReliefImportance(model, [images()])
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got 2"):
        prune_channels(model, images()[:1], importance, 2)
    prune(model, [images()])
    with pytest.raises(ValueError, match="fold_masks"):
        prune_channels(model, images()[:1], importance, 0.5)
    fold_masks(model)
    prune_channels(model, images()[:1], importance, 0.5)
    with pytest.raises(ValueError, match="has changed since it was scored: call calibrate"):
        prune_channels(model, images()[:1], importance, 0.5)


def test_channels_that_cannot_be_traced_are_not_guessed():
    model = network("residual")
    importance = ReliefImportance(model, [images()])
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images()[:1])
    group = graph.get_pruning_group(model.first, tp.prune_conv_out_channels, list(range(12)))
    (reader,) = [item for item in group.items if item.dep.handler == tp.prune_conv_in_channels]
    reader.root_idxs = [None] * 12  # as grouped-query attention leaves them
    with pytest.raises(ValueError, match="cannot tell which channels of first"):
        importance.shares(group)

"""Masks of several tasks on one set of weights."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import keep_mask, reference
from nnrelief_kernels.accumulate import conv_options
from nnrelief_kernels.integrations.continual import task_mask
from tests.integrations.conformance import LAYERS, Conformance, images, network, oracle, spread


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        masks = {}

        def hook(name):
            def choose(layer, args):
                options = {} if isinstance(layer, nn.Linear) else conv_options(layer)
                mask, bias = task_mask(layer.weight, args[0], layer.bias, alpha=alpha, **options)
                masks[f"{name}.weight"] = spread(mask, layer.weight)
                if bias is not None:
                    masks[f"{name}.bias"] = bias

            return choose

        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                module.register_forward_pre_hook(hook(name))
        with torch.no_grad():
            model(torch.cat(list(batches)))
        return masks


@pytest.mark.parametrize("compat", ["paper", "authors"])
def test_a_task_only_loses_connections(compat):
    layer = network("flatten")[2]
    acts = torch.rand(9, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    weight, bias, sizes = layer.weight.detach(), layer.bias.detach(), []
    for _ in range(3):
        mask, of_bias = task_mask(weight, acts, bias, alpha=0.8, compat=compat, **conv_options(layer))
        scores = reference.score_conv(weight, acts, bias, **conv_options(layer))
        assert torch.equal(torch.cat([mask, of_bias[:, None]], 1), keep_mask(scores, 0.8, compat=compat) & (scores > 0))
        sizes.append(int(mask.sum() + of_bias.sum()))
        weight, bias = weight * mask[:, :, None, None], bias * of_bias
        assert torch.equal((weight != 0).flatten(2).any(2), mask)
    assert sizes[0] > sizes[1] >= sizes[2]


def tasks():
    """The activations of two tasks, whose signal comes from different inputs."""
    generator = torch.Generator().manual_seed(4)
    first, second = torch.rand(20, 12, generator=generator), torch.rand(20, 12, generator=generator)
    return first * (torch.arange(12) < 8), second * (torch.arange(12) >= 4)


def test_two_tasks_share_what_both_need():
    layer = nn.Linear(12, 6)
    masks = [task_mask(layer.weight.detach(), acts, layer.bias.detach(), alpha=0.9) for acts in tasks()]
    for (mask, of_bias), acts in zip(masks, tasks()):
        expected = keep_mask(reference.score_linear(layer.weight, acts, layer.bias), 0.9)
        assert torch.equal(mask, expected[:, :-1])
        assert torch.equal(of_bias, expected[:, -1])
    shared = masks[0][0] & masks[1][0]
    assert shared[:, 4:8].any()
    assert not shared[:, :4].any()
    assert not shared[:, 8:].any()


def test_two_tasks_kept_apart_are_disjoint_and_leave_each_other_alone():
    layer = nn.Linear(12, 6, bias=False)
    first, second = tasks()
    weight = layer.weight.detach().clone()
    mine, _ = task_mask(weight, first, alpha=0.7)
    output = first @ (weight * mine).T
    other, _ = task_mask(weight * ~mine, second, alpha=0.7)
    assert other.any()
    assert not (mine & other).any()
    weight[other] += 1.0  # training the second task
    assert torch.equal(first @ (weight * mine).T, output)


def test_a_unit_without_connections_stays_without():
    weight = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    for compat in ("paper", "authors"):
        mask, bias = task_mask(weight, torch.ones(1, 2), torch.zeros(2), alpha=0.5, compat=compat)
        assert not mask[0].any()
        assert not bias.any()
    assert task_mask(weight, torch.ones(1, 2), alpha=0.5)[0].tolist() == [[False, False], [False, True]]


def test_the_authors_cut_off_prunes_at_least_what_the_papers_does():
    model, x = network("residual"), images()
    scores = oracle(model, x)["stem"]
    stem = model.stem
    paper, _ = task_mask(stem.weight, x, alpha=0.9, **conv_options(stem))
    authors, _ = task_mask(stem.weight, x, alpha=0.9, compat="authors", **conv_options(stem))
    assert torch.equal(authors, keep_mask(scores, 0.9, compat="authors"))
    assert not (authors & ~paper).any()

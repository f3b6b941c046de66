"""torch.nn.utils.prune with this package's scores."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from nnrelief_kernels import Collector, keep_mask, target_sparsity
from nnrelief_kernels.integrations.torch_prune import Relief, importance, nnrelief_unstructured
from tests.integrations.conformance import Conformance, images, network, spread


def scores_of(model, batches):
    with Collector(model) as collector:
        collector.run(batches)
    return collector.scores()


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        for name, scores in scores_of(model, batches).items():
            layer = model.get_submodule(name)
            for parameter in [key for key in ("weight", "bias") if getattr(layer, key) is not None]:
                nnrelief_unstructured(layer, parameter, scores, alpha)
        return {key.removesuffix("_mask"): mask.bool() for key, mask in model.named_buffers() if key.endswith("_mask")}


def test_iterations_compose_in_a_container_and_only_shrink():
    model, masks = network("flatten"), []
    for _ in range(3):
        nnrelief_unstructured(model[5], "weight", scores_of(model, [images()])["5"], 0.8)
        masks.append(model[5].weight_mask.bool())
    assert isinstance(next(iter(model[5]._forward_pre_hooks.values())), prune.PruningContainer)
    assert masks[0].sum() > masks[1].sum() > masks[2].sum() > 0
    assert not (masks[1] & ~masks[0]).any()
    assert not (masks[2] & ~masks[1]).any()


def test_after_another_method_the_mask_is_the_intersection():
    model = network("flatten")
    scores = scores_of(model, [images()])["5"]
    prune.l1_unstructured(model[5], "weight", amount=0.3)
    magnitude = model[5].weight_mask.bool()
    nnrelief_unstructured(model[5], "weight", scores, 0.7)
    assert torch.equal(model[5].weight_mask.bool(), magnitude & keep_mask(scores, 0.7)[:, :-1])


def test_global_unstructured_prunes_all_layers_by_one_alpha():
    model = network("flatten")
    scores = scores_of(model, [images()])
    parameters = [(model.get_submodule(name), "weight") for name in scores]
    ranks = {(layer, "weight"): importance(scores[name], layer) for name, (layer, _) in zip(scores, parameters)}
    prune.global_unstructured(parameters, pruning_method=Relief, importance_scores=ranks, alpha=0.6)
    for name, (layer, _) in zip(scores, parameters):
        assert torch.equal(layer.weight_mask.bool(), spread(keep_mask(scores[name], 0.6), layer.weight))


def test_torchs_own_methods_prune_to_an_amount_by_these_ranks():
    """Of equal amounts, the mask is that of the alpha which `target_sparsity` finds."""
    layer = nn.Linear(40, 30, bias=False)
    scores = scores_of(layer, [torch.rand(9, 40)])[""]
    prune.l1_unstructured(layer, "weight", amount=600, importance_scores=importance(scores, layer))
    assert torch.equal(layer.weight_mask.bool(), keep_mask(scores, target_sparsity(scores, 0.5)))


def test_training_keeps_zeros_and_remove_folds_them():
    model = network("flatten")
    nnrelief_unstructured(model[5], "weight", scores_of(model, [images()])["5"], 0.7)
    keep = model[5].weight_mask.bool()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    prune.remove(model[5], "weight")
    assert not model[5].weight[~keep].any()
    assert model.state_dict().keys() == network("flatten").state_dict().keys()


@pytest.mark.parametrize(
    ("name", "shape", "alpha", "message"),
    [
        ("weight", (10, 95), 0.9, r"scores must be \(10, 96\) or \(10, 97\) for the weight"),
        ("bias", (10, 96), 0.9, r"scores must be \(10, 97\) for the bias"),
        ("weigth", (10, 97), 0.9, "name must be 'weight' or 'bias', got 'weigth'"),
        ("weight", (10, 97), 1.5, r"alpha must be in \(0, 1\], got 1.5"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_pruned(name, shape, alpha, message):
    layer = network("flatten")[5]
    with pytest.raises(ValueError, match=message):
        nnrelief_unstructured(layer, name, torch.ones(shape), alpha)
    assert dict(layer.named_buffers()) == {}
    assert "weight" in dict(layer.named_parameters())

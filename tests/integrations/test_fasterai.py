"""fasterai with this package's scores."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import keep_mask, keep_rank
from tests.integrations.conformance import Conformance, images, network, oracle, spread

pytest.importorskip("fasterai", reason="fasterai, which brings fastai, is not installed: make test-integrations")
from fasterai.sparse.sparsifier import Sparsifier

from nnrelief_kernels.integrations.fasterai import ReliefCriteria


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        kinds = ((nn.Conv2d, "kernel"), (nn.Linear, "weight"))
        sparsifiers = [Sparsifier(model, g, "local", ReliefCriteria(), layer_type=kind, data=batches) for kind, g in kinds]
        for sparsifier in sparsifiers:  # all have scored the dense network
            sparsifier.sparsify_model(sparsifier.criteria.sparsities(alpha, sparsifier.granularity))
        masks = {}
        for name, layer in model.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                masks[f"{name}.weight"] = layer._mask.bool().expand_as(layer.weight)
                assert not layer.weight[~masks[f"{name}.weight"]].any()
        return masks


def test_one_sparsity_over_all_layers_is_one_alpha():
    model = network("grouped")
    scores = {name: s for name, s in oracle(model, images()).items() if isinstance(model.get_submodule(name), nn.Conv2d)}
    weights = {name: s[:, : model.get_submodule(name).weight.shape[1]] for name, s in scores.items()}
    ranks = torch.cat([keep_rank(scores[name])[:, : w.shape[1]].flatten() for name, w in weights.items()])
    sparsifier = Sparsifier(model, "kernel", "global", ReliefCriteria(), data=[images()])
    sparsifier.sparsify_model(0.4)
    threshold = ranks.kthvalue(int(0.4 * len(ranks))).values
    for name in scores:
        layer, rank = model.get_submodule(name), keep_rank(scores[name])
        expected = (rank > threshold - 1e-6)[:, : layer.weight.shape[1]]
        assert torch.equal(layer._mask.bool().expand_as(layer.weight), spread(expected, layer.weight))


def test_filters_go_by_the_signal_that_enters_them_and_take_their_bias_along():
    model = network("flatten")
    layer = model[2]
    criteria = ReliefCriteria()
    sparsifier = Sparsifier(model, "filter", "local", criteria, data=[images()])
    entering = torch.zeros(6, dtype=torch.float64)
    acts = model[:2](images()).detach().double().abs()
    for j in range(6):
        for i in range(8):
            kernel = layer.weight[j, i].detach().double().abs()[None, None]
            one = nn.functional.conv2d(acts[:, i : i + 1], kernel, stride=2, padding=1)
            entering[j] += one.flatten(1).norm(dim=1).sum()
        entering[j] += 12 * layer.bias[j].detach().double().abs() * 4
    expected = keep_mask(entering / entering.sum(), 0.7)
    sparsifier.sparsify_model(criteria.sparsities(0.7, "filter"))
    assert torch.equal(layer._mask.flatten().bool(), expected)
    assert 0 < expected.sum() < 6
    assert not layer.bias[~expected].any()
    assert criteria(layer, "filter").shape == (6, 1, 1, 1)
    assert criteria(layer, "filter", squeeze=True).shape == (6,)


def test_neurons_of_a_linear_layer():
    model = network("flatten")
    criteria = ReliefCriteria()
    sparsifier = Sparsifier(model, "row", "local", criteria, layer_type=nn.Linear, data=images())
    sparsifier.sparsify_model({"5": 0.5})
    kept = model[5]._mask.flatten().bool()
    assert kept.sum() == 6
    assert not model[5].weight[~kept].any()
    dense = network("flatten")
    acts = dense[:5](images()).detach().double().abs()
    entering = (acts @ dense[5].weight.detach().double().abs().T + dense[5].bias.detach().double().abs()).sum(0)
    assert entering[kept].min() > entering[~kept].max()


def test_masks_only_shrink_as_a_schedule_goes_on():
    model = network("flatten")
    criteria = ReliefCriteria(batches=2)
    sparsifier = Sparsifier(model, "kernel", "local", criteria, data=images(24).split(4))
    seen = []
    for sparsity in (0.2, 0.4, 0.6):
        sparsifier.sparsify_model(sparsity)
        seen.append(model[2]._mask.bool().clone())
        model[2].weight.data.add_(0.1)  # training goes on
    assert not (seen[1] & ~seen[0]).any()
    assert not (seen[2] & ~seen[1]).any()
    assert seen[2].sum() < seen[1].sum() < seen[0].sum()


def test_the_number_of_batches():
    model, x = network("flatten"), images(24)
    some, all_of_them = ReliefCriteria(batches=2), ReliefCriteria()
    some.calibrate(model, x.split(4))
    all_of_them.calibrate(model, x[:8])
    torch.testing.assert_close(some.scores[model[2]], all_of_them.scores[model[2]], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "granularity", "message"),
    [
        (2, "weight", r"granularity of Conv2d must be one of \['filter', 'kernel'\], got 'weight'"),
        (5, "kernel", r"granularity of Linear must be one of \['row', 'weight'\], got 'kernel'"),
        (5, "weight", "has not been scored: call calibrate"),
    ],
)
def test_what_it_cannot_rank_it_names(layer, granularity, message):
    model, criteria = network("flatten"), ReliefCriteria()
    criteria.calibrate(model, images())
    with pytest.raises(ValueError, match=message):
        criteria(model[layer], granularity)

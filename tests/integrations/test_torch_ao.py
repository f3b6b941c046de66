"""torch.ao.pruning with this package's scores."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.ao.pruning import FakeSparsity

from nnrelief_kernels import Collector, keep_mask
from nnrelief_kernels.integrations.torch_ao import ReliefSparsifier
from tests.integrations.conformance import LAYERS, Conformance, images, network, spread


def prepared(model, alpha=0.8):
    sparsifier = ReliefSparsifier(alpha)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LAYERS)]
    names = [f"{name}.{key}" for name, layer in layers for key in ("weight", "bias") if getattr(layer, key) is not None]
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in names])
    return sparsifier


def masks_of(model):
    return {
        f"{name}.{key}": chain[0].mask.bool()
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        for key, chain in module.parametrizations.items()
    }


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        sparsifier = prepared(model, alpha)
        sparsifier.calibrate(batches)
        sparsifier.step()
        return masks_of(model)


def test_without_a_configuration_torch_chooses_the_linear_layers():
    model = network("flatten")
    sparsifier = ReliefSparsifier(0.6)
    sparsifier.prepare(model, None)
    with Collector(model) as collector:
        collector.run([images()])
    scores = collector.scores()
    sparsifier.calibrate(images())
    sparsifier.step()
    for name in ("5", "7"):
        layer = model.get_submodule(name)
        assert torch.equal(layer.parametrizations.weight[0].mask.bool(), keep_mask(scores[name], 0.6)[:, :-1])
    assert not nn.utils.parametrize.is_parametrized(model[0])


def test_alpha_of_one_tensor():
    model, sparsifier = network("flatten"), ReliefSparsifier(1.0)
    sparsifier.prepare(model, [{"tensor_fqn": "5.weight", "alpha": 0.3}, {"tensor_fqn": "7.weight"}])
    sparsifier.calibrate([images()])
    sparsifier.step()
    kept = {name: mask.float().mean() for name, mask in masks_of(nn.Sequential(*model[5:])).items()}
    assert kept["0.weight"] < 0.3
    assert kept["2.weight"] > 0.5


def test_masks_only_shrink_and_squashing_leaves_a_plain_network():
    model = network("residual_bias")
    sparsifier, seen = prepared(model), []
    for _ in range(3):
        sparsifier.calibrate([images()])
        sparsifier.step()
        seen.append(copy.deepcopy(masks_of(model)))
    for name in seen[0]:
        assert not (seen[1][name] & ~seen[0][name]).any()
        assert not (seen[2][name] & ~seen[1][name]).any()
    assert sum(mask.sum() for mask in seen[2].values()) < sum(mask.sum() for mask in seen[0].values())
    output = model(images())
    sparsifier.squash_mask()
    assert model.state_dict().keys() == network("residual_bias").state_dict().keys()
    assert torch.equal(model(images()), output)
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in seen[2].items())


def test_the_state_goes_to_a_file_and_back_as_often_as_wanted():
    model = network("flatten")
    sparsifier = prepared(model)
    sparsifier.calibrate([images()])
    sparsifier.step()
    file = io.BytesIO()
    torch.save(sparsifier.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = network("flatten")
    other = prepared(fresh)
    for _ in range(2):
        other.load_state_dict(state)
        assert all(torch.equal(mask, masks_of(model)[name]) for name, mask in masks_of(fresh).items())
    again = other.state_dict()["state"]
    assert all(torch.equal(again[name]["mask"], value["mask"]) for name, value in state["state"].items())
    before = masks_of(fresh)
    other.groups[0]["alpha"] = 0.3
    other.step()  # from the saved scores
    name = other.groups[0]["tensor_fqn"]
    assert torch.equal(
        masks_of(fresh)[name], before[name] & spread(keep_mask(state["state"][name]["scores"], 0.3), fresh[0].weight)
    )
    assert torch.equal(other.state[name]["mask"].bool(), masks_of(fresh)[name])


def test_a_step_without_scores_says_what_to_call():
    model = network("flatten")
    sparsifier = prepared(model)
    with pytest.raises(RuntimeError, match=r"'0\.weight' has no scores: call calibrate"):
        sparsifier.step()
    with pytest.raises(ValueError, match="alpha must be in"):
        ReliefSparsifier(0)
    assert isinstance(model[0].parametrizations.weight[0], FakeSparsity)

"""NVIDIA ModelOpt's importance hooks with this package's scores."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import keep_mask, prune
from tests.integrations.conformance import LAYERS, Conformance, images, network, oracle, spread

pytest.importorskip("modelopt", reason="NVIDIA ModelOpt is not installed: make test-integrations")
from modelopt.torch.prune.importance_hooks import ForwardHook
from omegaconf import OmegaConf

from nnrelief_kernels.integrations.modelopt import ReliefHook


def hooked(model):
    """A hook on every layer of the model."""
    hooks = {name: ReliefHook(m) for name, m in model.named_modules() if isinstance(m, LAYERS)}
    for name, hook in hooks.items():
        model.get_submodule(name).register_forward_hook(hook)
    return hooks


def run(model, batches):
    with torch.no_grad():
        for batch in batches:
            model(batch)


class TestConformance(Conformance):
    def masks(self, model, batches, alpha):
        hooks = hooked(model)
        run(model, batches)
        masks = {}
        for name, hook in hooks.items():
            layer = model.get_submodule(name)
            keep = keep_mask(hook.scores(), alpha)
            masks[f"{name}.weight"] = spread(keep, layer.weight)
            if layer.bias is not None:
                masks[f"{name}.bias"] = keep[:, -1]
        return masks


@pytest.mark.parametrize("name", ["flatten", "grouped"])
def test_the_score_of_an_input_is_the_mean_of_its_connections(name):
    model = network(name)
    scores = oracle(model, images())
    hooks = hooked(model)
    run(model, [images()])
    for layer_name, hook in hooks.items():
        layer, found = model.get_submodule(layer_name), hook.to_dict()
        assert isinstance(hook, ForwardHook)
        expected = torch.zeros(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels, dtype=torch.float64)
        columns = layer.weight.shape[1]
        for j, row in enumerate(scores[layer_name]):
            start = 0 if isinstance(layer, nn.Linear) else j // (layer.out_channels // layer.groups) * columns
            expected[start : start + columns] += row[:columns] / len(layer.weight)
        torch.testing.assert_close(found["score"].double(), expected, rtol=1e-5, atol=1e-9)
        ascending = found["score"][found["channels_importance_ascending"]]
        assert (ascending.diff() >= 0).all()
        assert hook.get_progress_info() == {"samples": 12}


def test_a_run_that_stops_goes_on_from_the_states_that_modelopt_saved(tmp_path):
    whole, first, second = (network("residual_bias") for _ in range(3))
    hooks = hooked(whole)
    run(whole, images().split(4))
    started = hooked(first)
    run(first, images()[:8].split(4))
    ForwardHook.save_hook_states(started, tmp_path)
    resumed = hooked(second)
    for name, state in torch.load(tmp_path / "hook_states_rank_0.pth", weights_only=True).items():
        resumed[name].load_state_dict(state)
    run(second, [images()[8:]])
    for name in hooks:
        assert torch.equal(hooks[name].scores(), resumed[name].scores())
    ForwardHook.dump_activations_logs(resumed, tmp_path, OmegaConf.create({"activation_hooks_kwargs": None}))
    log = torch.load(tmp_path / "rank_0.pth", weights_only=True)
    assert log.keys() == hooks.keys()
    assert torch.equal(log["first"]["score"], hooks["first"].accumulate())


def test_sequence_first_and_batch_first_give_one_result():
    layer = nn.Linear(6, 4)
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))
    scores = []
    for acts in (x, x.transpose(0, 1)):
        hook = ReliefHook(layer)
        hook(layer, (acts,), layer(acts))
        scores.append(hook.accumulate())
    torch.testing.assert_close(*scores, rtol=1e-5, atol=0)


def test_without_activations_or_with_another_layers_state_it_says_so():
    hook, other = ReliefHook(nn.Linear(6, 4)), ReliefHook(nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="no activations collected"):
        hook.accumulate()
    with pytest.raises(ValueError, match=r"state\['signal'\] must have shape \(6,\), got \(5,\)"):
        hook.load_state_dict(other.state_dict())


def test_masked_layers_are_scored_as_they_are():
    model = network("flatten")
    prune(model, [images()], alpha_conv=0.7, alpha_fc=0.7)
    hooks = hooked(model)
    run(model, [images()])
    zero = (model[5].weight == 0).all(0)
    assert zero.any()
    assert not hooks["5"].accumulate()[zero].any()

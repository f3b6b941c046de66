"""The rules of the authors' scripts against what they say, computed by hooks on the modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnrelief_kernels import apply_masks, remove_dead, residual_masks, silent_masks
from tests.networks import NETWORKS, Block, network, samples


def test_units_without_activation_on_any_sample_go_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU())
    model.append(nn.Linear(6, 3)).eval()
    x = torch.randn(70, 2, 4, 4)
    with torch.no_grad():
        model[1].bias[[1, 3]] = -50.0  # never above 0
        model[4].bias[2] = -50.0
        active, last = model[:3](x).flatten(2).amax((0, 2)) > 0, model[:6](x).amax(0) > 0
    assert not last[2]
    assert active.tolist() == [True, False, True, False, True]
    expected = model(x)
    masks = silent_masks(model, x.split(33))
    assert masks["0.weight"].flatten().tolist() == active.tolist()
    for name in ("0.bias", "1.weight", "1.bias"):
        assert masks[name].tolist() == active.tolist()
    assert masks["4.weight"].flatten().tolist() == masks["4.bias"].tolist() == last.tolist()
    assert masks.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    apply_masks(model, masks)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    found = remove_dead(model, x)
    assert found.unread["0"].tolist() == (~active).tolist()
    assert silent_masks(model[:2], x) == {}  # no nonlinearity
    assert set(silent_masks(model, [(x, torch.zeros(70))])) == set(masks)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "transformer" not in name])
def test_the_outputs_on_the_pruning_set_stay(name):
    model, x = network(name, 0), samples(name, 40, 0)
    expected = model(x)
    masks = silent_masks(model, x)
    apply_masks(model, masks)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("option", "alpha"), [("A", 0.6), ("B", 0.6), ("B", 0.45)])
def test_of_two_branches_the_weak_units_go(option, alpha):
    torch.manual_seed(0)
    model = Block(6, 10, 2, option).double().eval()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.normal_()
    x = torch.randn(40, 6, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        branch = model.bn2(model.conv2(model.bn1(model.conv1(x)).relu()))
        padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        shortcut = model.shortcut(x) if option == "B" else padded
    mine, others = (value.abs().mean(0).norm(dim=(1, 2)) for value in (branch, shortcut))
    weak, weak_shortcut = mine / others < (1 - alpha) / alpha, others / mine < (1 - alpha) / alpha
    assert 0 < weak.sum() < 10
    masks = residual_masks(model, x.split(15), alpha)
    assert torch.equal(masks["conv2.weight"].flatten(), ~weak)
    assert torch.equal(masks["bn2.weight"], ~weak)
    assert torch.equal(masks["bn2.bias"], ~weak)
    if option == "B":
        assert 0 < weak_shortcut.sum() < 10
        assert torch.equal(masks["shortcut.0.weight"].flatten(), ~weak_shortcut)
        assert torch.equal(masks["shortcut.1.bias"], ~weak_shortcut)
    else:
        assert masks.keys() == {"conv2.weight", "bn2.weight", "bn2.bias"}
    apply_masks(model, masks)
    rest = branch.where(~weak.reshape(-1, 1, 1), 0.0)
    rest = rest + (shortcut.where(~weak_shortcut.reshape(-1, 1, 1), 0.0) if option == "B" else shortcut)
    torch.testing.assert_close(model(x), rest.relu(), rtol=1e-10, atol=1e-12)


def test_alpha_out_of_range():
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got 0"):
        residual_masks(nn.Linear(2, 2), torch.ones(1, 2), 0)

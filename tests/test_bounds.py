"""Certificates: no change exceeds its bound, equality where the theory says so, and budgets that are met."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from nnrelief_kernels import alpha_for_bound, apply_masks, certify, get_masks, layer_bounds, measure, prune, reference
from nnrelief_kernels.bounds import ALPHAS
from nnrelief_kernels.geometry import conv_geometry
from nnrelief_kernels.paper.models import LeNet300100
from nnrelief_kernels.paper.training import error
from tests import networks
from tests.data import caffe_lenet5, load_caffe, mnist_test, needs_data
from tests.strategies import conv_calls, linear_calls

ROUNDING = 1 + 1e-10
"""Of float64 sums."""
CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def layer_of(weight, bias, options):
    """A layer with these parameters, in float64."""
    if weight.ndim == 2:
        layer = nn.Linear(*weight.shape[::-1], bias=bias is not None)
    else:
        geometry = {key: options[key] for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
        channels = weight.shape[1] * options["groups"]
        layer = CONVS[weight.ndim](channels, len(weight), weight.shape[2:], bias=bias is not None, **geometry)
    layer.weight = nn.Parameter(weight.double())
    if bias is not None:
        layer.bias = nn.Parameter(bias.double())
    return layer


def pruned_of(layer, keep):
    """A copy with `keep` (C_out, C_in/groups), and with a bias one more column, as zeros in its parameters."""
    copied, inputs = copy.deepcopy(layer), layer.weight.shape[1]
    with torch.no_grad():
        copied.weight *= keep[:, :inputs].reshape(*copied.weight.shape[:2], *(1,) * (copied.weight.ndim - 2))
        if copied.bias is not None:
            copied.bias *= keep[:, -1]
    return copied


def by_hand(layer, keep, acts, options):
    """The bound as Eqs. 5 and 10 write it: one term per pruned connection."""
    weight, inputs = layer.weight.detach(), layer.weight.shape[1]
    if weight.ndim == 2:
        terms = (weight * acts.reshape(-1, 1, inputs)).abs()
        total = (terms * ~keep[:, :inputs]).sum(2)
        return total + layer.bias.abs() * ~keep[:, -1] if layer.bias is not None else total
    geometry = conv_geometry(tuple(acts.shape[2:]), tuple(weight.shape[2:]), **options)
    maps = torch.zeros(len(acts), len(weight), *geometry.out, dtype=torch.float64)
    for j, i in (~keep[:, :inputs]).nonzero().tolist():
        channel = j // (len(weight) // layer.groups) * inputs + i
        maps[:, j] += reference.feature_maps(weight[j, i].abs(), acts[:, channel].abs(), geometry)
    if layer.bias is not None:
        maps += (layer.bias.abs() * ~keep[:, -1]).reshape(-1, *(1,) * len(geometry.out))
    return maps.flatten(2).norm(dim=2)


@given(st.one_of(conv_calls(), linear_calls()), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_bounds_of_a_layer_are_the_equations_and_no_change_exceeds_them(call, seed):
    weight, acts, bias, options = call
    layer, acts = layer_of(weight, bias, options), acts.double()
    keep = torch.rand(len(weight), weight.shape[1] + (bias is not None), generator=torch.Generator().manual_seed(seed)) < 0.6
    pruned = pruned_of(layer, keep)
    options = {key: options[key] for key in ("stride", "padding", "dilation", "groups", "padding_mode") if key in options}
    bound, change = layer_bounds(layer, pruned, acts)
    torch.testing.assert_close(bound, by_hand(layer, keep, acts, options).detach(), rtol=1e-10, atol=1e-300)
    assert torch.all(change <= bound * ROUNDING)
    for activation, lipschitz in ((torch.relu, 1.0), (F.elu, 1.0), (torch.sigmoid, 0.25), (F.silu, 1.0999)):
        through, moved = layer_bounds(layer, pruned, acts, activation=activation, lipschitz=lipschitz)
        torch.testing.assert_close(through, lipschitz * bound)
        assert torch.all(
            moved <= through * ROUNDING + 1e-11 * acts.abs().max() * weight.double().abs().max() * weight[0].numel()
        )


@pytest.mark.parametrize("layer", [nn.Linear(9, 6), nn.Conv2d(4, 6, 3, padding=1), nn.Conv1d(4, 6, 3, bias=False)])
def test_a_layer_of_positive_weights_and_inputs_changes_by_its_bound(layer):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0, 1)
    keep = torch.rand(6, layer.weight.shape[1] + (layer.bias is not None)) < 0.5
    shape = (9,) if isinstance(layer, nn.Linear) else (4, *(8,) * (layer.weight.ndim - 2))
    acts = torch.rand(7, *shape, dtype=torch.float64)
    bound, change = layer_bounds(layer, pruned_of(layer, keep), acts)
    torch.testing.assert_close(change, bound)
    _, after = layer_bounds(layer, pruned_of(layer, keep), acts, activation=torch.relu)
    torch.testing.assert_close(after, bound)
    one, _ = layer_bounds(layer, pruned_of(layer, keep), acts[0])  # without a dimension for samples
    torch.testing.assert_close(one, bound[:1])


def vgg():
    parts = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    parts += [nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ELU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(32, 9), nn.SiLU(), nn.Dropout(), nn.Linear(9, 5))


class Residual(nn.Module):
    """Two blocks with a zero-padded shortcut and a concatenation; the first convolution of each is the same module."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        for _ in range(2):
            y = self.twice(x)
            y += x
            x = F.relu(y, inplace=True)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = torch.tanh(self.wide(input=torch.cat([x, 0.5 * x], 1)) + short)
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


class Shared(nn.Module):
    """Two layers of one weight, on tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = F.leaky_relu(self.first(x.flatten(2).mean(1).unflatten(1, (8, 8)).transpose(1, 2)), 0.1)
        return self.fc(F.gelu(self.second(x))).amax(1)


NETWORKS = {"VGG": vgg, "residual": Residual, "tied": Shared, "fc": lambda: LeNet300100((3, 8, 8), 5)}


def network(name, seed=0):
    """In float64, in training mode, with BatchNorm statistics of their own."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean):
                    value.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def random_masks(model, keep, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape[:2] + (1,) * (p.ndim - 2), generator=generator) < keep
        for name, p in model.named_parameters()
        if "norm" not in name and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
    }


def images(count, seed=1):
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check(found):
    """Nothing exceeds its bound."""
    for bounds in (*found.layers.values(), *([found.outputs] if found.outputs else [])):
        assert bounds.tightest <= ROUNDING
        assert torch.all(bounds.average_change <= bounds.average_bound * ROUNDING)
        assert torch.all(bounds.largest_change <= bounds.largest_bound * ROUNDING)
        assert torch.all(bounds.average_bound <= bounds.largest_bound * ROUNDING)
    for bounds in found.layers.values():
        assert torch.all(bounds.average_bound <= bounds.removed * ROUNDING)
        assert torch.all(bounds.removed <= bounds.signal * ROUNDING)


@pytest.mark.parametrize("name", NETWORKS)
@given(st.floats(0.2, 0.95), st.integers(0, 2**31), st.integers(0, 2**31))
@settings(deadline=None, max_examples=8)
def test_no_network_changes_by_more_than_is_certified(name, keep, seed, data):
    model, x = network(name, seed), images(7, data)
    masks = random_masks(model, keep, seed)
    assume(not all(mask.all() for mask in masks.values()))
    found = certify(model, masks, x.split(3))
    assert found.reason == ""
    check(found)
    assert max(bounds.tightest for bounds in found.layers.values()) > 0.01
    assert {f"{path}.weight" for path in found.layers} >= {key for key in masks if key.endswith("weight")}
    pruned = copy.deepcopy(model)
    apply_masks(pruned, masks)
    with torch.no_grad():
        change = (model.eval()(x) - pruned.eval()(x)).abs()
    torch.testing.assert_close(found.outputs.average_change, change.mean(0))
    torch.testing.assert_close(found.outputs.largest_change, change.amax(0))


@pytest.mark.parametrize("name", networks.NETWORKS)
@given(st.floats(0.2, 0.95), st.integers(0, 2**31))
@settings(deadline=None, max_examples=5)
def test_every_kind_of_network_is_certified(name, keep, seed):
    model, x = networks.network(name, seed), networks.samples(name, 4, seed)
    found = certify(model, networks.random_masks(model, keep, seed), x.split(3))
    check(found)
    assert set(found.layers) == {path for path, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVS.values()))}
    assert (found.outputs is None) == ("transformer" in name)
    assert bool(found.reason) == ("transformer" in name)


@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if "transformer" not in name])
def test_every_kind_of_network_keeps_within_a_budget(name):
    model, x = networks.network(name, 0), networks.samples(name, 8, 1)
    alphas = alpha_for_bound(model, x.split(5), 0.5)
    assert min(alphas.values()) < 1
    found = certify(model, prune(copy.deepcopy(model), x.split(5), alphas=alphas), x.split(5))
    assert 0 < found.outputs.average_bound.max() <= 0.5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("alpha", [0.8, 0.99])
def test_at_most_one_minus_alpha_of_the_signal_is_removed(name, alpha):
    model, x = network(name), images(20)
    masks = prune(pruned := copy.deepcopy(model), x.split(8), alpha_conv=alpha, alpha_fc=alpha, drop_unread=False)
    found = certify(model, masks, x.split(8))
    check(found)
    for path, bounds in found.layers.items():
        if name != "tied":  # there the share is of both layers' signal
            assert torch.all(bounds.removed <= bounds.signal * (1 - alpha) * (1 + 1e-5))  # scores are rounded to float32
        if isinstance(model.get_submodule(path), nn.Linear):
            torch.testing.assert_close(bounds.average_bound, bounds.removed)
    again = prune(copy.deepcopy(pruned), x, alpha_conv=0.7, alpha_fc=0.7)  # a network that is pruned already
    check(certify(pruned, again, x))


@pytest.mark.parametrize(("activation", "constant"), [(nn.ReLU, 1.0), (nn.SiLU, 1.0999), (nn.Sigmoid, 0.25)])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_through_a_fully_connected_network_the_bound_is_a_product_of_matrices(activation, constant, place):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), activation(), nn.Linear(7, 8), activation(), nn.Linear(8, 4)).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    mask = torch.rand(model[place].weight.shape) < 0.5
    found = certify(model, {f"{place}.weight": mask}, x)
    with torch.no_grad():
        bound = ((model[:place](x) if place else x).abs() @ (model[place].weight.abs() * ~mask).T).mean(0)
        for layer in range(place + 2, 5, 2):
            bound = constant * model[layer].weight.abs() @ bound
    torch.testing.assert_close(found.outputs.average_bound, bound)
    check(found)


def test_a_network_of_positive_weights_and_inputs_changes_by_its_bound():
    model, x = network("VGG"), images(6).abs()
    model = nn.Sequential(*(m for m in model if not isinstance(m, (nn.SiLU, nn.Dropout)))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    found = certify(model, random_masks(model, 0.5, 3), x)
    bounds = found.outputs
    assert bounds.average_change.min() > 0
    # only the maximum of a window may move by less than the largest change within it
    assert torch.all(bounds.average_change <= bounds.average_bound * ROUNDING)
    assert bounds.tightest > 0.5
    model[3] = nn.AvgPool2d(2)
    bounds = certify(model, random_masks(model, 0.5, 3), x).outputs
    torch.testing.assert_close(bounds.average_change, bounds.average_bound)
    torch.testing.assert_close(bounds.largest_change, bounds.largest_bound)
    assert bounds.tightest == pytest.approx(1)


def test_the_model_is_left_as_it_was():
    model = network("residual")
    model.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    certify(model, random_masks(model, 0.5, 0), images(3))
    alpha_for_bound(model, [images(3)], 1.0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert get_masks(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_bound_that_overflows_is_infinite():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(1e6 * torch.tensor([[1.0, -1.0], [1.0, -1.0]]).repeat(2, 2) + torch.eye(4))
        model[7].weight[1:] = 0
    found = certify(model, {"0.bias": torch.zeros(4, dtype=torch.bool)}, torch.randn(3, 4))
    assert not found.outputs.average_bound.isnan().any()
    assert found.outputs.average_bound.isinf().any()
    assert found.outputs.tightest == 0


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return F.linear(self.fc(x).relu(), self.fc.weight).sum(1) + self.head(x).sum(1)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 4), nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed((x > 0).long()).sum(1))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() < 1e9 else x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


REASONS = {
    "weight that is read": (Functional, "weight of 'fc' is used otherwise"),
    "embedding": (Embedded, "'embed' is masked and no Linear"),
    "attention": (Attention, "out_proj' is used otherwise"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "LayerNorm.*lipschitz="),
    "another forward": (lambda: nn.Sequential(Doubled(4, 4)), "'0': Doubled has a forward of its own"),
    "control flow": (Branching, "cannot trace the model"),
}


@pytest.mark.parametrize("name", REASONS)
def test_layers_are_certified_where_the_outputs_cannot_be(name):
    torch.manual_seed(0)
    make, reason = REASONS[name]
    model, x = make().double(), torch.randn(6, 4, dtype=torch.float64)
    x = x.reshape(3, 2, 4) if name == "attention" else x
    masks = {key: torch.rand(p.shape) < 0.5 for key, p in model.named_parameters() if p.ndim == 2 and "in_proj" not in key}
    found = certify(model, masks, x)
    assert found.outputs is None
    assert re.search(reason, found.reason)
    assert found.layers
    check(found)


def test_batches_in_every_form():
    model, x = network("VGG"), images(6)
    masks = random_masks(model, 0.6, 0)
    plain = certify(model, masks, x)
    labelled = certify(nn.DataParallel(model), masks, [(x[:4], None), [x[4:], None]])
    torch.testing.assert_close(labelled.outputs.average_bound, plain.outputs.average_bound)
    named = certify(model, masks, [{"input": x}])
    run = certify(model, masks, [x], forward=lambda m, batch: m(batch))
    for found, reason in ((named, "keyword arguments"), (run, "forward=")):
        assert found.outputs is None
        assert reason in found.reason
        for path, bounds in plain.layers.items():
            torch.testing.assert_close(found.layers[path].average_bound, bounds.average_bound)


def test_what_is_wrong_is_told():
    model = network("VGG")
    with pytest.raises(ValueError, match="at least one batch"):
        certify(model, {}, [])
    with pytest.raises(ValueError, match=r"'99\.weight'"):
        certify(model, {"99.weight": torch.ones(1, 1, dtype=torch.bool)}, images(2))
    for budget in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="budget must be at least 0"):
            alpha_for_bound(model, images(2), budget)
    with pytest.raises(ValueError, match=r"cannot be bounded.*LayerNorm"):
        alpha_for_bound(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.randn(3, 4), 1.0)
    with pytest.raises(TypeError, match="more than once"):
        alpha_for_bound(model, iter([images(2)]), 1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_budgets_are_met_and_used(name):
    model, x = network(name), images(30)
    with torch.no_grad():
        budget = 0.2 * model.eval()(x).abs().mean().item()
    kept = []
    for share in (1.0, 0.1):
        alphas = alpha_for_bound(model, x.split(16), share * budget)
        pruned = copy.deepcopy(model)
        found = certify(model, prune(pruned, x.split(16), alphas=alphas), x.split(16))
        assert found.outputs.average_bound.max() <= share * budget
        assert found.outputs.average_change.max() <= found.outputs.average_bound.max()
        kept.append(measure(pruned, x[:1]).kept)
        last = next(iter(alphas))
        lower = ALPHAS[ALPHAS.index(alphas[last]) - 1]  # would have exceeded what the last layer may use
        masks = prune(copy.deepcopy(model), x.split(16), layers=[last], alpha_conv=lower, alpha_fc=lower)
        assert certify(model, masks, x).outputs.average_bound.max() > share * budget / len(alphas)
    dense = measure(model, x[:1]).parameters
    assert kept[0] < kept[1] < dense
    masks = prune(copy.deepcopy(model), x, alphas=alpha_for_bound(model, x, 0.0))
    assert certify(model, masks, x).outputs.average_bound.max() == 0


@needs_data
@pytest.mark.parametrize("name", ["caffe_lenet300100_original", "caffe_lenet5_original"])
def test_published_networks_within_a_budget(name):
    images, labels = mnist_test()
    model = load_caffe(caffe_lenet5() if "lenet5" in name else LeNet300100(), name)
    batches = images[:200].split(100)
    alphas = alpha_for_bound(model, batches, 1.0)
    pruned = copy.deepcopy(model)
    masks = prune(pruned, batches, alphas=alphas)
    found = certify(model, masks, batches)
    assert found.outputs.average_bound.max() <= 1.0
    assert found.outputs.tightest <= 1
    assert measure(pruned, images[:1]).kept_percent < 97
    assert abs(error(pruned, images, labels) - error(model, images, labels)) < 0.2

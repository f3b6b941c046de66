"""Dead units: outputs stay, masks only shrink, and what brute force finds dead is found."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnrelief_kernels import apply_masks, fold_masks, get_masks
from nnrelief_kernels.dead import find_dead, remove_dead
from nnrelief_kernels.layers import CONVS
from nnrelief_kernels.tracing import NotTraceable
from tests.networks import NETWORKS, network, random_masks, samples

LAYERS = (nn.Linear, *CONVS)
# Sums of at most 800 terms in another order differ by 800 eps of the sum of their magnitudes; 100 for how much larger that
# is than the sum, in a few layers of random weights.
ROUNDING = 100 * 800 * torch.finfo(torch.float64).eps

OPTIONS = ({}, {"new_biases": True}, {"fold": False})


def assert_same(found, expected, tolerance=ROUNDING):
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(NETWORKS)), st.integers(0, 10_000), st.sampled_from((0.1, 0.3, 0.6, 0.9)), st.sampled_from(OPTIONS)
)
def test_outputs_stay_and_masks_only_shrink(name, seed, keep, options):
    model, x = network(name, seed), samples(name, 4, seed)
    apply_masks(model, random_masks(model, keep, seed))
    expected, before = model(x), get_masks(model)
    remove_dead(model, x, **options)
    assert_same(model(x), expected)
    after = get_masks(model)
    assert all(torch.all(before[mask] | ~after[mask]) for mask in before)
    if options.get("fold") is False:
        other = network(name, seed)
        apply_masks(other, after)
        assert torch.equal(other(x), model(x))  # the masks are all there is
    again = find_dead(model, x, **options)
    assert not again.biases
    now = dict(model.named_modules())
    for mask, keep_now in again.masks.items():
        layer, _, attribute = mask.rpartition(".")
        assert not (getattr(now[layer], attribute) * ~keep_now).any()  # nothing left to remove


@pytest.mark.parametrize("name", NETWORKS)
def test_in_float32_to_1e_5_and_from_a_folded_network_as_from_a_masked_one(name):
    model, x = network(name, 3).float(), samples(name, 4, 3).float()
    masks = random_masks(model, 0.6, 3)
    folded = copy.deepcopy(model)
    with torch.no_grad():
        for key, mask in masks.items():
            folded.get_parameter(key).mul_(mask)
    apply_masks(model, masks)
    expected = model(x)
    removed = remove_dead(model, x)
    assert removed.masks
    assert_same(model(x), expected, 1e-5)
    del masks, removed
    remove_dead(folded, x, new_biases=True)
    assert_same(folded(x), expected, 1e-5)


def growing(name):
    """Sparse and such that more of anything gives more of all that depends on it: nothing is dead for its sign alone."""
    model = network(name, 5)
    with torch.no_grad():
        for module in model.modules():
            for value in (*module.parameters(recurse=False), getattr(module, "running_mean", None)):
                if isinstance(value, torch.Tensor):
                    value.abs_().mul_(0.2)  # far below where ReLU6 and tanh saturate
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.neg_()
                module.bias.add_(0.1)
    apply_masks(model, random_masks(model, 0.8, 7))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_what_brute_force_finds_dead_is_found(name):
    model, x = growing(name), samples(name, 3, 1).abs()
    found = remove_dead(model, x, new_biases=True)
    expected, seen = model(x), {}
    noise = torch.Generator().manual_seed(2)
    called = {key: m for key, m in model.named_modules() if isinstance(m, LAYERS) and key in found.unread}
    for key, layer in called.items():
        hook = layer.register_forward_hook(lambda _, args, out, key=key: seen.__setitem__(key, out))
        model(x + torch.rand(x.shape, generator=noise))
        hook.remove()
        if key not in seen:  # attention's output projection, which torch does not call as a module
            assert key == "layer.self_attn.out_proj"
            continue
        values = [seen[key]]
        at = -1 if isinstance(layer, nn.Linear) else 1

        def first(_, args, out, values=values):
            values.append(out)

        hook = layer.register_forward_hook(first)
        model(x)
        hook.remove()
        varies = (values[0] != values[1]).movedim(at, 0).flatten(1).any(1)
        assert torch.equal(~varies, found.constant[key]), key
        for unit in range(len(layer.weight)):

            def perturb(_, args, out, unit=unit, at=at):
                out = out.clone()
                out.select(at, unit).add_(torch.rand(out.select(at, unit).shape, generator=noise))
                return out

            hook = layer.register_forward_hook(perturb)
            changed = bool((model(x) != expected).any())
            hook.remove()
            if key not in ("query", "key"):  # softmax is the same for keys that are all larger by the same
                assert changed != bool(found.unread[key][unit]), (key, unit)
            assert not (changed and found.unread[key][unit])
    assert sum(int(mask.sum()) for mask in found.unread.values()) > 3


@pytest.mark.parametrize("name", [name for name in NETWORKS if "transformer" not in name])
def test_every_connection_that_is_left_counts(name):
    model, x = growing(name), samples(name, 2, 1).abs()
    remove_dead(model, x, new_biases=True)
    fold_masks(model)
    expected, connections = model(x), 0
    for key, layer in [item for item in model.named_modules() if isinstance(item[1], LAYERS)]:
        weight = layer.weight.detach()
        kept = (weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0
        for j, i in kept.nonzero()[:: 1 + kept.sum() // 40]:  # some forty of each layer
            value = weight[j, i].clone()
            weight[j, i] = 0
            assert (model(x) != expected).any(), (key, j, i)
            weight[j, i] = value
            connections += 1
    assert torch.equal(model(x), expected)
    assert connections > 5


def chain(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).double().eval()


def empty(model, layer, unit):
    """Prune all that enters a unit."""
    weight = model[layer].weight
    mask = torch.ones(len(weight), *(1,) * (weight.ndim - 1), dtype=torch.bool)
    mask[unit] = False
    apply_masks(model, {f"{layer}.weight": mask})


def test_a_constant_goes_into_the_bias_of_the_layer_that_reads_it():
    model = chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.5, 2.0, -1.0, 0.0]))
        model[1].running_mean.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    empty(model, 0, 1)
    empty(model, 0, 2)
    x = torch.randn(5, 3).double()
    expected, bias, weight = model(x), model[3].bias.clone(), model[3].weight.clone()
    constant = F.relu(2 + (model[0].bias[1] - 1) / (1 + 1e-5) ** 0.5)
    assert constant > 0
    found = remove_dead(model, x)
    torch.testing.assert_close(model[3].bias, bias + weight[:, 1] * constant)
    assert found.constant["0"].tolist() == found.unread["0"].tolist() == [False, True, True, False]
    assert not get_masks(model)["3.weight"][:, 1:3].any()
    assert get_masks(model)["0.bias"].tolist() == [True, False, False, True]
    assert_same(model(x), expected)


CONSTANTS = {  # padding of the second convolution, the constant -> whether its bias can take it up
    "no padding": ({}, 1.5, True),
    "circular padding": ({"padding": 1, "padding_mode": "circular"}, 1.5, True),
    "zero padding": ({"padding": 1}, 1.5, False),
    "zero padding of zeros": ({"padding": 1}, -1.5, True),
    "in groups": ({"groups": 2}, 1.5, True),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_a_constant_is_none_beside_zero_padding(case):
    options, bias, gone = CONSTANTS[case]
    model = chain(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, **options))
    empty(model, 0, 1)
    with torch.no_grad():
        model[0].bias[1] = bias
    x = torch.randn(3, 2, 7, 7).double()
    expected = model(x)
    found = remove_dead(model, x)
    assert found.constant["0"].tolist() == [False, True, False, False]
    reads = model[2].weight[:3, 1].any()
    assert bool(reads) != gone
    assert found.unread["0"].tolist() == [False, gone, False, False]
    assert_same(model(x), expected)


def test_a_bias_that_is_pruned_or_absent_takes_nothing():
    def made(bias):
        model = chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=bias))
        empty(model, 0, 2)
        return model

    x = torch.randn(5, 3).double()
    model = made(True)
    apply_masks(model, {"2.bias": torch.tensor([True, False])})
    remove_dead(model, x)
    assert (model[2].weight != 0)[:, 2].tolist() == [False, True]
    model = made(False)
    expected = model(x)
    assert not remove_dead(model, x).biases
    assert model[2].bias is None
    assert model[2].weight[:, 2].all()
    remove_dead(model, x, new_biases=True)
    assert isinstance(model[2].bias, nn.Parameter)
    assert not model[2].weight[:, 2].any()
    assert_same(model(x), expected)


def test_a_scale_of_zero_cuts_a_unit_off():
    model = chain(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    with torch.no_grad():
        model[1].weight[3] = 0
        model[1].bias[3] = 1.0
    x = torch.randn(5, 2, 3, 3).double()
    expected = model(x)
    found = remove_dead(model, x)
    assert found.unread["0"].tolist() == [False, False, False, True]
    assert not get_masks(model)["4.weight"][:, -9:].any()
    assert_same(model(x), expected)


class Twice(nn.Module):
    """One weight in two places, one layer called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.out(self.shared(self.shared(x).relu()).relu())


def test_shared_weights_stay_where_any_of_their_places_needs_them():
    torch.manual_seed(1)
    model, x = Twice().double(), torch.randn(5, 4).double()
    apply_masks(model, {"shared.weight": torch.tensor([True, True, False, True])[:, None]})  # a constant, nothing takes it
    apply_masks(model, {"out.weight": torch.tensor([[True, False, False, True]])})
    expected = model(x)
    found = remove_dead(model, x)
    assert_same(model(x), expected)
    assert found.unread["shared"].tolist() == [False, False, False, False]  # unit 2 and 1 are read by the second call
    assert model.shared.weight[1].any()
    assert "a.weight" not in found.masks
    apply_masks(model, {"shared.weight": torch.tensor([[True, False, True, True]])})
    expected = model(x)
    found = remove_dead(model, x)
    assert_same(model(x), expected)
    assert found.unread["shared"].tolist() == [False, True, False, False]
    assert model.a.weight.all()  # row 1 is read in the first place
    assert get_masks(model)["b.bias"].tolist() == [True, False, True, True]


def test_layers_left_out_keep_their_connections():
    model = chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    apply_masks(model, {"4.weight": torch.tensor([[True, False, True, True]])})
    remove_dead(model, torch.randn(5, 3).double(), exclude=["2"])
    assert "2.weight" not in get_masks(model)
    assert model[2].bias.all()
    remove_dead(model, torch.randn(5, 3).double(), layers=["2"])
    assert get_masks(model)["2.weight"].any(1).tolist() == [True, False, True, True]


def test_layers_that_the_example_does_not_reach_stay():
    model = chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[1].spare = nn.Linear(4, 4)
    empty(model, 0, 2)
    found = find_dead(model, torch.randn(5, 3).double())
    assert found.masks.keys() == {"0.weight", "0.bias", "2.weight"}
    assert found.unread.keys() == {"0", "2"}


def test_batches_as_prune_takes_them():
    model = chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    empty(model, 0, 2)
    x = torch.randn(5, 3).double()
    expected = find_dead(model, x).masks
    assert "2.weight" in expected
    assert find_dead(nn.DataParallel(model), (x, torch.zeros(5))).masks.keys() == expected.keys()
    assert find_dead(model, {"input": x}).masks.keys() == expected.keys()
    assert find_dead(model, x[0], forward=lambda m, batch: m(batch)).masks.keys() == expected.keys()  # no batch dimension
    assert find_dead(model, [x], forward=lambda m, batch: m(batch[0])).masks.keys() == expected.keys()


def test_a_model_that_cannot_be_traced_stays_as_it_is():
    class ByValue(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    model = ByValue()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NotTraceable, match="ByValue cannot be traced"):
        remove_dead(model, torch.ones(2, 3))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)

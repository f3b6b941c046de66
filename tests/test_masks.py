"""Masks: exact zeros whatever an optimizer does, through state_dict, deepcopy, pickling and moves, and off in one call."""

import copy
import io

import pytest
import torch
from torch import nn

from nnrelief_kernels import apply_masks, fold_masks, get_masks, load_masks, save_masks
from nnrelief_kernels.masks import dense_state, load_dense


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))


@pytest.fixture
def masks():
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.rand(3, 2, 1, 1, generator=generator) < 0.5,
        "0.bias": torch.tensor([True, False, True]),
        "3.weight": torch.rand(5, 12, generator=generator) < 0.5,
    }


@pytest.fixture
def masked(masks):
    model = network()
    apply_masks(model, masks)
    return model


def pruned_values(model, masks):
    parameters = {name: getattr(model.get_submodule(name.split(".")[0]), name.split(".")[1]) for name in masks}
    return torch.cat([parameters[name][~masks[name].expand_as(parameters[name])] for name in masks])


OPTIMIZERS = {
    "momentum and weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_never_revives_what_is_pruned(masks, optimizer):
    model = network()
    step = OPTIMIZERS[optimizer](model.parameters())  # made before the masks: its momenta are of the dense network
    images = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(2))

    def train():
        before = model[3].weight.detach().clone()
        for _ in range(3):
            step.zero_grad()
            model(images).square().sum().backward()
            step.step()
        assert not torch.equal(model[3].weight, before)

    train()
    apply_masks(model, masks)
    train()
    values = pruned_values(model, masks)
    assert len(values) > 10
    assert (values == 0).all()


def test_masks_survive_deepcopy_state_dict_and_a_move(masked, masks):
    copied = copy.deepcopy(masked)
    assert all(torch.equal(get_masks(copied)[name], mask) for name, mask in masks.items())
    apply_masks(copied, {"0.bias": torch.tensor([False, False, False])})
    assert get_masks(masked)["0.bias"].tolist() == [True, False, True]  # the copy is its own
    moved = copy.deepcopy(masked).double().to("meta")
    assert moved[3].weight.is_meta
    assert get_masks(moved)["3.weight"].dtype == torch.bool

    file = io.BytesIO()
    torch.save(masked.state_dict(), file)
    file.seek(0)
    fresh = network()
    apply_masks(fresh, {name: torch.ones_like(mask) for name, mask in masks.items()})
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(get_masks(fresh)[name], mask) for name, mask in masks.items())
    assert (pruned_values(fresh, masks) == 0).all()


def test_what_is_done_to_a_copy_leaves_the_original_as_it_is(masked, masks):
    images = torch.randn(3, 2, 4, 4)
    output = masked(images)
    apply_masks(copied := copy.deepcopy(masked), {"3.bias": torch.zeros(5, dtype=torch.bool)})
    fold_masks(copied)
    assert torch.equal(masked(images), output)
    assert get_masks(masked).keys() == masks.keys()
    apply_masks(masked, {"3.bias": torch.zeros(5, dtype=torch.bool)})
    assert torch.equal(masked(images), copied(images))


def test_folding_leaves_a_plain_network_of_the_same_outputs(masked, masks):
    images = torch.randn(3, 2, 4, 4)
    output = masked(images)
    fold_masks(masked)
    assert torch.equal(masked(images), output)
    assert masked.state_dict().keys() == network().state_dict().keys()
    assert get_masks(masked) == {}
    assert (pruned_values(masked, masks) == 0).all()
    assert type(masked[3]) is nn.Linear


def test_masks_only_shrink(masked, masks):
    apply_masks(masked, {name: torch.ones_like(mask) for name, mask in masks.items()})
    assert all(torch.equal(get_masks(masked)[name], mask) for name, mask in masks.items())


def test_plain_states_go_in_and_out_of_a_masked_network(masked, masks):
    state = network().state_dict()
    assert dense_state(masked).keys() == state.keys()
    load_dense(masked, state)
    assert (pruned_values(masked, masks) == 0).all()
    kept = masks["3.weight"]
    assert torch.equal(masked[3].weight[kept], state["3.weight"][kept])
    with pytest.raises(ValueError, match=r"missing \['3\.bias'\]"):
        load_dense(masked, {key: value for key, value in state.items() if key != "3.bias"})
    with pytest.raises(ValueError, match=r"state\['0\.bias'\] must have shape \(3,\)"):
        load_dense(masked, {**state, "0.bias": torch.ones(2)})


def tied():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 7)})
    model["head"].weight = model["embed"].weight
    return model


def test_a_parameter_held_twice_has_one_mask_in_both_places():
    model, mask = tied(), torch.rand(7, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    apply_masks(model, {"head.weight": mask})
    for holder in (model["embed"], model["head"]):
        assert torch.equal(holder.weight != 0, mask)
    assert get_masks(model).keys() == {"embed.weight"}
    apply_masks(copied := copy.deepcopy(model), {"embed.weight": torch.ones(7, 1, dtype=torch.bool)})
    apply_masks(copied, {"head.weight": torch.zeros(7, 4, dtype=torch.bool)})
    assert not copied["embed"].weight.any()
    assert torch.equal(get_masks(model)["embed.weight"], mask)
    tokens = torch.tensor([0, 3, 6])
    for _ in range(3):
        optimizer.zero_grad()
        model["head"](model["body"](model["embed"](tokens))).square().sum().backward()
        optimizer.step()
    assert torch.equal(model["embed"].weight, model["head"].weight)
    assert not model["embed"].weight[~mask].any()
    fold_masks(model)
    assert model["embed"].weight is model["head"].weight
    assert not model["head"].weight[~mask].any()
    assert model.state_dict().keys() == tied().state_dict().keys()


def test_a_mask_over_another_parametrization():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    dense, mask = layer.weight.detach().clone(), torch.tensor([[True, False, True], [False, True, True]])
    apply_masks(layer, {"weight": mask})
    torch.testing.assert_close(layer.weight, dense * mask)
    fold_masks(layer)
    torch.testing.assert_close(layer.weight, dense * mask)


def test_masks_of_a_wrapped_model_bear_the_names_of_the_module_inside(masks):
    model = network()
    apply_masks(nn.DataParallel(model), masks)
    assert get_masks(nn.DataParallel(model)).keys() == get_masks(model).keys() == masks.keys()
    assert dense_state(nn.DataParallel(model)).keys() == network().state_dict().keys()


def test_masks_go_to_a_file_and_back(masked, tmp_path):
    save_masks(get_masks(masked), tmp_path / "masks.safetensors")
    found = load_masks(tmp_path / "masks.safetensors")
    assert all(torch.equal(found[name], mask) for name, mask in get_masks(masked).items())
    apply_masks(fresh := network(), found)
    assert all(torch.equal(get_masks(fresh)[name], mask) for name, mask in found.items())
    (tmp_path / "masks.safetensors").write_bytes(b"\x80\x04]\x94.")  # a pickle
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_masks(tmp_path / "masks.safetensors")


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"3.weight": torch.ones(5, 12)}, TypeError, "bool"),
        ({"3.weight": torch.ones(4, 12, dtype=torch.bool)}, ValueError, "broadcast"),
        ({"3.wieght": torch.ones(5, 12, dtype=torch.bool)}, ValueError, "3.wieght"),
        ({"9.weight": torch.ones(5, 12, dtype=torch.bool)}, ValueError, "9.weight"),
    ],
)
def test_wrong_masks_are_named_and_nothing_is_masked(masks, error, message):
    model = network()
    with pytest.raises(error, match=message):
        apply_masks(model, {"0.bias": torch.tensor([True, False, True]), **masks})
    assert get_masks(model) == {}

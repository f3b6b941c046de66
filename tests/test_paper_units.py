"""Units go by the share of what the next layer takes from them."""

import pytest
import torch
from torch import nn

from nnrelief_kernels import reference
from nnrelief_kernels.masks import apply_masks, get_masks
from nnrelief_kernels.paper.models import MODELS
from nnrelief_kernels.paper.units import drop_units

CONV1, CONV2, FC1, FC2 = "0", "2", "5", "7"


def chain():
    """Two convolutions and two linear layers, some of their connections masked; and a pruning set of two batches."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*convs, nn.Linear(5 * 4, 9), nn.ReLU(), nn.Linear(9, 3))
    for layer in (model[2], model[5]):
        layer.weight.data *= torch.rand(layer.weight.shape[1]).reshape(1, -1, *(1,) * (layer.weight.ndim - 2))
    apply_masks(model, {f"{FC1}.weight": torch.rand(9, 20) < 0.5, f"{CONV2}.weight": torch.rand(5, 6, 1, 1) < 0.7})
    return model, list(torch.rand(2, 4, 1, 6, 6))


def parts(model, batches, reader, units):
    """What each of the units that a layer reads carries of its signal, from the readable reference."""
    entering = []
    layer = model.get_submodule(reader)
    with layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])), torch.no_grad():
        for x in batches:
            model(x)
    score = reference.score_linear if isinstance(layer, nn.Linear) else reference.score_conv
    columns = score(layer.weight.detach(), torch.cat(entering), layer.bias.detach())[:, :-1].sum(0)
    return (columns / columns.sum()).reshape(units, -1).sum(1)


@pytest.mark.parametrize(("name", "reader", "units"), [(CONV1, CONV2, 6), (CONV2, FC1, 5), (FC1, FC2, 9)])
@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.95])
def test_units_outside_the_share_of_their_reader_go(name, reader, units, alpha):
    model, batches = chain()
    part = parts(model, batches, reader, units)
    stay = reference.keep_mask(part[None], alpha)[0]
    drop_units(model, batches, {name: alpha})
    read = model.get_submodule(reader).weight.detach().transpose(0, 1).reshape(units, -1)
    own = model.get_submodule(name).weight.detach().reshape(units, -1)
    assert not read[~stay].any()
    assert not own[~stay].any()
    assert read[stay].any(1).all()
    assert own[stay].any(1).all()


def test_units_that_stay_keep_all_that_they_had():
    model, batches = chain()
    before = {name: mask.clone() for name, mask in get_masks(model).items()}
    stay = reference.keep_mask(parts(model, batches, FC1, 5)[None], 0.8)[0]
    drop_units(model, batches, {CONV2: 0.8})
    after = get_masks(model)
    assert torch.equal(after[f"{FC1}.weight"], before[f"{FC1}.weight"] & stay.repeat_interleave(4))
    assert torch.equal(after[f"{CONV2}.weight"][stay], before[f"{CONV2}.weight"][stay])
    assert f"{FC2}.weight" not in after


@pytest.mark.parametrize(
    ("alphas", "message"),
    [({FC2: 0.9}, r"\['7'\]"), ({"fc": 0.9}, r"\['fc'\]"), ({CONV1: 0.0}, "alpha"), ({CONV1: 1.1}, "alpha")],
)
def test_alphas_name_layers_that_are_read(alphas, message):
    model, batches = chain()
    before = {name: mask.clone() for name, mask in get_masks(model).items()}
    with pytest.raises(ValueError, match=message):
        drop_units(model, batches, alphas)
    assert all(torch.equal(mask, before[name]) for name, mask in get_masks(model).items())


def test_networks_that_are_no_chain_are_refused():
    model = MODELS["resnet20"]((3, 8, 8), 4)
    with pytest.raises(ValueError, match="ResNet"):
        drop_units(model, [torch.rand(2, 3, 8, 8)], {"conv1": 0.9})
    grouped = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match="groups"):
        drop_units(grouped, [torch.rand(2, 2, 3, 3)], {"0": 0.9})

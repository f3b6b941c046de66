"""Smaller networks: the same outputs from fewer channels, whatever the structure; exported, and when code stands in the way."""

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnrelief_kernels import apply_masks, fold_masks, get_masks, shrink
from nnrelief_kernels.latency import latency
from nnrelief_kernels.masks import dense_state
from nnrelief_kernels.paper.models import LeNet300100
from tests.data import caffe_lenet5, load_caffe, mnist_test, needs_data
from tests.networks import NETWORKS, network, random_masks, samples
from tests.test_dead import ROUNDING, assert_same

pytest.importorskip("torch_pruning")


def masked(name, seed, keep):
    model = network(name, seed)
    apply_masks(model, random_masks(model, keep, seed))
    return model


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 10_000), st.sampled_from((0.2, 0.5, 0.9)))
def test_outputs_stay(name, seed, keep):
    model, x = masked(name, seed, keep), samples(name, 4, seed)
    expected, before = model(x), dense_state(model)
    found = shrink(model, x, seconds=0.001)
    assert_same(found.model(x), expected)
    assert found.error <= ROUNDING
    assert found.parameters[0] == sum(p.numel() for p in network(name, seed).parameters())
    assert found.parameters[1] == sum(p.numel() for p in found.model.parameters())
    assert found.parameters[1] <= found.parameters[0]
    assert found.flops[1] <= found.flops[0]
    assert min(found.seconds) > 0
    assert not get_masks(found.model)
    assert_same(model(x), expected, 0)
    torch.testing.assert_close(dense_state(model), before, rtol=0, atol=0)  # the model is as it was


# Layers that lose units, at least; some of each network's are tied to live ones by a sum or read a padded constant.
SMALLER = {
    "LeNet-5": ["conv1", "conv2", "fc1"],
    "VGG": ["features.0", "features.4", "features.7", "classifier.0"],
    "ResNet, option A": ["blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"],  # its padding is made for the others' channels
    "ResNet, option B": ["conv", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.shortcut.0", "blocks.2.conv1"],
    "MobileNetV2": ["stem.0", "blocks.0.expand.0", "blocks.0.depthwise.0", "blocks.0.project.0", "head.0"],
    "DenseNet": ["stem", "convs.0", "convs.1", "convs.2", "transition.2"],
    "transformer": ["up"],
    "torch's transformer": ["layer.linear1"],
    "1-d": ["conv3", "fc1"],
    "3-d": ["conv1", "conv2"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_known_to_be_dead_go(name):
    """The last of every layer's units has nothing that enters it and nothing that reads it, and neither has its BatchNorm."""
    model, x = network(name, 1), samples(name, 4, 1)
    named = dict(model.named_modules())
    with torch.no_grad():
        for key, layer in named.items():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                if key not in ("fc", "fc2", "classifier.3"):
                    layer.weight[-1] = 0
                    if layer.bias is not None:
                        layer.bias[-1] = 0
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for value in (layer.weight, layer.bias, layer.running_mean):
                    value[-1] = 0
                    value[:-1] += 0.3 * (value[:-1] == 0)
    if name == "DenseNet":  # where they are, what they read is many
        for norm in model.norms:
            for place in range(5, len(norm.weight), 4):
                for value in (norm.weight.data, norm.bias.data, norm.running_mean):
                    value[place] = 0
        for place in (5, 9, 13, 17):
            for value in (model.transition[0].weight.data, model.transition[0].bias.data, model.transition[0].running_mean):
                value[place] = 0
    expected = model(x)
    found = shrink(model, x, seconds=0.001)
    smaller = dict(found.model.named_modules())
    for key in SMALLER[name]:
        assert len(smaller[key].weight) < len(named[key].weight), key
    assert_same(found.model(x), expected)


@pytest.mark.parametrize("name", ["LeNet-5", "ResNet, option B", "MobileNetV2", "DenseNet", "transformer"])
def test_onnx_computes_the_same(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = masked(name, 2, 0.8).float(), samples(name, 4, 2).float()
    small = shrink(model, x, seconds=0.001).model
    torch.onnx.export(small, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_same(torch.from_numpy(output), model(x), 1e-5)


@needs_data
@pytest.mark.parametrize(("network", "name"), [(caffe_lenet5, "lenet5"), (LeNet300100, "lenet300100")])
def test_published_sparse_networks_on_real_images(network, name):
    model, images = load_caffe(network(), f"caffe_{name}_sparse"), mnist_test()[0][:1000]
    found = shrink(model, images, seconds=0.001)
    assert found.error <= 1e-5
    assert not found.left
    assert found.parameters[1] < 0.5 * found.parameters[0]
    assert torch.equal(found.model(images).argmax(1), model(images).argmax(1))


class FixedSize(nn.Module):
    """Its code holds the number of channels of one layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 6, 3), nn.Linear(6 * 9, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(self.fc1(self.conv(x).relu().view(-1, 54)).relu())


def test_what_the_code_does_not_bear_stays():
    torch.manual_seed(0)
    model, x = FixedSize(), torch.randn(4, 2, 5, 5)
    dead = torch.tensor([True] * 5 + [False])
    apply_masks(model, {"conv.weight": dead.reshape(6, 1, 1, 1), "conv.bias": dead})
    apply_masks(
        model, {"fc1.weight": torch.tensor([True] * 7 + [False])[:, None], "fc1.bias": torch.tensor([True] * 7 + [False])}
    )
    model.train()
    model.fc2.weight.requires_grad_(False)
    found = shrink(model, x, seconds=0.001)
    assert found.left == {"conv": 1}
    assert found.model.conv.weight.shape == (6, 2, 3, 3)
    assert found.model.fc2.weight.shape == (3, 7)
    assert found.model.training
    assert found.model.conv.weight.requires_grad
    assert not found.model.fc2.weight.requires_grad
    assert_same(found.model(x), model(x), 1e-5)


def test_a_layer_without_a_live_unit_keeps_one():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    apply_masks(model, {"0.weight": torch.zeros(4, 3, dtype=torch.bool)})
    found = shrink(model, x, seconds=0.001)
    assert found.model[0].weight.shape == (1, 3)
    assert found.left == {"0": 1}
    assert_same(found.model(x), model(x), 1e-5)


def test_outputs_that_differ_are_an_error():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 5)), torch.randn(50, 3)
    apply_masks(model, {"0.weight": (torch.arange(9) % 2 == 0)[:, None]})
    with pytest.raises(RuntimeError, match=r"outputs differ by .* tolerance is 0e"):
        shrink(model, x, tolerance=0.0, seconds=0.001)
    assert shrink(model, x, seconds=0.001).error < 1e-5


def test_dicts_tuples_and_calls_of_the_users_own():
    model, x = masked("LeNet-5", 0, 0.5), samples("LeNet-5", 4, 0)
    size = shrink(model, x, seconds=0.001).parameters
    assert shrink(model, (x, torch.zeros(4)), seconds=0.001).parameters == size
    assert shrink(nn.DataParallel(model), {"x": x}, seconds=0.001).parameters == size
    assert shrink(model, [x], forward=lambda m, batch: {"logits": m(batch[0])}, seconds=0.001).parameters == size


def test_without_torch_pruning_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install 'nnrelief-kernels\[shrink\]'"):
        shrink(nn.Linear(2, 2), torch.ones(1, 2))


def test_latency_is_of_one_pass():
    small, large = nn.Linear(2, 2), nn.Sequential(*(nn.Linear(1500, 1500) for _ in range(4)))
    fast, slow = latency(small, torch.ones(1, 2), seconds=0.01), latency(large, torch.ones(64, 1500), seconds=0.01)
    assert 0 < fast < slow < 60


def test_folding_a_copy_first_gives_the_same():
    model, x = masked("VGG", 4, 0.6), samples("VGG", 4, 4)
    folded = copy.deepcopy(model)
    fold_masks(folded)
    assert shrink(folded, x, seconds=0.001).parameters == shrink(model, x, seconds=0.001).parameters

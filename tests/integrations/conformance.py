"""What every adapter must do alike. A test class inherits `Conformance` and says how its tool is asked for masks."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from nnrelief_kernels import keep_mask, reference
from nnrelief_kernels.accumulate import conv_options

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Residual(nn.Module):
    """A stem and a block that joins it: what `stem` and `second` give is one group of channels."""

    def __init__(self, bias):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.norm0 = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 12, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm2(self.second(self.norm1(self.first(x)).relu())) + x).relu()
        return self.head(x.mean((2, 3)))


def flat():
    """Convolutions with stride and bias, then flatten -> linear: each channel is 16 inputs of the linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def grouped():
    """A grouped and a depthwise convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip


NETWORKS = {"flatten": flat, "grouped": grouped, "residual": lambda: Residual(False), "residual_bias": lambda: Residual(True)}


def network(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.add_(torch.randn_like(value) / 4)
    model.network = name
    return model.to(dtype)


def images(samples=12, dtype=torch.float32):
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1)).relu().to(dtype)


def oracle(model, x):
    """Scores of every layer by the float64 formulas, from the activations that `model` itself makes of `x`."""
    inputs = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
            stack.callback(hook.remove)
        model(x)
    return {
        name: reference.score_linear(layer.weight, inputs[name], layer.bias)
        if isinstance(layer, nn.Linear)
        else reference.score_conv(layer.weight, inputs[name], layer.bias, **conv_options(layer))
        for name, layer in layers.items()
    }


def spread(keep, weight):
    """A mask of connections, with or without a column for the bias, in the weight's shape."""
    keep = keep[:, : weight.shape[1]]
    return keep.reshape(*keep.shape, *(1,) * (weight.ndim - 2)).expand_as(weight)


class Conformance:
    """Inherit it, define `masks`, and where the tool does not mask single connections also `expected`."""

    def masks(self, model, batches, alpha):
        """Prune `model` by the tool; what it kept, by name."""
        raise NotImplementedError

    def expected(self, model, scores, alpha):
        """What it must have kept, from the oracle's scores: here the mask of every weight and bias, in its shape."""
        masks = {}
        for name, layer in ((name, model.get_submodule(name)) for name in scores):
            keep = keep_mask(scores[name], alpha)
            masks[f"{name}.weight"] = spread(keep, layer.weight)
            if layer.bias is not None:
                masks[f"{name}.bias"] = keep[:, -1]
        return masks

    def check(self, model, x, batches, alpha):
        expected = self.expected(model, oracle(model, x), alpha)
        found = self.masks(copy.deepcopy(model), batches, alpha)
        assert found.keys() >= {name for name in expected if not name.endswith(".bias")}
        different = [name for name in found if not torch.equal(found[name], expected[name])]
        assert different == []
        return found

    @pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_masks_are_those_of_keep_mask(self, name, alpha):
        found = self.check(network(name), images(), [images()], alpha)
        kept = torch.cat([mask.flatten() for mask in found.values()])
        assert kept.any()
        assert alpha == 1 or not kept.all()

    @pytest.mark.parametrize("size", [1, 5, 12])
    def test_the_batch_size_changes_nothing(self, size):
        self.check(network("residual_bias"), images(), images().split(size), 0.9)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_half_precision(self, name, dtype):
        self.check(network(name, dtype), images(dtype=dtype), [images(dtype=dtype)], 0.9)

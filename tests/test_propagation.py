"""Propagation: constants are the largest slopes, no change exceeds what is carried, and the rest is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from nnrelief_kernels.measure import trace
from nnrelief_kernels.propagation import CONSTANTS, Propagation

X = torch.cat([torch.linspace(-30, 30, 600_001, dtype=torch.float64), torch.linspace(-4, 4, 800_001, dtype=torch.float64)])


def function_of(kind):
    if isinstance(kind, type):
        return kind()
    call = (lambda x, *more: getattr(x, kind)(*more)) if isinstance(kind, str) else kind
    return (lambda x: call(x, -1, 2)) if kind in ("clamp", torch.clamp) else call


def largest_slope(function):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(function(x + 0).sum(), x)[0].abs().max().item()


@pytest.mark.parametrize("kind", CONSTANTS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_constants_are_the_largest_slopes_rounded_up(kind):
    slope = largest_slope(function_of(kind))
    assert CONSTANTS[kind] - 1.01e-4 <= slope <= CONSTANTS[kind] * (1 + 1e-15)


def test_the_approximate_gelu_is_no_steeper():
    assert largest_slope(nn.GELU(approximate="tanh")) <= CONSTANTS[nn.GELU]


class Net(nn.Module):
    """A convolution that is pruned, and what `tail` makes of its maps y and of the images x."""

    def __init__(self, tail):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.module = tail if isinstance(tail, nn.Module) else None
        self.tail = tail
        self.register_buffer("scale", torch.rand(4, 1, 1) - 0.5)
        self.register_buffer("places", torch.tensor([3, 0, 2]))

    def forward(self, x):
        y = self.conv(x)
        return self.module(y) if self.module is not None else self.tail(self, y, x)


def bounded(tail, lipschitz=None, seed=0):
    """The run with its value, and the value after the pruning."""
    torch.manual_seed(seed)
    net = Net(tail).double().eval()
    pruned = copy.deepcopy(net)
    with torch.no_grad():
        pruned.conv.weight *= torch.rand(4, 3, 1, 1) < 0.5
        pruned.conv.bias *= torch.tensor([1.0, 0.0, 1.0, 0.0])
        run = Propagation(fx.GraphModule(net, trace(net)), {net.conv: pruned.conv}, lipschitz or {})
        x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        return run, run.run(x), pruned(x)


def norm(channels=4):
    module = nn.BatchNorm2d(channels)
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


def residual(net, y, x):
    y = F.relu(y, inplace=True)
    z = y * 2
    z += y
    return F.pad(z[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)) - 3 + y.mean((2, 3), keepdim=True).sum(1, keepdim=True)


CARRIED = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1, padding_mode="reflect"),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5)),
    "batch norm": norm,
    "batch norm without scale": lambda: nn.BatchNorm2d(4, affine=False),
    "leaky": lambda: nn.LeakyReLU(-3.0),
    "steep elu": lambda: nn.ELU(4.0),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "pads": lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.ZeroPad2d(1), nn.CircularPad2d(1), nn.Dropout(), nn.Identity()),
    "shuffles": lambda: nn.Sequential(
        nn.PixelShuffle(2), nn.UpsamplingNearest2d(scale_factor=2), nn.Flatten(2), nn.MaxPool1d(2)
    ),
    "functional pools": lambda: lambda net, y, x: F.avg_pool2d(F.max_pool2d(y, 3, 1), 2) + F.adaptive_avg_pool2d(y, 1),
    "functional activations": lambda: lambda net, y, x: F.elu(F.leaky_relu(y, 2.0), alpha=3.0) + F.gelu(y) - torch.abs(y),
    "methods": lambda: lambda net, y, x: y.view(y.size(0), 2, -1).permute(0, 2, 1).reshape(y.shape[0], -1).clamp(-1, 1).relu(),
    "reductions": lambda: lambda net, y, x: torch.cat([y.amax((2, 3)), y.mean((2, 3)), torch.sum(y, (2, 3)), x[:, :, 0, 0]], 1),
    "parts": lambda: lambda net, y, x: torch.stack([y.chunk(2, 1)[0], x[:, :2]], 1) + torch.split(y, 2, 1)[1].unsqueeze(1),
    "chosen channels": lambda: lambda net, y, x: y[:, net.places],
    "sums": lambda: lambda net, y, x: y + y - x.mean(1, keepdim=True) + (1 - y),
    "products": lambda: lambda net, y, x: y * net.scale * -2.0 * x.mean(1, keepdim=True) / (0.1 + net.scale.abs()) / 3,
    "residual, in place": lambda: residual,
    "activation after in-place activation": lambda: lambda net, y, x: y + F.selu(y, inplace=True),
    "dropout": lambda: lambda net, y, x: F.dropout(y, 0.5, net.training),
}


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("seed", range(3))
def test_no_change_exceeds_what_is_carried(name, seed):
    run, before, after = bounded(CARRIED[name](), seed=seed)
    assert run.refusal == ""
    change = (before - after).abs()
    assert run.output_bound.shape == change.shape
    assert change.max() > 1e-3
    assert torch.all(change <= run.output_bound * (1 + 1e-12))
    assert not run.bounds  # what nothing reads any more is let go


REFUSED = {
    "softmax": (nn.Softmax(1), "Softmax"),
    "layer norm": (nn.LayerNorm(8), "LayerNorm"),
    "batch norm of the batch": (nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm2d"),
    "hard shrinkage": (nn.Hardshrink(), "Hardshrink"),
    "product of two signals": (lambda net, y, x: y * y.mean(), "mul"),
    "product in place": (lambda net, y, x: y.mul_(2), "mul_"),
    "one over a signal": (lambda net, y, x: 1 / y, "truediv"),
    "padding with a value": (lambda net, y, x: F.pad(y, (1, 1), value=3.0), "pad"),
    "dropout in evaluation": (lambda net, y, x: F.dropout(y), "dropout"),
    "scaled sum": (lambda net, y, x: torch.add(y, x.mean(), alpha=2), "add"),
    "places of maxima": (nn.MaxPool2d(2, return_indices=True), "MaxPool2d"),
    "two outputs": (lambda net, y, x: (y, y.mean()), "one tensor, got tuple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused_by_name_and_the_values_go_on(name):
    tail, message = REFUSED[name]
    run, value, _ = bounded(tail)
    assert message in run.refusal
    assert value is not None
    run.pruned.clear()  # nothing changes then
    run.run(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert ("one tensor" in run.refusal) == (name in ("two outputs", "places of maxima"))


def test_constants_of_further_activations_are_taken():
    run, before, after = bounded(nn.Tanhshrink(), {nn.Tanhshrink: 1.0})
    assert run.refusal == ""
    assert torch.all((before - after).abs() <= run.output_bound)
    run, before, after = bounded(lambda net, y, x: y.erf(), {"erf": 1.1284})
    assert run.refusal == ""
    assert torch.all((before - after).abs() <= run.output_bound)

"""Dependencies of single operators against what perturbing their inputs shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnrelief_kernels.liveness import liveness
from nnrelief_kernels.tracing import NotTraceable, trace

X = (2, 4, 5, 6)  # one sample is not enough for operators that mix samples
KERNEL = torch.rand(3, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
KERNEL[1, 2] = 0
KERNEL[2, :, 1:] = 0
MATRIX = KERNEL[:, :2].flatten(1)[:, :6]

OPERATORS = {
    "convolution": lambda x: F.conv2d(x, KERNEL, stride=2, padding=1, dilation=(1, 2)),
    "convolution, same": lambda x: F.conv2d(x, KERNEL, padding="same"),
    "grouped convolution": lambda x: F.conv2d(x, KERNEL[:2, :2], groups=2),
    "transposed convolution": lambda x: F.conv_transpose2d(x, KERNEL.movedim(0, 1), stride=2),
    "linear": lambda x: F.linear(x, MATRIX),
    "matmul": lambda x: x @ MATRIX.T,
    "a product with a constant": lambda x: x * MATRIX[2],
    "a product with integers": lambda x: x * torch.tensor([-1, 0, 2, 0, 1, -3]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * MATRIX[0], x * MATRIX[2]),
    "batch norm": lambda x: F.batch_norm(x, *torch.tensor([[0.0, 1, 0, 0], [1, 2, 1, 1], [1, 0, 2, 1], [1, 1, 0, 0]]).double()),
    "layer norm": lambda x: F.layer_norm(x, (6,), MATRIX[2] + 0),
    "group norm": lambda x: F.group_norm(x, 2),
    "softmax": lambda x: x.softmax(1),
    "average pooling": lambda x: F.avg_pool2d(x, 2, padding=1),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "mean": lambda x: x.mean((1, 3)),
    "sum": lambda x: x.sum(2, keepdim=True),
    "maximum": lambda x: x.amax((2, 3)) + x.amin(3, keepdim=True).flatten(2).amax(2),
    "cumulative sum": lambda x: x.cumsum(1),
    "concatenation": lambda x: torch.cat([x[:, 2:], F.elu(x)], 1),
    "split and shuffle": lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1, 2)[..., 1:-1:2],
    "padding": lambda x: F.pad(x, (1, 2, -1, 0, 0, 3)),
    "padding with a value": lambda x: F.pad(x, (1, 1), value=3.0),
    "reflection": lambda x: F.pad(x, (2, 1, 0, 1), mode="reflect"),
    "indexing": lambda x: x[:, [2, 2, 0]],
    "resizing": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear resizing": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "activations in place": lambda x: F.silu(F.hardswish(F.leaky_relu_(x + 0, 0.2))),
    "sums that broadcast": lambda x: x.mean((2, 3), keepdim=True) - x[:, :, :1],
    "a gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "a choice": lambda x: torch.where(x > 0, x, x.flip(1)),
    "permutation and view": lambda x: x.permute(0, 2, 3, 1).reshape(2, 30, 4).unflatten(1, (5, 6))[:, 2],
}
COARSE = {"group norm", "softmax", "cumulative sum", "attention", "a choice", "maximum"}
"""More may be taken to depend on more."""


class Operator(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        return self.operator(x)


def depends(operator, x, at, noise):
    """Which outputs change where `at` is perturbed."""
    before = operator(x)
    return torch.stack([operator(x + scale * noise * at) != before for scale in (1.0, -0.7)]).any(0)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_operator(name):
    operator = OPERATORS[name]
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, *X, dtype=torch.float64, generator=generator)
    still = torch.rand(X, generator=generator) < 0.4

    def input_stands_still_here(values):
        return operator(x * still.double() + values * (~still).double())

    found = liveness(trace(Operator(input_stands_still_here), x), x)
    output = next(reversed([node for node in found.value if node.op == "call_function"]))
    changes = depends(operator, x, ~still, noise)
    varies = found.varies[output]
    assert varies.shape == changes.shape
    assert not (changes & ~varies).any()
    if name not in COARSE:
        assert torch.equal(varies, changes)
    torch.testing.assert_close(found.value[output], operator(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_one_operator_backwards(name):
    operator = OPERATORS[name]
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, *X, dtype=torch.float64, generator=generator)
    result = operator(x)
    read = torch.rand(result.shape, generator=generator) < 0.1

    def some_outputs_are_not_read(values):
        return operator(values) * read.double()

    traced = trace(Operator(some_outputs_are_not_read), x)
    needed = liveness(traced, x).needed[traced.inputs[0]]
    expected = torch.zeros_like(needed)
    for place in range(x.numel()):
        at = torch.zeros(x.numel(), dtype=torch.float64)
        at[place] = 1
        expected.view(-1)[place] = (depends(operator, x, at.view(X), noise) & read).any()
    assert not (expected & ~needed).any()
    if name not in COARSE:
        assert torch.equal(needed, expected)


def test_what_is_drawn_at_random_is_no_constant():
    def noisy(x):
        return F.dropout(torch.ones(8), training=True) + torch.rand(8) + 0 * x.sum()

    x = torch.zeros(3)
    found = liveness(trace(Operator(noisy), x), x)
    output = next(reversed([node for node in found.value if node.op == "call_function"]))
    assert found.varies[output].all()


def test_a_model_that_cannot_be_followed_says_why():
    def by_value(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(NotTraceable, match=r"Operator cannot be traced: .*[Dd]ata.dependent"):
        trace(Operator(by_value), torch.ones(3))

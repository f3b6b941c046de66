"""The custom ops as torch.library and torch.compile see them."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from nnrelief_kernels import ops, score_conv, score_linear
from tests.backends import every_backend


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_conv(backend, dtype):
    weight, acts = torch.randn(6, 2, 3, 3).to(dtype), torch.randn(5, 4, 9, 9).to(dtype)
    torch.library.opcheck(ops.conv_op, (weight, acts, [2, 2], [1, 1, 0, 1], [1, 1], 2, "zeros", "paper", backend))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_linear(backend, dtype):
    torch.library.opcheck(ops.linear_op, (torch.randn(6, 4).to(dtype), torch.randn(5, 3, 4).to(dtype), backend))


@every_backend
def test_compiles_whole_with_changing_batch_sizes(backend):
    def scores(weight, acts, bias):
        maps = acts.relu()
        return score_conv(weight, maps, bias, padding="same", backend=backend), score_linear(
            weight[:, :, 0, 0], maps.flatten(2).mT, backend=backend
        )

    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=True)
    for samples in (2, 5, 9):
        acts = torch.randn(samples, 4, 8, 8)
        for actual, expected in zip(compiled(weight, acts, bias), scores(weight, acts, bias)):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("place", [torch.device("meta"), FakeTensorMode()])
def test_results_without_values_have_the_real_ones_shape_and_dtype(place):
    with place:
        weight, acts = torch.empty(6, 2, 3, dtype=torch.float16), torch.empty(5, 4, 9, dtype=torch.float16)
        conv = score_conv(weight, acts, torch.empty(6, dtype=torch.float16), groups=2)
        linear = score_linear(weight[:, :, 0].double(), acts[:, :2, 0])
    assert (conv.shape, conv.dtype) == ((6, 3), torch.float32)
    assert (linear.shape, linear.dtype) == ((6, 2), torch.float64)

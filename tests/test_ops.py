"""The custom ops as torch.library and torch.compile see them."""

import pytest
import torch

from nnrelief_kernels import ops, score_conv, score_linear
from tests.backends import every_backend


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_conv(backend, dtype):
    weight, acts = torch.randn(6, 2, 3, 3).to(dtype), torch.randn(5, 4, 9, 9).to(dtype)
    torch.library.opcheck(ops.conv_signal, (weight, acts, [2, 2], [1, 1, 0, 1], [1, 1], 2, "zeros", "paper", backend))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_linear(backend, dtype):
    torch.library.opcheck(ops.linear_signal, (torch.randn(6, 4).to(dtype), torch.randn(5, 3, 4).to(dtype), backend))


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


def test_fake_tensors_have_the_real_results_shape_and_dtype():
    meta = ops.conv_signal(
        torch.empty(6, 2, 3, device="meta", dtype=torch.float16), torch.empty(5, 4, 9, device="meta", dtype=torch.float16),
        [1], [0, 0], [1], 2, "zeros", "paper", "auto",
    )  # fmt: skip
    assert meta.shape == (6, 2)
    assert meta.dtype == torch.float32

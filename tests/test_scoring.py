"""Every backend against the oracle, over the whole contract: values, layouts, dtypes, settings of the caller, wrong input."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from nnrelief_kernels import explain, reference, score_conv, score_linear
from tests.backends import every_backend
from tests.strategies import conv_calls, linear_calls

thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_close(actual, expected):
    """Relative 1e-5 per element, float32 accumulation's bound; scores below float32's normal range are its subnormals."""
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=torch.finfo(torch.float32).tiny)


@every_backend
@thorough
@given(call=conv_calls())
def test_any_convolution(backend, call):
    weight, acts, bias, options = call
    actual = score_conv(weight, acts, bias, **options, backend=backend)
    expected = reference.score_conv(weight, acts, bias, **options)
    assert actual.dtype == (torch.float64 if torch.float64 in (weight.dtype, acts.dtype) else torch.float32)
    assert_close(actual, expected)


@every_backend
@thorough
@given(call=linear_calls())
def test_any_linear(backend, call):
    weight, acts, bias, options = call
    assert_close(
        score_linear(weight, acts, bias, **options, backend=backend), reference.score_linear(weight, acts, bias, **options)
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
def test_the_maps_are_those_of_torch_nn(kind, padding, padding_mode):
    layer = kind(1, 1, 4, padding=padding, dilation=1 if padding == 2 else 2, padding_mode=padding_mode, bias=False).double()
    dims = layer.weight.ndim - 2
    acts = torch.rand(2, 1, *(9, 8, 7)[:dims], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.abs_()
        expected = torch.linalg.vector_norm(layer(acts).flatten(1), dim=1).sum()
    options = {"padding": padding, "dilation": layer.dilation, "padding_mode": padding_mode, "normalize": False}
    torch.testing.assert_close(score_conv(layer.weight, acts, **options).squeeze(), expected)
    torch.testing.assert_close(reference.score_conv(layer.weight, acts, **options).squeeze(), expected)


@every_backend
def test_rows_sum_to_one_and_a_silent_filter_is_zero(backend):
    torch.manual_seed(0)
    weight, acts, bias = torch.randn(6, 4, 3, 3), torch.randn(9, 4, 8, 8), torch.randn(6)
    weight[2], bias[2] = 0.0, 0.0
    scores = score_conv(weight, acts, bias, padding=1, backend=backend)
    torch.testing.assert_close(scores.sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))
    assert scores[2].tolist() == [0.0] * 5
    linear = score_linear(weight.flatten(1), torch.randn(5, 36), bias, backend=backend)
    assert linear[2].tolist() == [0.0] * 37


@every_backend
def test_numerators_add_over_batches(backend):
    torch.manual_seed(1)
    weight, acts, bias = torch.randn(6, 4, 3, 3), torch.randn(37, 4, 8, 8), torch.randn(6)
    for variant in ("paper", "l1"):
        options = {"padding": 1, "variant": variant, "normalize": False, "backend": backend}
        parts = sum(score_conv(weight, part, bias, **options) for part in acts.split(10))
        torch.testing.assert_close(parts, score_conv(weight, acts, bias, **options), rtol=1e-6, atol=0)


@every_backend
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_show_where_they_are(backend, value):
    acts = torch.ones(3, 2, 6, 6)
    acts[1, 0, 2, 2] = value
    for variant in ("paper", "norm_of_mean", "l1"):
        sums = score_conv(torch.ones(4, 2, 3, 3), acts, variant=variant, normalize=False, backend=backend)
        assert not sums[:, 0].isfinite().any()
        assert sums[:, 1].isfinite().all()
        assert score_conv(torch.ones(4, 2, 3, 3), acts, variant=variant, backend=backend)[:, 0].isnan().all()
    rows = torch.tensor([[1.0, value], [1.0, 1.0]])
    sums = score_linear(torch.ones(3, 2), rows, normalize=False, backend=backend)
    assert sums[:, 0].tolist() == [2.0] * 3
    assert not sums[:, 1].isfinite().any()


@every_backend
def test_a_million_samples_lose_nothing(backend):
    torch.manual_seed(2)
    one, weight = torch.rand(1, 1, 2, 2), torch.randn(3, 1, 3, 3)
    sums = score_conv(weight, one.expand(1_000_000, -1, -1, -1), padding=1, normalize=False, backend=backend)
    assert_close(sums, 1_000_000 * reference.score_conv(weight, one, padding=1, normalize=False))
    row = torch.rand(1, 5)
    assert_close(
        score_linear(torch.ones(2, 5), row.expand(1_000_000, 5), normalize=False, backend=backend),
        1_000_000 * row.double().expand(2, 5),
    )


@every_backend
@pytest.mark.parametrize("variant", ["paper", "norm_of_mean", "l1"])
@pytest.mark.parametrize(
    ("weight_shape", "acts_shape", "options"),
    [
        ((2, 2, 7, 7), (9, 2, 160, 170), {"stride": 2, "padding": 3}),  # several blocks of samples and tiles of a map
        ((70, 2, 3, 3), (700, 2, 9, 9), {"padding": 1}),
        ((3, 300, 3, 3), (40, 300, 12, 12), {}),  # several blocks of channels
        ((4, 1, 1, 1500), (3, 1, 1, 4000), {"stride": 7}),  # a Gram matrix that no block holds
    ],
)
def test_calls_too_large_for_one_block(backend, weight_shape, acts_shape, options, variant):
    torch.manual_seed(5)
    weight, acts = torch.randn(weight_shape) * 3, torch.randn(acts_shape).relu_()
    scores = score_conv(weight, acts, **options, variant=variant, normalize=False, backend=backend)
    assert_close(scores, reference.score_conv(weight, acts, **options, variant=variant, normalize=False))


@every_backend
def test_the_callers_precision_settings_do_not_matter(backend):
    torch.manual_seed(3)
    weight, acts = torch.randn(16, 8, 3, 3), torch.randn(20, 8, 12, 12)
    plain = score_conv(weight, acts, padding=1, backend=backend)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(score_conv(weight, acts, padding=1, backend=backend), plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@every_backend
def test_two_runs_give_the_same_bits_and_arguments_are_left_alone(backend):
    torch.manual_seed(4)
    weight, acts = torch.randn(9, 5, 3, 3), torch.randn(40, 5, 14, 14)
    copies = weight.clone(), acts.clone()
    scores = score_conv(weight.requires_grad_(), acts.requires_grad_(), stride=2, backend=backend)
    assert torch.equal(scores, score_conv(weight, acts, stride=2, backend=backend))
    assert not scores.requires_grad
    assert torch.equal(weight, copies[0])
    assert torch.equal(acts, copies[1])


@every_backend
def test_explain_names_the_path_and_the_reasons(backend):
    weight, acts = torch.ones(4, 2, 3, 3), torch.ones(3, 2, 8, 8)
    found = explain(weight, acts, backend=backend)
    assert found.backend == backend
    assert found.path in str(found)
    assert all(f"backend={backend!r} was asked for" in why or why for why in found.others.values())
    assert explain(torch.ones(4, 2), torch.ones(3, 2), backend=backend).backend == backend


CONV_MISTAKES = {
    "weight must be a tensor": {"weight": [[1.0]]},
    "acts must be a dense tensor of float16, bfloat16, float32, float64, got torch.int64": {
        "acts": torch.ones(1, 2, 8, 8).long()
    },
    "weight must be a dense tensor": {"weight": torch.ones(4, 2, 3, 3).to_sparse()},
    r"weight must be \(C_out, C_in/groups, \*kernel\)": {"weight": torch.ones(4, 2)},
    "weight must not be empty": {"weight": torch.ones(0, 2, 3, 3)},
    r"acts must be \(N, C_in, \*spatial\) with 2": {"acts": torch.ones(2, 8, 8)},
    "acts must have 2 channels": {"acts": torch.ones(1, 3, 8, 8)},
    "acts must hold at least one sample": {"acts": torch.ones(0, 2, 8, 8)},
    "the output map would be empty": {"acts": torch.ones(1, 2, 2, 8)},
    r"bias must have shape \(4,\)": {"bias": torch.ones(3)},
    "stride must be at least 1": {"stride": 0},
    "stride must be an int or 2 ints": {"stride": (1, 1, 1)},
    "padding must be at least 0": {"padding": -1},
    "padding must be 'same', 'valid'": {"padding": "full"},
    "padding='same' needs stride 1": {"padding": "same", "stride": 2},
    "dilation must be an int": {"dilation": 1.5},
    "groups must be an int": {"groups": 2.0},
    "groups must divide the 4 filters": {"groups": 3},
    "padding_mode must be one of": {"padding_mode": "mirror"},
    "is wider than a map": {"padding": 9, "padding_mode": "reflect"},
    "variant must be one of": {"variant": "l2"},
    "backend must be 'auto' or one of": {"backend": "numpy"},
}


@pytest.mark.parametrize("message", CONV_MISTAKES)
def test_wrong_input_is_named(message):
    call = {"weight": torch.ones(4, 2, 3, 3), "acts": torch.ones(1, 2, 8, 8)} | CONV_MISTAKES[message]
    with pytest.raises((TypeError, ValueError), match=message):
        score_conv(**call)


LINEAR_MISTAKES = {
    r"weight must be \(out, in\)": {"weight": torch.ones(3)},
    r"acts must be \(..., 2\)": {"acts": torch.ones(4, 3)},
    "acts must hold at least one sample": {"acts": torch.ones(0, 2)},
    "bias must have shape": {"bias": torch.ones(2)},
    "acts is on meta, weight on cpu": {"acts": torch.ones(4, 2, device="meta")},
    "acts must be a tensor, got list": {"acts": [[1.0, 2.0]]},
}


@pytest.mark.parametrize("message", LINEAR_MISTAKES)
def test_wrong_linear_input_is_named(message):
    call = {"weight": torch.ones(3, 2), "acts": torch.ones(4, 2)} | LINEAR_MISTAKES[message]
    with pytest.raises((TypeError, ValueError), match=message):
        score_linear(**call)

"""Every CUDA kernel against the oracle, on the host: see tests/emulator."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from nnrelief_kernels import explain, reference, score_conv, score_linear
from nnrelief_kernels.backends import cuda, get
from nnrelief_kernels.geometry import conv_geometry
from tests.emulated import missing, operators
from tests.gpu import test_kernels as on_a_device
from tests.strategies import conv_calls, linear_calls, values

pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))

CASES = {  # (path, weight shape, acts shape, options)
    "norms": ("norms", (5, 7, 1, 1), (19, 7, 9, 6), {}),
    "norms, strided": ("norms", (5, 7, 1, 1), (3, 7, 9, 6), {"stride": 2}),
    "norms, many channels": ("norms", (5, 40, 1, 1), (7, 40, 3, 3), {}),
    "lags": ("lags", (20, 3, 3, 3), (34, 3, 6, 14), {"padding": 1}),
    "lags, whole loads": ("lags", (3, 2, 3, 3), (3, 2, 9, 16), {"padding": 1}),
    "lags, unpadded": ("lags", (20, 2, 3, 3), (5, 2, 9, 8), {}),
    "lags, wide padding": ("lags", (20, 3, 3, 3), (5, 3, 2, 3), {"padding": 2}),
    "lags, wide map": ("lags", (3, 1, 3, 3), (3, 1, 4, 150), {"padding": 1}),
    "lags, tall map": ("lags", (3, 1, 3, 3), (3, 1, 270, 3), {"padding": 1}),
    "lags, one column more": ("lags", (3, 1, 3, 3), (3, 1, 4, 35), {"padding": 1}),
    "lags, whole tiles": ("lags", (3, 2, 3, 3), (3, 2, 9, 56), {"padding": 1}),
    "lags, strided": ("lags", (5, 3, 3, 3), (34, 3, 14, 19), {"stride": 2, "padding": 1}),
    "lags, strided, whole tiles": ("lags", (5, 2, 3, 3), (3, 2, 7, 64), {"stride": 2, "padding": 1}),
    "lags, strided, unpadded": ("lags", (20, 2, 3, 3), (5, 2, 10, 13), {"stride": 2}),
    "lags, strided, wide padding": ("lags", (5, 2, 3, 3), (5, 2, 2, 6), {"stride": 2, "padding": 2}),
    "lags, strided, tall": ("lags", (3, 1, 3, 3), (2, 1, 262, 10), {"stride": 2, "padding": 1}),
    "lags, many filters": ("lags", (600, 1, 3, 3), (3, 1, 9, 9), {"stride": 2}),
    "lags, depthwise": ("lags", (8, 1, 3, 3), (5, 4, 9, 7), {"padding": 1, "groups": 4}),
    "gram": ("gram", (6, 2, 3, 3), (18, 2, 17, 15), {"dilation": 2, "padding": 1}),
    "gram, 3x3 columns": ("gram", (20, 2, 3, 3), (5, 2, 40, 41), {"stride": (1, 2), "padding": 1, "padding_mode": "reflect"}),
    "gram, 3x3 strided": ("gram", (5, 3, 3, 3), (34, 3, 20, 19), {"stride": (4, 2), "dilation": 2, "padding": 1}),
    "gram, 3x3 tall": ("gram", (5, 1, 3, 3), (2, 1, 1200, 4), {"stride": (2, 1)}),
    "gram, many filters": ("gram", (600, 1, 3, 3), (3, 1, 9, 9), {"stride": 3, "padding": 1}),
    "gram, tiles": ("gram", (6, 1, 3, 2), (3, 1, 70, 65), {}),
    "gram, 5x5": ("gram", (20, 2, 5, 5), (3, 2, 9, 13), {"padding": 2}),
    "gram, 5x5 all around": ("gram", (3, 1, 5, 5), (2, 1, 60, 60), {"padding": 59, "padding_mode": "circular"}),
    "gram, 5x5 in runs": ("gram", (20, 2, 5, 5), (3, 2, 9, 43), {"stride": 2, "padding": 2}),
    "gram, 7x7 in runs": ("gram", (3, 1, 7, 7), (2, 1, 18, 42), {"padding": 3, "padding_mode": "reflect"}),
    "gram, 7x7 of many": ("gram", (3, 1, 7, 7), (2, 1, 20, 150), {"stride": (3, 2), "padding": 3}),
    "gram, 7x7": ("gram", (6, 2, 7, 7), (5, 2, 18, 18), {"stride": 2, "padding": 3}),
    "gram, 8x8": ("gram", (130, 1, 8, 8), (3, 1, 19, 40), {"padding": 4}),
    "gram, 9 taps": ("gram", (260, 1, 9), (33, 1, 77), {}),
    "gram, 17 taps": ("gram", (260, 1, 17), (33, 1, 77), {}),
    "gram, 1-d": ("gram", (6, 2, 4), (5, 2, 19), {"padding": "same", "padding_mode": "circular"}),
    "gram, two filters of a thread": ("gram", (2640, 1, 1, 2), (20, 132, 3, 4), {"groups": 132}),
    "gram, four filters of a thread": ("gram", (5280, 1, 1, 2), (5, 264, 3, 4), {"groups": 264}),
    "gram, 3-d": ("gram", (6, 2, 2, 3, 2), (5, 2, 4, 5, 6), {"padding": 1}),
    "direct, many taps": ("direct", (2, 1, 9, 9), (2, 1, 12, 12), {}),
    "direct, float64": ("direct", (6, 2, 3, 3), (3, 2, 7, 5), {"padding": 1, "padding_mode": "reflect"}),
    "direct, mean": ("direct", (6, 2, 3, 3), (18, 2, 7, 5), {"variant": "norm_of_mean", "stride": 2}),
    "direct, l1": ("direct", (6, 2, 3, 3), (18, 2, 7, 5), {"variant": "l1", "stride": 2}),
}
each_case = pytest.mark.parametrize("case", CASES)
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """backend="cuda" serves CPU tensors; what it allocates starts as NaN."""
    ops = operators()
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(cuda, "_refuses_device", lambda acts: None)
    monkeypatch.setattr(cuda.compiled, "operators", lambda: ops)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield ops
    ops.reverse_threads(False)
    torch.use_deterministic_algorithms(False)


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


def call(case, seed=0):
    path, weight_shape, acts_shape, options = CASES[case]
    torch.manual_seed(seed)
    dtype = torch.float64 if case == "direct, float64" else torch.float32
    return path, torch.randn(weight_shape, dtype=dtype), torch.randn(acts_shape, dtype=dtype).relu_(), options


def check(weight, acts, bias=None, **options):
    actual = score_conv(weight, acts, bias, **options, backend="cuda")
    assert_close(actual, reference.score_conv(weight, acts, bias, **options))
    return actual


@some
@given(call=conv_calls())
def test_any_convolution(call):
    weight, acts, bias, options = call
    before = weight.clone(), acts.clone()
    check(weight, acts, bias, **options)
    assert torch.equal(weight, before[0])
    assert torch.equal(acts, before[1])


@some
@given(call=linear_calls())
def test_any_linear(call):
    weight, acts, bias, options = call
    expected = reference.score_linear(weight, acts, bias, **options)
    assert_close(score_linear(weight, acts, bias, **options, backend="cuda"), expected)


@each_case
def test_each_path_and_layout(case):
    path, weight, acts, options = call(case)
    assert explain(weight, acts, **options, backend="cuda").path == path
    first = check(weight, acts, **options)
    check(weight, acts.movedim(1, -1).contiguous().movedim(-1, 1), **options)
    check(weight, torch.nn.functional.pad(acts, (1, 2), value=math.nan)[..., 1:-2], **options)
    assert torch.equal(first, score_conv(weight, acts, **options, backend="cuda"))


@pytest.mark.parametrize("case", on_a_device.SMALL)
def test_the_cases_for_a_device_take_the_paths_that_they_name(case):
    weight_shape, acts_shape, options = on_a_device.SMALL[case]
    dtype = torch.float64 if case == "float64 maps" else torch.float32
    found = explain(torch.empty(weight_shape, dtype=dtype), torch.empty(acts_shape, dtype=dtype), **options, backend="cuda")
    assert found.path == on_a_device.CUDA_PATHS.get(case.split(",")[0], case.split(",")[0])


@each_case
def test_the_order_of_threads_does_not_matter(case, emulated):
    _, weight, acts, options = call(case)
    forwards = score_conv(weight, acts, **options, backend="cuda")
    emulated.reverse_threads(True)
    assert torch.equal(score_conv(weight, acts, **options, backend="cuda"), forwards)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_case
def test_half_precision(case, dtype):
    _, weight, acts, options = call(case)
    check(weight.to(dtype), acts.to(dtype), **options)


@pytest.mark.parametrize("acts_scale", [1e-20, 1e20])
@pytest.mark.parametrize("weight_scale", [1e-20, 1e10])
@pytest.mark.parametrize("case", ["norms", "lags", "gram", "gram, 3-d", "direct, float64", "direct, mean"])
def test_magnitudes(case, acts_scale, weight_scale):
    _, weight, acts, options = call(case, 1)
    acts[1] *= 1e-12  # one sample far below the others
    check(weight * weight_scale, acts * acts_scale, **options)


@pytest.mark.parametrize("value", [1e-25, 1e25])
@each_case
def test_one_pixel_out_of_range(case, value):
    _, weight, acts, options = call(case, 5)
    weight, acts = weight.abs() + 0.1, torch.rand_like(acts) * value**0.5
    acts[(1, 0) + (1,) * (acts.ndim - 2)] = value
    check(weight, acts, **options, normalize=False)


def test_float64_has_its_own_range():
    weight, acts = torch.rand(3, 2, 3, 3).double() + 0.1, torch.rand(3, 2, 5, 5).double()
    expected = reference.score_conv(weight, acts, normalize=False)
    for scale in (1e-150, 1e150):
        assert_close(score_conv(weight * scale, acts * scale, normalize=False, backend="cuda") / scale / scale, expected)


def test_small_values_that_alone_meet_a_tap_are_not_lost():
    for shape in ((1, 2), (3, 3)):
        weight = torch.full((2, 2, *shape), 1e-25)
        weight[:, :, 0, 0] = 1.0
        acts = torch.zeros(3, 2, 3, 5)
        acts[..., 0, 0] = 1.0  # all but the kernel's small elements meet its zeros
        acts[2, 1] = 1e-25
        check(weight, acts, padding=(shape[0] // 2, 1), normalize=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_case
def test_nan_and_inf_show_where_they_are(case, value):
    _, weight, acts, options = call(case)
    weight, acts = torch.ones_like(weight), torch.ones_like(acts)
    acts[(1, 0) + (1,) * (acts.ndim - 2)] = value
    options = {**options, "normalize": False}
    sums = score_conv(weight, acts, **options, backend="cuda")
    assert torch.equal(sums.isfinite(), reference.score_conv(weight, acts, **options).isfinite())
    weight.view(-1)[0] = value
    assert not score_conv(weight, torch.ones_like(acts), **options, backend="cuda")[0, 0].isfinite()


def test_parts_of_many_samples_add_up():
    weight, acts = torch.randn(5, 2, 3, 3), values((150, 2, 3, 4), 0, torch.bfloat16)
    for options in ({"padding": 1}, {"stride": 2}, {"variant": "norm_of_mean"}):
        check(weight, acts, **options)


def test_maps_beyond_its_indices_are_refused():
    weight, acts = torch.empty(1, 1, 3, 3, device="meta"), torch.empty(1, 1, 1 << 16, 1 << 15, device="meta")
    geometry = conv_geometry(tuple(acts.shape[2:]), (3, 3))
    assert "2^31 pixels" in get("cuda").refuses_conv(weight, acts, geometry, "paper")

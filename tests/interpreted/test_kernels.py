"""The Triton kernels in the interpreter, on CPU tensors: tests/test_triton_interpreter.py runs this in its own process."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from nnrelief_kernels import explain, reference, score_conv, score_linear
from tests.strategies import conv_calls, linear_calls, values

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 (tests/test_triton_interpreter.py starts it)", allow_module_level=True)

from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from nnrelief_kernels.backends.triton import plan


def splat(builder, block, scalar):
    """In place of the interpreter's own, which makes int32 of a bool; Triton 3.9's takes no such block as a mask."""
    return TensorHandle(np.full(block.shape, scalar.data, dtype=scalar.data.dtype), scalar.dtype.scalar)


InterpreterBuilder.create_splat = splat

# (weight shape, acts shape, options) that take each path
PATHS = {
    "norms": ((5, 7, 1, 1), (19, 7, 9, 6), {}),
    "norms, strided": ((5, 7, 1, 1), (3, 7, 9, 6), {"stride": 2, "padding": 1}),
    "lags": ((9, 3, 3, 3), (18, 3, 5, 6), {"padding": 1}),
    "lags, unpadded": ((3, 2, 3, 2), (3, 2, 6, 7), {}),
    "lags, in tiles": ((3, 1, 3, 3), (3, 1, 4, 35), {"padding": (0, 1)}),
    "lags, in full tiles": ((3, 1, 2, 3), (3, 1, 4, 64), {"padding": (1, 0)}),
    "lags, strided": ((3, 2, 3, 3), (17, 2, 7, 6), {"stride": 2, "padding": 1}),
    "lags, strided in tiles": ((3, 1, 3, 3), (3, 1, 5, 46), {"stride": (1, 2), "padding": 1}),
    "gram": ((6, 2, 3, 3), (17, 2, 7, 6), {"stride": 3, "padding": 1}),
    "direct": ((6, 2, 4, 4), (3, 2, 5, 6), {"padding": 2}),
    "direct, in tiles": ((1, 2, 3, 5), (2, 2, 4, 14), {}),
    "direct, strided": ((2, 1, 7, 2), (35, 1, 6, 5), {"stride": 2, "padding": (3, 1)}),
    "direct, strided in tiles": ((1, 2, 4, 3), (2, 2, 3, 18), {"stride": (1, 2), "padding": (3, 2)}),
    "matrix": ((11, 2, 5, 5), (4, 2, 8, 9), {"padding": 4, "dilation": 2}),
    "mean map": ((6, 2, 3, 3), (18, 2, 7, 5), {"variant": "l1", "stride": 2}),
    "float64 maps": ((6, 2, 3, 3), (3, 2, 7, 5), {"padding": 1, "padding_mode": "reflect"}),
}
each_path = pytest.mark.parametrize("path", PATHS)


def call(path, seed=0):
    weight_shape, acts_shape, options = PATHS[path]
    torch.manual_seed(seed)
    dtype = torch.float64 if path == "float64 maps" else torch.float32
    return torch.randn(weight_shape, dtype=dtype), torch.randn(acts_shape, dtype=dtype).relu_(), options


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=torch.finfo(torch.float32).tiny)


def check(weight, acts, bias=None, **options):
    actual = score_conv(weight, acts, bias, **options, backend="triton")
    assert_close(actual, reference.score_conv(weight, acts, bias, **options))
    return actual


@pytest.fixture(autouse=True)
def guarded_launches(monkeypatch):
    """Buffers start as NaN, lie between bands of bytes that no kernel may change, and inputs stay as they are."""
    band, bands, plain = 4096, [], torch.Tensor.new_empty

    def new_empty(tensor, size, dtype=None, **others):
        if others:  # the interpreter's own
            return plain(tensor, size, dtype=dtype, **others)
        dtype = dtype or tensor.dtype
        nbytes = math.prod(size) * dtype.itemsize
        room = torch.full((nbytes + 2 * band,), 0x5A, dtype=torch.uint8)
        bands.append((room, nbytes))
        inner = room[band : band + nbytes].view(dtype).reshape(size)
        return inner.fill_(math.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    yield
    for room, nbytes in bands:
        assert (room[:band] == 0x5A).all()
        assert (room[band + nbytes :] == 0x5A).all()


@pytest.fixture
def wide_finish(monkeypatch):
    """Wider tiles for maps that are scored again; the interpreter takes minutes for the shipped ones, that other tests have."""
    block = plan.finish_block
    monkeypatch.setattr(plan, "finish_block", lambda *call: dataclasses.replace(block(*call), outputs=256))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(call=conv_calls())
def test_any_convolution(wide_finish, call):
    weight, acts, bias, options = call
    before = weight.clone(), acts.clone()
    check(weight, acts, bias, **options)
    assert torch.equal(weight, before[0])
    assert torch.equal(acts, before[1])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(call=linear_calls())
def test_any_linear(call):
    weight, acts, bias, options = call
    expected = reference.score_linear(weight, acts, bias, **options)
    assert_close(score_linear(weight, acts, bias, **options, backend="triton"), expected)


@each_path
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_each_path(path, layout):
    weight, acts, options = call(path)
    assert explain(weight, acts, **options, backend="triton").path == path.split(",")[0]
    if layout == "channels_last":
        acts = acts.contiguous(memory_format=torch.channels_last)
    assert torch.equal(check(weight, acts, **options), check(weight, acts, **options))


@pytest.mark.parametrize("arch", [("cuda", 100, 32), ("hip", "gfx942", 64)])
@each_path
def test_the_plans_of_other_chips(path, arch, monkeypatch):
    monkeypatch.setattr(plan, "current_target", lambda index: plan.Target(*arch))
    weight, acts, options = call(path)
    check(weight, acts, **options)


@pytest.mark.parametrize("acts_scale", [1e-20, 1e20])
@pytest.mark.parametrize("weight_scale", [1e-15, 1e10])
@each_path
def test_magnitudes(path, acts_scale, weight_scale, wide_finish):
    weight, acts, options = call(path, 1)
    acts[1] *= 1e-12  # one sample far below the others
    check(weight * weight_scale, acts * acts_scale, **options)


def test_small_values_that_alone_meet_a_tap_are_not_lost():
    weight = torch.tensor([1.0, 1e-25]).reshape(1, 1, 1, 2).repeat(2, 2, 1, 1)
    acts = torch.zeros(3, 2, 1, 5)
    acts[..., 0] = 1.0  # only the second element's partner is zero here
    acts[2, 1] = 1e-25
    check(weight, acts, padding=(0, 1), normalize=False)
    acts[:, :, 0] = torch.tensor([1e-25, 0, 0, 0, 1])  # without padding, the first element never meets the last pixel
    check(weight, acts, normalize=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_path
def test_nan_and_inf_show_where_they_are(path, value, wide_finish):
    weight, acts, options = call(path)
    weight, acts = torch.ones_like(weight), torch.ones_like(acts)
    acts[1, 0, 1, 1] = value
    options = {**options, "normalize": False, "backend": "triton"}
    sums = score_conv(weight, acts, **options)
    assert sums[:, 1:].isfinite().all()
    assert not sums[:, 0].isfinite().any()
    weight.view(-1)[0] = value
    assert not score_conv(weight, torch.ones_like(acts), **options)[0, 0].isfinite()


def test_chunks_of_samples_add_up(monkeypatch):
    monkeypatch.setattr(plan, "PROGRAMS", 6)
    weight, acts = torch.randn(5, 2, 3, 3), values((150, 2, 3, 4), 0, torch.bfloat16)
    for options in ({"padding": 1}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"variant": "norm_of_mean"}):
        check(weight, acts, **options)


def test_long_float32_sums_lose_nothing():
    acts = torch.rand(1, 1, 1, 1).expand(1, 1, 300, 300)
    check(torch.rand(2, 1, 1, 1), acts)

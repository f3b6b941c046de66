"""The compiled CPU kernels against the oracle: every path, instruction set, layout and dtype."""

import itertools
import os
import random
import subprocess
import sys

import pytest
import torch

from nnrelief_kernels import explain, extension, reference, score_conv, score_linear

pytestmark = pytest.mark.skipif(extension.unavailable() is not None, reason=str(extension.unavailable()))

CASES = {  # (path, weight shape, acts shape, options)
    "norms": ("norms", (5, 7, 1, 1), (19, 7, 9, 6), {"stride": 2}),
    "lags": ("lags", (20, 3, 3, 3), (21, 3, 40, 70), {"padding": 1}),
    "lags, stride 2": ("lags", (20, 3, 7, 7), (21, 3, 40, 41), {"stride": 2, "padding": 3}),
    "lags, few samples": ("lags", (5, 64, 3, 3), (3, 64, 9, 8), {"padding": 1}),
    "gram": ("gram", (6, 4, 3, 3), (18, 4, 17, 15), {"dilation": 2, "padding": 1}),
    "dual": ("dual", (21, 5, 3, 3), (33, 5, 2, 2), {"padding": 1}),
    "direct": ("direct", (6, 2, 7, 7), (17, 2, 8, 8), {}),
    "depthwise": ("direct", (80, 1, 3, 3), (5, 40, 9, 7), {"padding": 1, "groups": 40}),
    "window sums": ("window sums", (6, 4, 3, 3), (18, 4, 17, 15), {"variant": "l1", "stride": 2}),
}
LEVELS = ("portable", "avx2", "avx512")


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


def random_call(rng):
    """A weight, activations and options of one random convolution; the activations are a view of NaN-filled memory."""
    dims = rng.choice((1, 2, 2, 2, 3))
    kernel = [rng.choice((1, 2, 3, 3, 5, 7) if dims < 3 else (1, 2, 3)) for _ in range(dims)]
    plain = rng.random() < 0.5
    stride = 1 if plain else rng.randint(1, 3)
    dilation = 1 if plain else rng.randint(1, 2)
    mode = rng.choice(("zeros", "zeros", "reflect", "replicate", "circular"))
    padding = rng.randint(0, 2)
    size = [max(3, dilation * (k - 1) + 1 - 2 * padding) + rng.randint(0, 9) for k in kernel]
    groups, per_group, filters = rng.choice((1, 1, 2, 3)), rng.randint(1, 4), rng.randint(1, 19)
    samples, dtype = (
        rng.choice((1, 2, 15, 16, 17, 35)),
        rng.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    )
    acts = torch.full((samples + 2, groups * per_group + 1, *(s + 1 for s in size)), float("nan"), dtype=dtype)
    if rng.random() < 0.3:
        acts = acts.transpose(1, -1).contiguous().transpose(1, -1)
    acts = acts[(slice(1, -1), slice(1, None), *(slice(s) for s in size))]
    acts.copy_(torch.randn(acts.shape).relu_())
    weight = torch.randn(groups * filters, per_group, *kernel).to(dtype)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return weight, acts, {**options, "variant": rng.choice(("paper", "paper", "norm_of_mean", "l1"))}


@pytest.mark.parametrize("seed", range(80))
def test_random_convolutions(seed):
    torch.manual_seed(seed)
    weight, acts, options = random_call(random.Random(seed))
    bias = torch.randn(len(weight), dtype=weight.dtype)
    for normalize in (True, False):
        actual = score_conv(weight, acts, bias, **options, normalize=normalize, backend="cpu")
        assert_close(actual, reference.score_conv(weight, acts, bias, **options, normalize=normalize))


@pytest.mark.parametrize("case", CASES)
def test_each_path(case):
    torch.manual_seed(0)
    path, weight_shape, acts_shape, options = CASES[case]
    weight, acts = torch.randn(weight_shape), torch.randn(acts_shape).relu_()
    assert explain(weight, acts, **options, backend="cpu").path == path
    expected = reference.score_conv(weight, acts, **options)
    assert_close(score_conv(weight, acts, **options, backend="cpu"), expected)
    channels_last = acts.contiguous(memory_format=torch.channels_last)
    assert_close(score_conv(weight, channels_last, **options, backend="cpu"), expected)


@pytest.mark.parametrize("acts_scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("weight_scale", [1e-20, 1e10])
@pytest.mark.parametrize("case", CASES)
def test_magnitudes(case, acts_scale, weight_scale):
    torch.manual_seed(1)
    _, weight_shape, acts_shape, options = CASES[case]
    weight = torch.randn(weight_shape) * weight_scale
    acts = torch.randn(acts_shape) * acts_scale
    acts[1] *= 1e-12  # one sample far below the others
    assert_close(score_conv(weight, acts, **options, backend="cpu"), reference.score_conv(weight, acts, **options))


@pytest.mark.parametrize("value", [1e-25, 1e25])
@pytest.mark.parametrize("case", CASES)
def test_one_pixel_out_of_range(case, value):
    torch.manual_seed(5)
    _, weight_shape, acts_shape, options = CASES[case]
    weight, acts = torch.rand(weight_shape) + 0.1, torch.rand(acts_shape) * value**0.5
    pixel = (2, acts.shape[1] // 3) + (1,) * (acts.ndim - 2)
    acts[pixel] = value
    options = {**options, "normalize": False}
    assert_close(score_conv(weight, acts, **options, backend="cpu"), reference.score_conv(weight, acts, **options))


def test_small_values_that_alone_meet_a_tap_are_not_lost():
    weight = torch.tensor([1.0, 1e-25]).reshape(1, 1, 1, 2).repeat(2, 2, 1, 1)
    acts = torch.zeros(3, 2, 1, 5)
    acts[..., 0] = 1.0  # only the second element's partner is zero here
    acts[2, 1] = 1e-25
    options = {"padding": (0, 1), "normalize": False}
    assert_close(score_conv(weight, acts, **options, backend="cpu"), reference.score_conv(weight, acts, **options))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("case", CASES)
def test_nan_and_inf_show(case, value):
    _, weight_shape, acts_shape, options = CASES[case]
    weight, acts = torch.ones(weight_shape), torch.ones(acts_shape)
    acts[(1, 0) + (0,) * (acts.ndim - 2)] = value
    sums = score_conv(weight, acts, **options, normalize=False, backend="cpu")
    expected = reference.score_conv(weight, acts, **options, normalize=False)
    assert not sums[0, 0].isfinite()
    assert torch.equal(sums.isfinite(), expected.isfinite())
    weight.view(-1)[0] = value
    assert not score_conv(weight, torch.ones(acts_shape), **options, normalize=False, backend="cpu")[0, 0].isfinite()


@pytest.mark.parametrize("case", CASES)
def test_threads_do_not_change_bits(case):
    torch.manual_seed(2)
    _, weight_shape, acts_shape, options = CASES[case]
    weight, acts = torch.randn(weight_shape), torch.randn((300, *acts_shape[1:]))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(score_conv(weight, acts, **options, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_samples_lose_nothing():
    torch.manual_seed(3)
    weight = torch.randn(3, 1, 3, 3)
    one = torch.rand(1, 1, 2, 2)
    sums = score_conv(weight, one.expand(1_000_000, 1, 2, 2), padding=1, normalize=False, backend="cpu")
    assert_close(sums, reference.score_conv(weight, one, padding=1, normalize=False) * 1_000_000)
    column = torch.rand(1, 5).expand(1_000_000, 5)
    assert_close(score_linear(torch.ones(1, 5), column, normalize=False, backend="cpu"), column[:1].double() * 1_000_000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3), (130, 1100), (4, 5, 33), (257, 17)])
def test_linear(shape, dtype):
    torch.manual_seed(4)
    acts, weight, bias = torch.randn(shape).to(dtype), torch.randn(6, shape[-1]).to(dtype), torch.randn(6).to(dtype)
    expected = reference.score_linear(weight, acts, bias)
    assert_close(score_linear(weight, acts, bias, backend="cpu"), expected)
    strided = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=dtype)[..., ::2].copy_(acts)
    turned = weight.t().contiguous().t()
    assert_close(score_linear(turned, strided.transpose(0, -2).contiguous().transpose(0, -2), bias, backend="cpu"), expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_linear_walks_leading_dimensions_of_any_strides(order):
    torch.manual_seed(5)
    stored = torch.randn(6, 70, 5, 9)[::2, :, 1:4]
    acts = stored.permute(order)
    for view in (acts, acts[:1], acts[:, :1].expand(-1, 7, -1, -1)):
        weight = torch.randn(4, view.shape[-1])
        assert_close(score_linear(weight, view, backend="cpu"), reference.score_linear(weight, view))


def test_half_precision_reads_every_value():
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.isfinite()][None]
        sums = score_linear(torch.ones(1, values.shape[1]), values, normalize=False, backend="cpu")
        assert torch.equal(sums, values.float().abs())


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level):
    if os.environ.get("NNRELIEF_CPU"):
        pytest.skip("the inner run of this test")
    environment = {**os.environ, "NNRELIEF_CPU": level}
    asked = (
        "import torch; from nnrelief_kernels.backends import get; cpu = get('cpu'); print(cpu.unavailable() or cpu.describe())"
    )
    answer = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True).stdout
    if level not in answer.split(",")[1]:
        assert "NNRELIEF_CPU must be one of" in answer
        pytest.skip(f"this processor has no {level}")
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]

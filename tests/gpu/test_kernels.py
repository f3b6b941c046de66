"""The Triton and the CUDA kernels on a device: what only hardware shows. `pytest -m gpu`, or `make gpu`."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils.cpp_extension import CUDA_HOME

from nnrelief_kernels import explain, keep_mask, reference, score_conv, score_linear
from nnrelief_kernels.backends import get

SANITIZED = "test_the_oracle_on_the_device and float32 and contiguous"
"""The small cases, by `pytest -k`."""
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
SMALL = {  # (weight shape, acts shape, options) that take each path of the Triton backend
    "norms": ((5, 7, 1, 1), (19, 7, 9, 6), {}),
    "lags": ((20, 3, 3, 3), (150, 3, 28, 28), {"padding": 1}),
    "lags, in tiles": ((20, 3, 3, 3), (70, 3, 20, 75), {"padding": 1}),
    "lags, many filters": ((150, 2, 3, 3), (200, 2, 9, 10), {"padding": 1}),
    "lags, strided": ((20, 3, 3, 3), (70, 3, 30, 75), {"stride": 2, "padding": 1}),
    "lags, strided, of 56": ((20, 3, 3, 3), (70, 3, 30, 56), {"stride": 2, "padding": 1}),
    "direct": ((6, 1, 5, 5), (70, 6, 19, 28), {"padding": 2, "groups": 6}),
    "gram": ((6, 4, 3, 3), (18, 4, 17, 15), {"stride": 3, "padding": 1}),
    "matrix": ((64, 3, 7, 7), (5, 3, 56, 56), {"stride": 2, "padding": 3}),
    "mean map": ((6, 4, 3, 3), (18, 4, 17, 15), {"variant": "norm_of_mean"}),
    "float64 maps": ((6, 4, 3, 3), (5, 4, 9, 8), {"padding": 1}),
}
CUDA_PATHS = {"direct": "gram", "matrix": "gram", "mean map": "direct", "float64 maps": "direct"}
"""What the CUDA backend calls the path of a case where the name differs."""
each_path = pytest.mark.parametrize("path", SMALL)
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


def why_not(backend):
    return get(backend).unavailable() if torch.cuda.is_available() else "no CUDA or ROCm device"


each_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(why_not(name) is not None, reason=f"{name}: {why_not(name)}"))
        for name in ("triton", "cuda")
    ],
)


def call(path, dtype=None):
    weight_shape, acts_shape, options = SMALL[path]
    generator = torch.Generator("cuda").manual_seed(0)
    dtype = torch.float64 if path == "float64 maps" else dtype or torch.float32
    weight = torch.randn(weight_shape, generator=generator, device="cuda").to(dtype)
    return weight, torch.randn(acts_shape, generator=generator, device="cuda").relu_().to(dtype), options


def on_the_device(x):
    """x in its memory, all of it, at the same strides."""
    return torch.empty(0, dtype=x.dtype, device="cuda").set_(
        x.untyped_storage().cuda(), x.storage_offset(), x.shape, x.stride()
    )


@pytest.fixture
def poisoned_memory():
    """What torch allocates starts as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=torch.finfo(torch.float32).tiny)


@each_backend
@each_path
@each_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_the_oracle_on_the_device(backend, path, dtype, layout, poisoned_memory):
    weight, acts, options = call(path, dtype)
    name = path.split(",")[0]
    found = explain(weight, acts, **options, backend=backend)
    assert found.path == (name if backend == "triton" else CUDA_PATHS.get(path, name))
    if layout == "channels_last":
        acts = acts.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        acts = torch.nn.functional.pad(acts, (1, 2), value=float("nan"))[..., 1:-2]
    assert_close(score_conv(weight, acts, **options, backend=backend), reference.score_conv(weight, acts, **options))


@each_backend
def test_any_call(backend, poisoned_memory):
    hypothesis = pytest.importorskip("hypothesis")
    from tests.strategies import conv_calls, linear_calls

    settings = hypothesis.settings(
        max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None, derandomize=True
    )
    for calls, score, oracle in (
        (conv_calls(), score_conv, reference.score_conv),
        (linear_calls(), score_linear, reference.score_linear),
    ):

        @settings
        @hypothesis.given(call=calls)
        def compare(call, score=score, oracle=oracle):
            weight, acts, bias, options = call
            moved = (on_the_device(weight), on_the_device(acts), None if bias is None else bias.cuda())
            assert_close(score(*moved, **options, backend=backend).cpu(), oracle(weight, acts, bias, **options))

        compare()


@each_backend
@each_path
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_magnitudes(backend, path, scale):
    weight, acts, options = call(path)
    acts *= scale
    assert_close(score_conv(weight, acts, **options, backend=backend), reference.score_conv(weight, acts, **options))


@each_backend
@each_path
def test_nan_and_inf_show_where_they_are(backend, path):
    for value in (float("nan"), float("inf")):
        weight, acts, options = call(path)
        acts[1, 0, 1, 1] = value
        sums = score_conv(weight, acts, **options, normalize=False, backend=backend)
        assert not sums[:, 0].isfinite().any()
        assert sums[:, 1:].isfinite().all()


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_linear(backend, dtype):
    acts, weight = torch.randn(700, 300, device="cuda").to(dtype), torch.randn(40, 300, device="cuda").to(dtype)
    assert_close(score_linear(weight, acts, backend=backend), reference.score_linear(weight, acts))


@each_backend
@each_path
def test_the_same_bits_twice_and_on_a_second_stream(backend, path):
    weight, acts, options = call(path)
    first = score_conv(weight, acts, **options, backend=backend)
    assert torch.equal(first, score_conv(weight, acts, **options, backend=backend))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = score_conv(weight, acts, **options, backend=backend)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(first, other)


@each_backend
@each_path
def test_a_graph_replays_without_the_host(backend, path):
    weight, acts, options = call(path)
    expected = score_conv(weight, acts, **options, normalize=False, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums = score_conv(weight, acts, **options, normalize=False, backend=backend)
    sums.fill_(float("nan"))
    graph.replay()
    assert torch.equal(sums, expected)


@pytest.fixture
def no_waiting():
    """A context in which whatever waits for the device raises."""

    class NoWaiting:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    with pytest.raises(RuntimeError), NoWaiting():
        torch.ones(1, device="cuda").item()
    return NoWaiting()


@each_backend
@each_path
def test_nothing_waits_for_the_device(backend, path, no_waiting):
    weight, acts, options = call(path)
    bias = torch.ones(len(weight), device="cuda")
    score_conv(weight, acts, bias, **options, backend=backend)
    with no_waiting:
        score_conv(weight, acts, bias, **options, backend=backend)


@each_backend
def test_linear_does_not_wait_for_the_device(backend, no_waiting):
    weight, acts = torch.randn(40, 300, device="cuda"), torch.randn(700, 300, device="cuda")
    score_linear(weight, acts, weight[:, 0], backend=backend)
    with no_waiting:
        score_linear(weight, acts, weight[:, 0], backend=backend)


@each_backend
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 12 << 30, reason="needs 12 GiB"
)
def test_more_than_two_to_the_31_elements(backend):
    one = torch.rand(1, 2, 56, 56, device="cuda").bfloat16()
    acts = one.repeat(350_000, 1, 1, 1)
    assert acts.numel() > 2**31
    for kernel, options in (
        (3, {"padding": 1}),
        (3, {"stride": 2}),
        (3, {"stride": 3}),
        (5, {"stride": 4}),
        (1, {}),
        (3, {"variant": "norm_of_mean"}),
    ):
        weight = torch.randn(4, 2, kernel, kernel, device="cuda")
        assert_close(score_conv(weight, acts, **options, backend=backend), reference.score_conv(weight, one, **options))
    weight = torch.randn(3, one.numel(), device="cuda")
    assert_close(score_linear(weight, acts.flatten(1), backend=backend), reference.score_linear(weight, one.flatten(1)))


@each_backend
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_tensors_own_device(backend):
    weight, acts, options = call("lags")
    elsewhere = score_conv(weight.to("cuda:1"), acts.to("cuda:1"), **options, backend=backend)
    assert elsewhere.device.index == 1
    assert torch.equal(elsewhere.cpu(), score_conv(weight, acts, **options, backend=backend).cpu())


@each_backend
def test_peak_memory(backend):
    weight, acts = torch.randn(512, 512, 3, 3, device="cuda"), torch.randn(1024, 512, 4, 4, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score_conv(weight, acts, padding=1, normalize=False, backend=backend)
    assert torch.cuda.max_memory_allocated() - before <= 16 << 20


@pytest.mark.parametrize("compat", ["paper", "authors"])
def test_masks_do_not_depend_on_the_device(compat):
    scores = torch.rand(50, 400).softmax(1)
    mask = keep_mask(scores.cuda(), 0.9, compat=compat, min_keep=2)
    assert mask.is_cuda
    assert torch.equal(mask.cpu(), keep_mask(scores, 0.9, compat=compat, min_keep=2))


def test_a_mask_waits_once_to_refuse_nan():
    scores = torch.rand(50, 400, device="cuda").softmax(1)
    keep_mask(scores, 0.9)
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            keep_mask(scores, 0.9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1


def test_info_names_tritons_version_and_target():
    triton = pytest.importorskip("triton")
    major, minor = torch.cuda.get_device_capability()
    target = torch.cuda.get_device_properties(0).gcnArchName.split(":")[0] if torch.version.hip else f"{major}{minor}"
    found = get("triton").describe()
    assert triton.__version__ in found
    assert f":{target}" in found


def test_info_names_the_compiled_chips():
    if reason := why_not("cuda"):
        pytest.skip(reason)
    assert "sm_" in get("cuda").describe()


SANITIZER = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{CUDA_HOME}/bin")


@pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer on the path or beside nvcc")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    if "NNRELIEF_SANITIZED" in os.environ:
        pytest.skip("the inner run of this test")
    command = [SANITIZER, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-m", "pytest", "-q", __file__]
    command += ["-k", SANITIZED]
    environment = {**os.environ, "NNRELIEF_SANITIZED": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]

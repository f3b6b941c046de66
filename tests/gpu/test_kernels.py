"""The Triton and the CUDA kernels on a device: what only hardware shows. `pytest -m gpu`, or `make gpu`."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from nnrelief_kernels import explain, keep_mask, reference, score_conv, score_linear
from nnrelief_kernels.backends import get

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
SMALL = {  # (weight shape, acts shape, options) that take each path of the Triton backend
    "norms": ((5, 7, 1, 1), (19, 7, 9, 6), {}),
    "lags": ((20, 3, 3, 3), (150, 3, 28, 28), {"padding": 1}),
    "lags, in tiles": ((20, 3, 3, 3), (70, 3, 20, 75), {"padding": 1}),
    "gram": ((6, 4, 3, 3), (18, 4, 17, 15), {"stride": 2, "padding": 1}),
    "matrix": ((64, 3, 7, 7), (5, 3, 56, 56), {"stride": 2, "padding": 3}),
    "mean map": ((6, 4, 3, 3), (18, 4, 17, 15), {"variant": "norm_of_mean"}),
    "float64 maps": ((6, 4, 3, 3), (5, 4, 9, 8), {"padding": 1}),
}
CUDA_PATHS = {"matrix": "gram", "mean map": "direct", "float64 maps": "direct"}
"""What the CUDA backend calls the path of a case where the name differs."""
each_path = pytest.mark.parametrize("path", SMALL)


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


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=torch.finfo(torch.float32).tiny)


@each_backend
@each_path
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_the_oracle_on_the_device(backend, path, dtype, layout):
    weight, acts, options = call(path, dtype)
    name = path.split(",")[0]
    found = explain(weight, acts, **options, backend=backend)
    assert found.path == (name if backend == "triton" else CUDA_PATHS.get(name, name))
    if layout == "channels_last":
        acts = acts.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        acts = torch.nn.functional.pad(acts, (1, 2), value=float("nan"))[..., 1:-2]
    assert_close(score_conv(weight, acts, **options, backend=backend), reference.score_conv(weight, acts, **options))


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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
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


@each_backend
@each_path
def test_nothing_waits_for_the_device(backend, path):
    weight, acts, options = call(path)
    score_conv(weight, acts, **options, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        score_conv(weight, acts, **options, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_backend
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 12 << 30, reason="needs 12 GiB"
)
def test_more_than_two_to_the_31_elements(backend):
    one = torch.rand(1, 2, 56, 56, device="cuda").bfloat16()
    acts = one.repeat(350_000, 1, 1, 1)
    assert acts.numel() > 2**31
    for kernel, options in ((3, {"padding": 1}), (3, {"stride": 2}), (1, {})):
        weight = torch.randn(4, 2, kernel, kernel, device="cuda")
        assert_close(score_conv(weight, acts, **options, backend=backend), reference.score_conv(weight, one, **options))


@each_backend
def test_peak_memory(backend):
    weight, acts = torch.randn(512, 512, 3, 3, device="cuda"), torch.randn(1024, 512, 4, 4, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    score_conv(weight, acts, padding=1, normalize=False, backend=backend)
    assert torch.cuda.max_memory_allocated() - before <= 16 << 20


def test_masks_do_not_depend_on_the_device():
    scores = torch.rand(50, 400)
    assert torch.equal(keep_mask(scores.cuda(), 0.9).cpu(), keep_mask(scores, 0.9))


@each_backend
def test_info_names_version_and_target(backend):
    assert (":" if backend == "triton" else "sm_") in get(backend).describe()


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    if "NNRELIEF_SANITIZED" in os.environ:
        pytest.skip("the inner run of this test")
    command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", sys.executable, "-m", "pytest", "-q", __file__]
    command += ["-k", "the_oracle_on_the_device and float32 and contiguous"]
    environment = {**os.environ, "NNRELIEF_SANITIZED": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]

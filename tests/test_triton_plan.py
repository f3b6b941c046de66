"""What the Triton backend decides on the host: which calls it takes, and how many kernels a network compiles."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnrelief_kernels import backends
from nnrelief_kernels.backends.triton import plan
from nnrelief_kernels.geometry import conv_geometry
from tests.gpu import test_kernels as on_a_device


def refusals(device, monkeypatch):
    """Why Triton and PyTorch would not score a 3x3 convolution of tensors that hold nothing, were there a device."""
    monkeypatch.setattr(plan, "current_target", lambda index: plan.Target("cuda", 80, 32))
    geometry = conv_geometry((28, 28), (3, 3))
    with FakeTensorMode():
        weight, acts = torch.empty(4, 2, 3, 3, device=device), torch.empty(5, 2, 28, 28, device=device)
        names = ("triton", "torch")
        return {name: backends.get(name).refuses_conv(weight, acts, geometry, "paper") for name in names}


def test_cuda_tensors_go_to_triton_first(monkeypatch):
    assert backends.ORDER[0] == "triton"
    assert refusals("cuda", monkeypatch) == {"triton": None, "torch": None}


def test_cpu_tensors_do_not(monkeypatch):
    assert "it serves cuda devices" in refusals("cpu", monkeypatch)["triton"]


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("case", on_a_device.SMALL)
def test_the_cases_for_a_device_take_the_paths_that_they_name(case, arch):
    weight_shape, acts_shape, options = on_a_device.SMALL[case]
    variant = options.get("variant", "paper")
    geometry = conv_geometry(acts_shape[2:], weight_shape[2:], **{k: v for k, v in options.items() if k != "variant"})
    dtype = torch.float64 if case == "float64 maps" else torch.float32
    weight, acts = torch.empty(weight_shape, dtype=dtype), torch.empty(acts_shape, dtype=dtype)
    assert plan.conv_path(weight, acts, geometry, variant, plan.Target("cuda", arch, 32)) == case.split(",")[0]


def test_a_resnet50_compiles_few_kernels():
    """At about 0.7 s each (`make aot-report` measures it), its first pass stays below 20 s."""
    aot = pytest.importorskip("benchmarks.aot", exc_type=ImportError)
    target = plan.Target("cuda", 90, 32)
    layers = [*aot.cases("resnet50", ["float32"]), aot.Case("fc", aot.Layer("fc", (1000, 2048)), 256, "float32")]
    assert len(aot.specialisations(layers, [target])) <= 24


@pytest.mark.parametrize("maps", [1, 1000, 10**6])
def test_tiles_of_a_map_hold_all_its_columns(maps):
    for width in range(1, plan.ROW_SIZE + 1):
        for stride in (1, 2):
            geometry = conv_geometry((9, width), (3, 3), stride, 1)
            for target in (plan.Target("cuda", 80, 32), plan.Target("hip", "gfx942", 64)):
                blocks = plan.blocks(target)
                tiles = plan.lag_tiles(geometry, blocks, maps)
                assert tiles.width * tiles.count >= width
                assert tiles.width % stride == 0 or tiles.count == 1
                if plan.lags_serve(geometry, blocks, maps):
                    assert (tiles.count - 1) * tiles.width < width


@pytest.mark.parametrize(("width", "stride", "few", "many"), [(32, 1, 4, 1), (224, 2, 16, 8), (7, 1, 1, 1)])
def test_few_maps_are_cut_in_more_tiles(width, stride, few, many):
    geometry, blocks = conv_geometry((width, width), (3, 3), stride, 1), plan.blocks(plan.Target("hip", "gfx942", 64))
    assert plan.lag_tiles(geometry, blocks, 3 * 256).count == few
    assert plan.lag_tiles(geometry, blocks, 64 * 256).count == many


def test_info_names_the_version_of_triton():
    triton = pytest.importorskip("triton")
    backend = backends.get("triton")
    assert f"triton {triton.__version__}" in (backend.unavailable() or backend.describe())

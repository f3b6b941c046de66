"""Random scoring calls: every case of the contract, on activations that are views of NaN-filled memory."""

import torch
from hypothesis import strategies as st

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
VARIANTS = ("paper", "norm_of_mean", "l1")


def values(shape, seed, dtype, zeros=0.3):
    """Normal values of many magnitudes, a share of them 0."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-4, 5, shape, generator=generator)
    return normal.where(torch.rand(shape, generator=generator) >= zeros, 0.0).to(dtype)


def poisoned(wanted, layout):
    """`wanted` in memory of the given layout, surrounded by NaN where the layout leaves room."""
    if layout == "contiguous":
        return wanted.contiguous()
    if layout == "channels_last":
        return wanted.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "expanded":
        return wanted[:1].expand_as(wanted)
    step = 2 if layout == "strided" else 1
    room = torch.full([size * step + 2 for size in wanted.shape], float("nan"), dtype=wanted.dtype)
    view = room[tuple(slice(1, 1 + size * step, step) for size in wanted.shape)]
    return view.copy_(wanted)


@st.composite
def conv_calls(draw):
    """(weight, acts, bias, options) of one convolution that torch.nn accepts."""
    dims = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, (7, 5, 3)[dims - 1])) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) for _ in range(dims)]
    mode = draw(st.sampled_from(PADDING_MODES))
    named = draw(st.sampled_from((None, None, "same", "valid")))
    stride = [1 if named == "same" else draw(st.integers(1, 4)) for _ in range(dims)]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if named == "same":
        padding = "same"
        least = [r - r // 2 + 1 for r in reach]
    elif named == "valid":
        padding = "valid"
        least = [r + 1 for r in reach]
    else:
        padding = tuple(draw(st.integers(0, 4)) for _ in range(dims))
        least = [max(1, r + 1 - 2 * p, p + 1 if mode != "zeros" else 1) for r, p in zip(reach, padding)]
    size = [low + draw(st.integers(0, 12 if dims < 3 else 4)) for low in least]
    groups = draw(st.integers(1, 3))
    per_group, filters = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    samples = draw(st.sampled_from((1, 2, 3, 15, 16, 17, 33)))
    weight_dtype, acts_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    layout = draw(st.sampled_from(("contiguous", "channels_last", "sliced", "strided", "expanded")))
    weight_layout = draw(st.sampled_from(("contiguous", "channels_last", "sliced", "strided")))
    acts = poisoned(values((samples, groups * per_group, *size), seed, acts_dtype), layout)
    weight = poisoned(values((groups * filters, per_group, *kernel), seed + 1, weight_dtype), weight_layout)
    bias = values((groups * filters,), seed + 2, weight_dtype) if draw(st.booleans()) else None
    options = {"stride": tuple(stride), "padding": padding, "dilation": tuple(dilation), "groups": groups}
    options |= {"padding_mode": mode, "variant": draw(st.sampled_from(VARIANTS)), "normalize": draw(st.booleans())}
    return weight, acts, bias, options


@st.composite
def linear_calls(draw):
    """(weight, acts, bias, options) of one fully connected layer."""
    leading = draw(st.lists(st.integers(1, 9), max_size=3))
    inputs, outputs, seed = draw(st.integers(1, 300)), draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(("contiguous", "sliced", "strided", "turned")))
    acts = values((*leading, inputs), seed, draw(st.sampled_from(DTYPES)))
    if layout == "turned":
        acts = acts.movedim(-1, 0).contiguous().movedim(0, -1)
    else:
        acts = poisoned(acts, layout)
    weight = poisoned(
        values((outputs, inputs), seed + 1, dtype), draw(st.sampled_from(("contiguous", "channels_last", "sliced")))
    )
    bias = values((outputs,), seed + 2, dtype) if draw(st.booleans()) else None
    return weight, acts, bias, {"normalize": draw(st.booleans())}

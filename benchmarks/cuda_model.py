"""How many instructions a warp of the CUDA kernels issues for a call: their loops in the machine code, and how often csrc/*.cu
goes through each.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

from benchmarks.aot import Loop
from benchmarks.cuda_code import Kernel, Unclear, named, only
from benchmarks.cuda_plan import Conv, Plan
from nnrelief_kernels.backends.triton.plan import ceil_div

THREADS, PER_THREAD, FEW = 128, 4, 16
"""Of a block, filters of a thread in phase 2, and those up to which it is one (csrc/conv_cuda.h)."""
TYPES = ["NS_4HalfE", "NS_8BFloat16E", "f", "d"]
"""Of activations, as in a kernel's mangled name, in the order of csrc/conv.h."""
ITEM = [2, 2, 4, 8]


@dataclass(frozen=True)
class Queued:
    """A launch: its blocks, the instructions of one of their warps, those of phase 1 among them, and bytes moved."""

    blocks: int
    count: float
    phase_1: float
    moved: int


@dataclass(frozen=True)
class Call:
    """The launches of a call, and thread instructions per pixel in the first one's loop over pixels."""

    queued: list[Queued]
    per_pixel: float


def streamed_rows(c: Conv) -> tuple[int, int, Counter[int]]:
    """Of a map in csrc/lags_cuda.cu: turns of the loop over K rows, rows outside it, and how often the sums of each row
    distance end."""
    k, height, top, high = c.kernel[2], c.size[1], c.before[1], c.out[1]
    turns, edges, ends = 0, 0, Counter[int]()
    r = 0
    while r < height:
        until = min(high - top - 1, height - 1, r - r % 128 + 127)
        while r >= k - 1 - top and r + k <= until:
            turns, r = turns + 1, r + k
        for d in range(k):
            last = r < k - 1 - top or r - d + 1 >= high - top or r == height - 1 or r % 128 == 127
            ends[d] += r >= d and last
        edges, r = edges + 1, r + 1
    return turns, edges, ends


def products(k: int) -> int:
    """Lags of a k x k kernel."""
    return ((2 * k - 1) ** 2 + 1) // 2


def row_loop(kernel: Kernel, k: int, columns: int) -> Loop:
    """The loop over K rows of a lags kernel: a multiply-add for every lag, row and column."""
    wanted = products(k) * k * columns
    return only(f"{wanted} multiply-adds", [x for x in kernel.whole.in_order() if kernel.count(x, "FFMA") == wanted])


def lags(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    k, columns = c.kernel[2], p.columns
    samples = 32 if k == 3 else 16
    lanes = THREADS // samples
    while lanes * columns < c.size[2]:
        lanes *= 2
    piece = next(piece for piece in (columns, 2, 1) if c.size[2] % piece == 0)
    kernel = named(found, f"4lagsI{TYPES[c.acts_type]}Li{k}ELi{columns}ELi{piece}E")
    inner = row_loop(kernel, k, columns)
    nest = kernel.around(inner)
    if len(nest) != 5:
        raise Unclear(f"{len(nest)} loops around the rows of lags")
    row = nest[3]

    ending = [loop for loop in row.inside if loop is not inner]
    if len(ending) != 2 * k or any(kernel.count(loop, "SHFL") == 0 for loop in ending[::2]):
        raise Unclear("the sums of lags")
    begin, sums = ending[0].first, []
    for d, (shuffles, heads) in enumerate(zip(ending[::2], ending[1::2])):
        fours = lanes // 4
        total = int(math.log2(fours)) * kernel.way(shuffles) + ceil_div(k - d, fours) * kernel.way(heads)
        sums.append(total + kernel.way(row, begin, heads.last))
        begin = heads.last

    turns, edges, ends = streamed_rows(c)
    streamed = turns * kernel.way(inner)
    an_edge = kernel.way(row, row.first, ending[0].first) + kernel.way(row, begin, row.last)
    a_map = streamed + edges * an_edge + sum(n * sums[d] for d, n in ends.items())
    queued = maps_call(found, kernel, c, p, samples, lanes, a_map)
    return Call(queued, kernel.way(inner) / (k * columns))


def maps_call(
    found: dict[str, Kernel], kernel: Kernel, c: Conv, p: Plan, samples: int, lanes: int, a_map: float
) -> list[Queued]:
    """The launches of a call whose blocks have `THREADS` / `lanes` maps at once (csrc/lanes.h)."""
    group = kernel.whole.inside[-1]
    clears, maps, most = group.inside[:2], group.inside[2], group.inside[3]
    if kernel.count(clears[1], "STS") == 0 or kernel.count(most, "ATOMS") == 0:
        raise Unclear("the loops of a group of samples")
    taps = math.prod(c.kernel)
    features = taps * (taps + 1) // 2 * samples // THREADS
    rounds = ceil_div(min(samples, p.part_samples) * lanes, THREADS)
    a_group = (
        kernel.way(group)
        + ceil_div(features, kernel.count(clears[1], "STS")) * kernel.way(clears[1])
        + ceil_div(features, kernel.count(most, "ATOMS")) * kernel.way(most)
        + rounds * (kernel.way(maps) + a_map)
        + phase_2(kernel, group, c, p, samples)
    )
    groups = ceil_div(p.part_samples, samples)
    count, phase_1 = kernel.way(kernel.whole) + groups * a_group, groups * rounds * (kernel.way(maps) + a_map)
    first = Queued(p.parts * c.channels, count, phase_1, c.samples * c.acts_n * ITEM[c.acts_type] + sum_bytes(c, p))
    return [first, finish(found, c, p)]


def windows(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    reuse, near = 2 * c.dilation[1] == c.stride[1], c.acts_x[2] == 1 and c.dilation[2] == 1
    kernel = named(found, f"7windowsI{TYPES[c.acts_type]}Lb{reuse:d}ELb{near:d}E")
    outputs = only("45 multiply-adds", [x for x in kernel.whole.in_order() if kernel.count(x, "FFMA") == 45])
    nest = kernel.around(outputs)
    if len(nest) != 6 or len(nest[2].inside) != 2 or len(nest[4].inside) != 2:
        raise Unclear(f"{len(nest)} loops around the products of windows")
    column, rows, shuffles = nest[3], nest[4], nest[4].inside[0]
    high, chunks = c.out[1], ceil_div(c.out[2], p.lanes)
    turns, summed, flushes = 0, 0, 0
    for count in [min(128, high - h) for h in range(0, high, 128)] * chunks:
        full = summed + count > 128
        turns, flushes, summed = turns + 1, flushes + full, count + (0 if full else summed)
    on = kernel.way(rows, never=range(shuffles.first, shuffles.last))
    sharing = int(math.log2(p.lanes // 4)) * kernel.way(shuffles)
    a_map = (
        sharing
        + chunks * kernel.way(column)
        + turns * on
        + flushes * (kernel.way(rows) - on + sharing)
        + chunks * high * kernel.way(outputs)
    )
    return Call(maps_call(found, kernel, c, p, 32, p.lanes, a_map), kernel.way(outputs))


def gram(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    if p.lanes:
        return windows(found, c, p)
    near = c.kernel[2] == p.block and c.dilation[2] == 1
    kernel = named(found, f"4gramI{TYPES[c.acts_type]}Li{p.block}ELb{near:d}E")
    wanted, groups = p.block**2, ceil_div(math.prod(c.kernel), p.block)
    products = only(f"{wanted} multiply-adds", [x for x in kernel.whole.in_order() if kernel.count(x, "FFMA") == wanted])
    nest = kernel.around(products)
    if len(nest) != 7 or products.inside:
        raise Unclear(f"{len(nest)} loops around the products of gram")
    _, group, places, depth, rows, tile, _ = nest
    stage = only("the staged rows", [x for x in tile.inside if any(kernel.count(y, "LDG") for y in x.inside)])
    shuffles = only("the sums of slots", [x for x in places.inside if kernel.count(x, "SHFL") == wanted])

    lanes = min(32, 1 << (p.extent[2] - 1).bit_length())
    turns = [ceil_div(p.staged * p.extent[0] * p.extent[1], THREADS // lanes), ceil_div(p.extent[2], lanes)]
    element = stage.inside[0]
    load = kernel.places(element, "LDG") + kernel.places(element, "STS")
    staging = turns[0] * (kernel.way(stage, through=[element.first]) + turns[1] * kernel.way(element, through=load))
    tiles = [math.prod(extent) for extent in boxes(c, p)]
    outputs = sum(ceil_div(size, p.slots) for size in tiles)
    a_place = (
        kernel.way(places)
        + int(math.log2(p.slots)) * kernel.way(shuffles)
        + c.out[0] // p.box[0] * (kernel.way(depth) + ceil_div(c.out[1], p.box[1]) * kernel.way(rows))
        + len(tiles) * (kernel.way(tile) + staging)
        + outputs * kernel.way(products)
    )
    steps, at_once = ceil_div(p.part_samples, p.samples), ceil_div(p.samples, p.staged)
    a_group = kernel.way(group) + at_once * a_place + phase_2(kernel, group, c, p, p.samples)
    count = kernel.way(kernel.whole) + steps * a_group
    first = Queued(
        p.parts * c.channels, count, steps * at_once * a_place, c.samples * c.acts_n * ITEM[c.acts_type] + sum_bytes(c, p)
    )
    return Call([first, finish(found, c, p)], groups * (groups + 1) // 2 * kernel.way(products))


def boxes(c: Conv, p: Plan) -> list[tuple[int, ...]]:
    """Outputs of every tile of a map."""
    cuts = [[min(p.box[d], c.out[d] - at) for at in range(0, c.out[d], p.box[d])] for d in range(3)]
    return list(itertools.product(*cuts))


def phase_2(kernel: Kernel, group: Loop, c: Conv, p: Plan, samples: int) -> float:
    """Of a block's samples (add_norms in csrc/forms.h), on average over its warps: not all load kernels and add up sums."""
    taps, step, each = math.prod(c.kernel), p.filters, 1 if c.filters <= FEW else PER_THREAD
    slots = THREADS * each // step
    filters = only("filters", [loop for loop in group.inside if len(loop.inside) == 3 + 1 + each])
    loads, (forms, *sums) = filters.inside[:3], filters.inside[3:]  # of kernels, by dtype
    if len(sums) != each or (taps == 9) != (kernel.count(forms, "FFMA") >= 2 * each * 45):
        raise Unclear("the loops of phase 2")
    a_form = kernel.way(forms)
    if taps != 9:
        row = only("rows of a form", forms.inside)
        element = only("elements of a row", row.inside)
        a_form += taps * kernel.way(row) + taps * (taps + 1) // 2 * kernel.way(element)
    a_load = max(kernel.way(load) + taps * sum(map(kernel.way, load.inside)) for load in loads)
    adding = (slots - 1) * sum(map(kernel.way, sums)) * max(step // each, 32) / THREADS
    steps: int = ceil_div(c.filters, step)
    served = 1 if steps > 1 else ceil_div(p.part_samples, samples)  # groups of samples by one load
    loading = a_load * max(step / THREADS, 1) / served
    a_step: float = kernel.way(filters) + loading + ceil_div(samples // 2, slots) * a_form + adding
    return steps * a_step


def finish(found: dict[str, Kernel], c: Conv, p: Plan) -> Queued:
    """Where every part's sums are good."""
    kernel = named(found, "6finishIf")
    parts = only("parts", kernel.whole.inside)
    float64 = only("filters in float64", parts.inside)
    never = range(float64.first, float64.last)
    count = kernel.way(kernel.whole) + p.parts * kernel.way(parts, never=never)
    return Queued(c.channels * ceil_div(c.filters, THREADS), count, 0, sum_bytes(c, p))


def norms(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    pixels = math.prod(c.size)
    even = c.size[1] == 1 or c.acts_x[1] == c.size[2] * c.acts_x[2]
    piece = 4 if even and c.acts_x[2] == 1 and pixels % 4 == 0 else 1
    kernel = named(found, f"5normsI{TYPES[c.acts_type]}Li{piece}E")
    samples = only("samples", kernel.whole.inside)
    *several, shuffles = samples.inside
    single = [at for at, loop in enumerate(several) if kernel.count(loop, "LDG") == 1]
    if len(several) != 3 or len(single) != 1 or single == [0] or kernel.count(shuffles, "SHFL") != 2:
        raise Unclear("the loops of norms")
    rest, joined, strided = several.pop(single[0]), several.pop(single[0] - 1), several[0]
    loads = ceil_div(pixels, piece)
    lanes = min(32, 1 << (ceil_div(loads, 8) - 1).bit_length())
    if even:
        never = {*kernel.places(samples, "LDG")}
        inner = loads // (4 * lanes) * kernel.way(joined)
        inner += ceil_div(loads % (4 * lanes), lanes) * kernel.way(rest)
        per_pixel = kernel.way(joined) / 4 / piece
    else:
        never = {i for loop in (joined, rest) for i in range(loop.first, loop.last)}
        inner = ceil_div(pixels, lanes) // 4 * kernel.way(strided)
        per_pixel = kernel.way(strided) / 4
    a_turn = kernel.way(samples, never=never) + inner + int(math.log2(lanes)) * kernel.way(shuffles)
    turns = ceil_div(p.part_samples, THREADS // lanes)
    sums = p.parts * c.channels * 8
    scaling = named(found, f"5scaleI{TYPES[c.weight_type]}f")
    fours, ones = scaling.whole.inside
    added = ceil_div(p.parts, THREADS // 32)
    scaled = scaling.way(scaling.whole) + added // 4 * scaling.way(fours) + added % 4 * scaling.way(ones)
    per_group = c.channels // c.groups
    connections, blocks = c.groups * c.filters * per_group, c.groups * ceil_div(c.filters, 32) * ceil_div(per_group, 32)
    queued = [
        Queued(
            p.parts * c.channels,
            kernel.way(kernel.whole) + turns * a_turn,
            turns * a_turn,
            c.samples * c.acts_n * ITEM[c.acts_type] + sums,
        ),
        Queued(blocks, scaled, 0, sums + connections * 8),
    ]
    return Call(queued, per_pixel)


def sum_bytes(c: Conv, p: Plan) -> int:
    """What the parts leave."""
    return int(p.parts * c.channels * c.filters * 8)


MODELS = {"norms": norms, "lags": lags, "gram": gram}

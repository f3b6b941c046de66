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
"""Of a block, filters of a thread in phase 2 at most, and those up to which it is one (csrc/conv_cuda.h)."""
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
    """Of a map in csrc/lags_cuda.cu with stride 1: turns of the loop over three rows, rows outside it, and how often the sums
    of each row distance end."""
    k, top, high = c.kernel[1], c.before[1], c.out[1]
    turns, edges, ends = 0, 0, Counter[int]()
    r, end = top, top + c.size[1]
    while r < end:
        while r >= k - 1 and r + k <= min(high - 1, end - 1, r // 128 * 128 + 127):
            turns, r = turns + 1, r + k
        for d in range(k):
            ends[d] += r < k - 1 or r - d >= high - 1 or r == end - 1 or r % 128 == 127
        edges, r = edges + 1, r + 1
    return turns, edges, ends


def loop_of(kernel: Kernel, multiply_adds: int) -> Loop:
    found = [x for x in kernel.whole.in_order() if kernel.count(x, "FFMA") == multiply_adds]
    return only(f"{multiply_adds} multiply-adds", found)


def row_loop(kernel: Kernel, stride: int, columns: int) -> Loop:
    """Of a lags kernel: three rows with stride 1, two with stride 2."""
    outputs = columns // stride
    return loop_of(kernel, 3 * (13 * outputs + 14) if stride == 1 else 34 * outputs + 5)


def lags(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    stride = c.stride[2]
    kernel = named(found, f"4lagsI{TYPES[c.acts_type]}Li{stride}ELi{p.columns}ELNS_7ReadingE{p.reading}E")
    inner, turn = row_loop(kernel, stride, p.columns), int(math.log2(p.lanes))
    nest = kernel.around(inner)
    if len(nest) != 5:
        raise Unclear(f"{len(nest)} loops around the rows of lags")
    rows = nest[3]
    ending = [loop for loop in rows.inside if loop is not inner]
    if any(kernel.count(loop, "SHFL") == 0 for loop in ending) or len(ending) != (3 if stride == 1 else 6):
        raise Unclear("the sums of lags")

    if stride == 1:
        never = {loop.first for loop in ending}
        an_edge = kernel.way(rows, never=never)
        sums = [turn * kernel.way(loop) + kernel.way(rows, never=never - {loop.first}) - an_edge for loop in ending]
        turns, edges, ends = streamed_rows(c)
        a_map = turns * kernel.way(inner) + edges * an_edge + sum(n * sums[d] for d, n in ends.items())
        return Call(maps_call(found, kernel, c, p, a_map), kernel.way(inner) / (3 * p.outputs))

    top = c.before[1]
    last = min(top + c.size[1] - 1, 2 * c.out[1])
    first = top + 1 - top % 2  # an even row before it is left out: no layer has one
    turns, chunks = ceil_div(last - first + 1, 2), ceil_div(last - first + 1, 128)
    at_last, *always = ending  # sums end in the loop's last turn, which stands behind it, where the map's last window does
    a_chunk = kernel.way(rows, never={at_last.first})
    a_map = (turns - chunks) * kernel.way(inner) + chunks * (a_chunk + turn * sum(map(kernel.way, always)))
    if last == 2 * c.out[1]:
        a_map += kernel.way(rows) - a_chunk + turn * kernel.way(at_last)
    return Call(maps_call(found, kernel, c, p, a_map), kernel.way(inner) / (2 * stride * p.outputs))


def maps_call(found: dict[str, Kernel], kernel: Kernel, c: Conv, p: Plan, a_map: float) -> list[Queued]:
    """The launches of a call whose blocks have `THREADS` / lanes maps at once (csrc/lanes.h)."""
    group = kernel.whole.inside[-1]
    maps = group.inside[2]
    start = kernel.places(maps, "FFMA")  # of a map whose first row is even
    a_round = kernel.way(maps, never=start[:1]) + a_map
    rounds = ceil_div(min(p.samples, p.part_samples) * p.lanes, THREADS)
    groups = ceil_div(p.part_samples, p.samples)
    a_group = rounds * a_round + group_of_samples(kernel, group, c, p)
    count, phase_1 = kernel.way(kernel.whole) + groups * a_group, groups * rounds * a_round
    first = Queued(p.parts * c.channels, count, phase_1, c.samples * c.acts_n * ITEM[c.acts_type] + sum_bytes(c, p))
    return [first, finish(found, c, p)]


def group_of_samples(kernel: Kernel, group: Loop, c: Conv, p: Plan) -> float:
    """What a group of samples takes beside its maps: zeros before them, what to trust behind them, phase 2."""
    taps = math.prod(c.kernel)
    features = 4 * (ceil_div(taps * (taps + 1) // 2, 4) | 1)
    clear, small, _, judge = group.inside[:4]
    if kernel.count(clear, "STS") == 0 or len(judge.inside) != 1 or kernel.count(judge.inside[0], "LDS") != 1:
        raise Unclear("the loops of a group of samples")
    total: float = (
        kernel.way(group)
        + ceil_div(features * p.samples, kernel.count(clear, "STS") * THREADS) * kernel.way(clear)
        + kernel.way(small)
        + kernel.way(judge)
        + taps * kernel.way(judge.inside[0])
        + (phase_2_3x3 if p.lanes else phase_2)(kernel, group, c, p)
    )
    return total


def gram(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    if p.lanes:
        raise Unclear("windows has no model")  # no layer of the suites takes it
    near = c.kernel[2] == p.block and c.dilation[2] == 1
    stride = c.stride[2] if near and c.stride[2] <= 2 else 0
    kernel = named(found, f"4gramI{TYPES[c.acts_type]}Li{p.block}ELb{near:d}ELi{stride}E")
    wanted, groups = p.block**2, ceil_div(math.prod(c.kernel), p.block)
    products = loop_of(kernel, wanted)
    nest = kernel.around(products)
    if len(nest) != 7 or products.inside:
        raise Unclear(f"{len(nest)} loops around the products of gram")
    _, group, places, depth, rows, tile, _ = nest
    stage = only("the staged rows", [x for x in tile.inside if any(kernel.count(y, "LDG") for y in x.inside)])
    shuffles = only("the sums of slots", [x for x in places.inside if kernel.count(x, "SHFL") == wanted])

    rows_staged = p.staged * p.extent[0] * p.extent[1]
    lanes = min(32, max(8, THREADS // (1 << rows_staged.bit_length() - 1)))
    turns = [ceil_div(rows_staged, THREADS // lanes), ceil_div(p.extent[2], lanes)]
    element = stage.inside[0]
    load = kernel.places(element, "LDG")[-1:] + kernel.places(element, "STS")
    staging = turns[0] * (kernel.way(stage, through=[element.first]) + turns[1] * kernel.way(element, through=load))
    tiles = [(math.prod(extent), extent[2]) for extent in boxes(c, p)]
    run = {0: 1, 1: 7 if p.block == 7 else 8, 2: 16}[stride]  # run_of in csrc/conv_cuda.h
    runs = sum(ceil_div(size // wide * (wide // run), p.slots) for size, wide in tiles) if stride else 0
    rest = sum(ceil_div(size // wide * (wide % run if stride else wide), p.slots) for size, wide in tiles)
    a_run = kernel.way(loop_of(kernel, run_products(p.block, stride, run))) if stride else 0
    a_place = (
        kernel.way(places)
        + int(math.log2(p.slots)) * kernel.way(shuffles)
        + c.out[0] // p.box[0] * (kernel.way(depth) + ceil_div(c.out[1], p.box[1]) * kernel.way(rows))
        + len(tiles) * (kernel.way(tile) + staging)
        + runs * a_run
        + rest * kernel.way(products)
    )
    steps, at_once = ceil_div(p.part_samples, p.samples), ceil_div(p.samples, p.staged)
    a_group = at_once * a_place + group_of_samples(kernel, group, c, p)
    count = kernel.way(kernel.whole) + steps * a_group
    first = Queued(
        p.parts * c.channels, count, steps * at_once * a_place, c.samples * c.acts_n * ITEM[c.acts_type] + sum_bytes(c, p)
    )
    an_output = (runs * a_run + rest * kernel.way(products)) / (runs * run + rest)
    return Call([first, finish(found, c, p)], groups * (groups + 1) // 2 * an_output)


def run_products(k: int, stride: int, run: int) -> int:
    """Multiply-adds of two rows of taps for a run of outputs (csrc/runs.h)."""
    each = [sum(run + (k - 1 - shift - first) // stride for first in range(min(stride, k - shift))) for shift in range(k)]
    return 2 * sum(each) - each[0]


def boxes(c: Conv, p: Plan) -> list[tuple[int, ...]]:
    """Outputs of every tile of a map."""
    cuts = [[min(p.box[d], c.out[d] - at) for at in range(0, c.out[d], p.box[d])] for d in range(3)]
    return list(itertools.product(*cuts))


def phase_2(kernel: Kernel, group: Loop, c: Conv, p: Plan) -> float:
    """Of a block's samples (add_norms in csrc/forms.h), on average over its warps: not all load kernels and add up sums."""
    taps, samples, step = math.prod(c.kernel), p.samples, p.filters
    most = 1 if c.filters <= FEW else samples // 2 * step // THREADS
    each = 1 if most < 2 else 2 if most < PER_THREAD else PER_THREAD
    slots = THREADS * each // step
    filters = only("filters", [loop for loop in group.inside if len(loop.inside) == 3 + 1 + each])
    loads, (forms, *sums) = filters.inside[:3], filters.inside[3:]  # of kernels, by dtype
    if len(sums) != each:
        raise Unclear("the loops of phase 2")
    careful = kernel.places(forms, "FSETP.GE") if each > 1 else ()  # where something small may be lost
    row = only("rows of a form", forms.inside)
    element = only("elements of a row", row.inside)
    a_form = kernel.way(forms, never=careful) + taps * kernel.way(row) + taps * (taps + 1) // 2 * kernel.way(element)
    a_load = max(kernel.way(load) + taps * sum(map(kernel.way, load.inside)) for load in loads)
    adding = (slots - 1) * sum(map(kernel.way, sums)) * max(step // each, 32) / THREADS
    steps: int = ceil_div(c.filters, step)
    loading = a_load * max(step / THREADS, 1) / groups_served(c, p)
    a_step: float = kernel.way(filters) + loading + ceil_div(samples // 2, slots) * a_form + adding
    return steps * a_step


def phase_2_3x3(kernel: Kernel, group: Loop, c: Conv, p: Plan) -> float:
    """The same of add_norms_3x3 in csrc/forms_3x3.h."""
    filters = only("filters", [loop for loop in group.inside if any(kernel.count(x, "HMMA") for x in loop.inside)])
    *loads, columns, adding = filters.inside
    if len(loads) != 3 or len(adding.inside) != 1:
        raise Unclear("the loops of phase 2 of 3x3")
    maps, last = p.samples // 32, (c.filters - 1) % p.filters + 1
    turns = [ceil_div(ceil_div(count, 8), THREADS // 32 // maps) for count in (p.filters, last)]
    a_column = kernel.way(columns, never=kernel.places(columns, "FSETP.GE"))  # where nothing small may be lost
    a_step: float = kernel.way(filters) + kernel.way(adding) + maps * kernel.way(adding.inside[0])
    a_step += max(map(kernel.way, loads)) / groups_served(c, p)
    steps: int = ceil_div(c.filters, p.filters)
    return steps * a_step + ((steps - 1) * turns[0] + turns[1]) * a_column


def groups_served(c: Conv, p: Plan) -> int:
    """Groups of a part's samples that kernels are loaded for once."""
    return 1 if c.filters > p.filters else ceil_div(p.part_samples, p.samples)


def strided_sum(kernel: Kernel, several: Loop, single: Loop, n: int, count: int) -> int:
    """`count` terms, n of them at a time (csrc/magnitude.h)."""
    if (kernel.count(several, "DADD"), kernel.count(single, "DADD")) != (n, 1):
        raise Unclear("the loops of a strided sum")
    return count // n * kernel.way(several) + count % n * kernel.way(single)


def finish(found: dict[str, Kernel], c: Conv, p: Plan) -> Queued:
    """Where every part's sums are good."""
    kernel = named(found, "6finishIf")
    flags, several, single, _ = kernel.whole.inside
    if kernel.count(flags, "LDG") != 1:
        raise Unclear("the flags of finish")
    checked = ceil_div(p.parts, THREADS) * kernel.way(flags)
    count = kernel.way(kernel.whole) + checked + strided_sum(kernel, several, single, 8, p.parts)
    return Queued(c.channels * ceil_div(c.filters, THREADS), count, 0, sum_bytes(c, p))


def norms(found: dict[str, Kernel], c: Conv, p: Plan) -> Call:
    pixels = math.prod(c.size)
    even = c.size[1] == 1 or c.acts_x[1] == c.size[2] * c.acts_x[2]
    piece, lanes = p.columns, p.lanes
    kernel = named(found, f"5normsI{TYPES[c.acts_type]}Li{piece}E")
    samples = only("samples", kernel.whole.inside)
    *several, shuffles = samples.inside
    single = [at for at, loop in enumerate(several) if kernel.count(loop, "LDG") == 1]
    if len(several) != 3 or len(single) != 1 or single == [0] or kernel.count(shuffles, "SHFL") != 2:
        raise Unclear("the loops of norms")
    rest, joined, strided = several.pop(single[0]), several.pop(single[0] - 1), several[0]
    loads = ceil_div(pixels, piece)
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
    scaled = scaling.way(scaling.whole) + strided_sum(scaling, fours, ones, 4, ceil_div(p.parts, THREADS // 32))
    per_group = c.channels // c.groups
    connections, blocks = c.groups * c.filters * per_group, c.groups * ceil_div(c.filters, 16) * ceil_div(per_group, 32)
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

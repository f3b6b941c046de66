"""Which kernel a call takes, and in what blocks: by shape and architecture, from the table below, never by trial."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...geometry import ConvGeometry

PATHS = ("norms", "lags", "direct", "gram", "matrix", "float64 maps", "mean map")
"""norms.py, lags.py, direct.py, gram.py or matrix.py with finish.py behind it; finish.py alone; columns.py before it."""

MOST_TAPS = 64  # of matrix.py: its Gram matrix stays in registers
LAG_TAPS = 3  # per dimension, of lags.py and gram.py: the 45 features of 9 elements are a thread's registers
DIRECT_TAPS = 7  # per dimension, of direct.py: each is a register
DIRECT_COLUMNS = 8  # of its tiles
DIRECT_PRODUCTS = 1280  # per output, of all filters, from which on matrix.py is faster,
DIRECT_PRODUCTS_16 = 512  # and of up to 16 taps, whose Gram matrices are smaller tiles
ROW_SIZE = 256  # of a map's sides, where kernels go row by row: bounds the float32 sums
PARTIAL_BYTES = 8 << 20  # of partial sums, wherever one chunk of samples does not already need more
FEW_PROGRAMS = 128  # about as many as a chip has multiprocessors: lags.py cuts a call's maps further where it has fewer
NARROWEST = 8  # columns of a tile that is cut for that reason
PROGRAMS = 2048  # that a launch tries to reach by cutting the samples into chunks: 8 and more per multiprocessor


@dataclass(frozen=True)
class Target:
    """A chip, as Triton names it: ("cuda", 90, 32), ("hip", "gfx942", 64)."""

    backend: str
    arch: int | str
    warp: int


@dataclass(frozen=True)
class Blocks:
    """What an architecture's registers and matrix units ask for."""

    threads: int  # of a program of lags.py and gram.py; each holds one map, or one tile of it
    columns: int  # of a tile of lags.py: a thread keeps three rows of it
    strided_columns: int  # the same at stride 2, which has more sums
    filters: int  # of one step of phase 2, where all threads take part
    outputs: int  # of one step of matrix.py with 64 rows of kernel elements
    precision: str  # of the products with the weight features


def blocks(target: Target) -> Blocks:
    """The table. Chips with tf32 units take three tf32 products for a float32 one; CDNA has float32 matrix units."""
    if target.backend == "hip":
        return Blocks(threads=128, columns=32, strided_columns=32, filters=16, outputs=32, precision="ieee")
    if target.arch == 100:  # its tensor memory takes 64 rows and more from 4 warps, and the moves there would spill
        return Blocks(threads=64, columns=32, strided_columns=16, filters=8, outputs=32, precision="tf32x3")
    if target.arch == 90 and triton_version() >= (3, 8):  # older ones would spill
        return Blocks(threads=128, columns=32, strided_columns=32, filters=32, outputs=32, precision="tf32x3")
    return Blocks(threads=128, columns=32, strided_columns=16, filters=16, outputs=16, precision="tf32x3")


def blocks_for(acts: Tensor, target: Target) -> Blocks:
    """The table's, with narrower tiles where a row's pixels are no neighbours in memory: each column then has an address."""
    found = blocks(target)
    if acts.stride(-1) == 1:
        return found
    return replace(found, columns=found.columns // 2, strided_columns=min(found.strided_columns, found.columns // 2))


@functools.cache
def triton_version() -> tuple[int, ...]:
    """Major and minor."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2]))


@functools.cache
def current_target(device_index: int | None) -> Target:
    """The chip of a CUDA or ROCm device; for the interpreter, which has none, one whose plans are tested with it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Target("cuda", 90, 32)
    from triton.runtime import driver

    with torch.cuda.device(device_index):
        found = driver.active.get_current_target()
    return Target(found.backend, found.arch, found.warp_size)


def three(values: tuple[Any, ...], fill: Any) -> tuple[Any, Any, Any]:
    """One value per dimension of a map, as of a 3-d map with leading dimensions of size 1."""
    d, h, w = (fill,) * (3 - len(values)) + values
    return d, h, w


def power_of_two(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(0, value - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiles:
    """How lags.py cuts a map's rows: `count` tiles of `width` columns, the last of them narrower."""

    width: int
    count: int


def tiles_of(geometry: ConvGeometry, count: int) -> Tiles:
    width, stride = three(geometry.size, 1)[2], three(geometry.stride, 1)[2]
    return Tiles(ceil_div(ceil_div(width, count), stride) * stride, count)  # each begins where a window of every class does


def edges_in_one_tile(geometry: ConvGeometry, tiles: Tiles) -> bool:
    """Whether the columns that some window leaves out lie in a map's first and last tile."""
    last = three(geometry.size, 1)[2] - (tiles.count - 1) * tiles.width
    return tiles.count == 1 or last >= max(1, 2 * (three(geometry.kernel, 1)[2] - 1))


def lag_tiles(geometry: ConvGeometry, blocks: Blocks, maps: int) -> Tiles:
    """As few as hold a map, and more where a call's `maps` (of all samples and channels) leave multiprocessors idle."""
    most = blocks.columns if three(geometry.stride, 1)[2] == 1 else blocks.strided_columns
    tiles = tiles_of(geometry, power_of_two(ceil_div(three(geometry.size, 1)[2], most)))
    while 2 * maps * tiles.count <= FEW_PROGRAMS * blocks.threads:
        narrower = tiles_of(geometry, 2 * tiles.count)
        if narrower.width < NARROWEST or not edges_in_one_tile(geometry, narrower):
            break
        tiles = narrower
    return tiles


def rows_serve(geometry: ConvGeometry, most: int) -> bool:
    """Whether the kernels that go through a map row by row take the convolution, of at most so many taps per dimension."""
    kernel, stride, dilation = three(geometry.kernel, 1), three(geometry.stride, 1), three(geometry.dilation, 1)
    depth, height, width = three(geometry.size, 1)
    return (
        kernel[0] == depth == 1
        and max(kernel) <= most
        and max(height, width) <= ROW_SIZE
        and max(stride[1:]) <= 2
        and all(k == 1 or d == 1 for k, d in zip(kernel, dilation))
        and (geometry.padding_mode == "zeros" or not any(map(any, geometry.padding)))
    )


def lags_serve(geometry: ConvGeometry, blocks: Blocks, maps: int) -> bool:
    return rows_serve(geometry, LAG_TAPS) and edges_in_one_tile(geometry, lag_tiles(geometry, blocks, maps))


def direct_serves(geometry: ConvGeometry, filters: int) -> bool:
    return (
        rows_serve(geometry, DIRECT_TAPS)
        and geometry.taps > LAG_TAPS**2
        and geometry.taps * filters <= (DIRECT_PRODUCTS if geometry.taps > 16 else DIRECT_PRODUCTS_16)
        and all(before < k for (before, _), k in zip(geometry.padding, geometry.kernel))
    )


def direct_tiles(geometry: ConvGeometry) -> Tiles:
    """Of outputs; the last ones may be empty."""
    width = three(geometry.out, 1)[2]
    return Tiles(DIRECT_COLUMNS, power_of_two(ceil_div(width, DIRECT_COLUMNS)))


def direct_samples(samples: int, blocks: Blocks, tiles: Tiles) -> int:
    """Samples of one program's tile: for all threads, or at least a warp of 32."""
    return max(1, 32 // tiles.count, min(blocks.threads // tiles.count, power_of_two(samples)))


def conv_path(weight: Tensor, acts: Tensor, geometry: ConvGeometry, variant: str, target: Target) -> str:
    if variant != "paper":
        return "mean map"
    if torch.float64 in (weight.dtype, acts.dtype):
        return "float64 maps"
    if geometry.taps == 1:
        return "norms"
    if lags_serve(geometry, blocks_for(acts, target), acts.shape[0] * acts.shape[1]):
        return "lags"
    if direct_serves(geometry, weight.shape[0] // geometry.groups):
        return "direct"
    return "gram" if geometry.taps <= LAG_TAPS**2 else "matrix"


@dataclass(frozen=True)
class Chunks:
    """How the samples are cut: `count` chunks of `size` samples, each a program per channel."""

    size: int
    count: int


def chunks(samples: int, block: int, programs: int, partial: int) -> Chunks:
    """Chunks of whole blocks, so many that `programs` per chunk fill a chip and `partial` bytes per chunk stay few."""
    most = max(1, min(ceil_div(PROGRAMS, programs), PARTIAL_BYTES // partial))
    size = ceil_div(ceil_div(samples, block), most) * block
    return Chunks(size, ceil_div(samples, size))


def vector(x: Tensor, strides: tuple[int, ...]) -> int:
    """How many neighbouring elements one load may take: what divides all strides, and the address, up to 16 bytes."""
    item = x.element_size()
    address = 0 if x.device.type == "meta" else x.data_ptr() // item
    return math.gcd(16 // item, address, *strides)


def samples_at_once(samples: int, lanes: int, blocks: Blocks) -> int:
    """Samples of one program's tile where a map takes `lanes` threads: as many as there are, for at most all threads and at
    least 64 of them (what one warp alone has to hold spills) and half the 16 rows of a product."""
    return max(8, 64 // lanes, min(blocks.threads // lanes, power_of_two(samples)))


def filters_at_once(filters: int, threads: int, blocks: Blocks) -> int:
    """Filters of one step of phase 2 in a program of so many threads: the 16 rows of their kernels need an element for every
    thread."""
    most = blocks.filters * min(threads, blocks.threads) // blocks.threads
    return max(8, min(most, power_of_two(filters)), threads // 16)


def sample_block(path: str, samples: int, channels: int, geometry: ConvGeometry, blocks: Blocks) -> int:
    """Samples of a program's tile on one of the paths with features."""
    if path == "matrix":
        return 1
    if path == "direct":
        return direct_samples(samples, blocks, direct_tiles(geometry))
    lanes = lag_tiles(geometry, blocks, samples * channels).count if path == "lags" else lanes_of_map(geometry)
    return samples_at_once(samples, lanes, blocks)


def lanes_of_map(geometry: ConvGeometry) -> int:
    """Threads of gram.py per map: neighbours share what they load, but leave fewer samples to one product of phase 2."""
    return 8 if geometry.positions >= 256 else 4 if geometry.positions >= 64 else min(2, geometry.positions)


@dataclass(frozen=True)
class NormBlocks:
    channels: int
    positions: int


def norm_blocks(channels: int, positions: int, order: str) -> NormBlocks:
    """A tile of norms.py: of long rows where pixels are neighbours, of many channels where those are."""
    pixels, longest = {"rows": (2048, 256), "channels last": (4096, 64), "any": (1024, 256)}[order]
    width = min(longest, power_of_two(positions))
    return NormBlocks(min(pixels // width, power_of_two(channels)), width)


@dataclass(frozen=True)
class FinishBlock:
    """A tile of finish.py: filters by parts of sums, or, for a map that is scored once more, by its outputs."""

    filters: int
    outputs: int
    parts: int


def finish_block(before: str, parts: int) -> FinishBlock:
    """As wide over the filters, which are neighbours in memory, as the number of parts leaves registers for."""
    if before == "nothing":
        return FinishBlock(32, 32, 1)
    if before == "channel":  # its parts are one number each
        return FinishBlock(128, 8, 128)
    return FinishBlock(32, 32, 32) if parts > 8 else FinishBlock(128, 8, 8)


COLUMN_TILE = 4096  # elements


def column_block(columns: int) -> int:
    """Columns of one program of columns.py."""
    return min(128, power_of_two(columns))


def column_chunks(rows: int, columns: int) -> Chunks:
    block = column_block(columns)
    return chunks(rows, COLUMN_TILE // block, ceil_div(columns, block), 8 * columns)

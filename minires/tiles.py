"""Which sizes a kernel's template gets for which shape: a table of numbers for each device, and why they are as they are.

A GPU wants many threads with small parts, at least 8 warps for each multiprocessor; its widest load is 16 bytes, and a word
from shared memory or the first cache must feed four multiply-adds. A CPU wants parts that fill its vector registers, and few
threads, since each waits at every barrier. Sizes are explained in the kernels' headers, and measured in kernels/README.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import device

SHARED = 48 * 1024  # bytes that every GPU grants a block, and that a CPU's first cache holds
Launch = tuple[Any, ...]  # a kernel's instance, grid and block; and what else is said


@dataclass(frozen=True)
class Tiles:
    """A device's numbers."""

    pixels: Sequence[tuple[int, int]]  # rows and columns of a block's tile of an image, the largest first
    vector: int  # bytes of neighbouring channels that a thread has
    sums: int  # bytes of sums that a thread of a convolution has in registers
    part_rows: int  # pixels of a column that it has, at most
    threads: int  # of a block whose parts any number of threads can share, at most
    pairs: int  # channels in, and out, that a block of the filters' gradient has
    pair_pixels: int  # of a row that it does together
    pair_sums: int  # bytes of sums of a tap
    gemm: Sequence[tuple[int, int, int, int, int]]  # rows, columns, depth of a block's tile; rows, columns of a thread
    columns: int  # that a block adds up: 8 floats are a sector, 16 a line of a cache
    column_run: int  # neighbours of them that a thread has
    sgd: tuple[int, int]  # of sgd_step: neighbours that a thread takes at a time, threads of a block
    blocks: int  # wanted of what can be cut into any number; it is the same for any number of processors


TABLES = {
    # 8 x 4 sums: 40 words of pixels and 48 of weights feed 384 multiply-adds; of the filters' gradient, 30 and 32 feed 288.
    "cuda": Tiles(
        pixels=((8, 32), (8, 16), (8, 8), (4, 8), (4, 4), (2, 4)),
        vector=16,
        sums=128,
        part_rows=8,
        threads=256,
        pairs=16,
        pair_pixels=8,
        pair_sums=16,
        gemm=((64, 64, 16, 8, 8),),
        columns=8,
        column_run=1,
        sgd=(1, 256),
        blocks=512,
    ),
    # 16 sums of 64 bytes leave registers for the weights. One thread does all parts of a tile in turn.
    "cpu": Tiles(
        pixels=((16, 32), (8, 32), (16, 16), (8, 16), (8, 8), (4, 8), (4, 4), (2, 4)),
        vector=128,
        sums=1024,
        part_rows=8,
        threads=1,
        pairs=64,
        pair_pixels=1,
        pair_sums=128,
        gemm=((64, 64, 32, 8, 32), (64, 32, 32, 8, 32), (64, 16, 32, 16, 16)),
        columns=64,
        column_run=64,
        sgd=(4096, 1),  # each thread gets a copy of 2 KB of pointers
        blocks=32,
    ),
}


def table() -> Tiles:
    """The current device's."""
    return TABLES[device.current().tiling]


def run_of(n: int, most: int) -> int:
    """The largest power of two up to `most`, itself one, that divides n: kernels/common.cuh has it too."""
    return most if n % most == 0 else run_of(n, most // 2)


def run(n: int, dtype: np.dtype) -> int:
    """How many of n neighbours a thread takes that has nothing but neighbours."""
    return run_of(n, table().vector // dtype.itemsize)


def _divisor(n: int, most: int) -> int:
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def _named(kernel: str, *sizes: Any) -> str:
    return f"{kernel}<{', '.join(str(size).lower() for size in sizes)}>"


def serves(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], c: int, o: int) -> bool:
    """Whether the 3 x 3 kernels compute convolutions of this geometry, from c channels to o."""
    geometry = tuple(kernel) == (3, 3) and stride in ((1, 1), (2, 2)) and max(padding) <= 2
    return geometry and max(c, o) <= 64 and o % 4 == 0


@functools.cache
def _pixels(
    now: Tiles, places: tuple[int, int], stride: int, halo_bytes: int, bytes_too: int = 0
) -> tuple[int, int, int]:
    """Rows and columns of the tile that covers the places with the least overhang, the largest of equal ones that fit into
    shared memory: with its halo, of so many bytes a pixel, and a tile without; and how many such tiles there are."""

    def tiles(tile: tuple[int, int]) -> int:
        return -(-places[0] // tile[0]) * -(-places[1] // tile[1])

    def fits(tile: tuple[int, int]) -> bool:
        height, width = ((side - 1) * stride + 3 for side in tile)
        return height * width * halo_bytes + tile[0] * tile[1] * bytes_too <= SHARED

    best = min(filter(fits, now.pixels), key=lambda tile: tiles(tile) * tile[0] * tile[1])
    return *best, tiles(best)


def conv(n: int, c: int, o: int, places: tuple[int, int], stride: int, dtype: np.dtype, *options: bool) -> Launch:
    """The convolution of n images from c channels to o, with so many rows and columns of output pixels."""
    now, size = table(), dtype.itemsize
    rows, columns, tiles = _pixels(now, places, stride, (c + 4) * size)
    to = run_of(o, now.vector // size)
    tp = min(rows, now.part_rows // stride, now.sums // size // to)
    threads = min(rows // tp * columns * o // to, now.threads)
    return _named("conv3x3", rows, columns, tp, to, c, o, stride, *options), (n * tiles,), (threads,)


def strided_gradient(n: int, o: int, c: int, places: tuple[int, int], dtype: np.dtype) -> Launch:
    """The input gradient of a convolution with stride 2, from o channels to c, for so many fours of pixels."""
    now, size = table(), dtype.itemsize
    rows, columns, tiles = _pixels(now, places, 1, (o + 4) * size)
    to = run_of(c, min(now.vector, 64) // size)
    tp = min(rows, max(now.sums // size // to // 4, 1))
    threads = min(rows // tp * columns * c // to, now.threads)
    return _named("conv3x3_strided_gradient", rows, columns, tp, to, o, c), (n * tiles,), (threads,)


def weight(n: int, c: int, o: int, places: tuple[int, int], stride: int, dtype: np.dtype) -> Launch:
    """The gradient of the filters; besides, the tiles of a chunk. grid[2] is the number of chunks."""
    now, size = table(), dtype.itemsize
    to = run_of(o, now.vector // size)
    bc, bo = _divisor(c, now.pairs), to * _divisor(o // to, max(now.pairs // to, 1))
    tc = _divisor(bc, max(now.pair_sums // size // to, 1))
    rows, columns, tiles = _pixels(now, places, stride, bc * size, bo * size)
    pairs = c // bc, o // bo
    chunk = -(-n * tiles // max(now.blocks // (pairs[0] * pairs[1]), 1))
    name = _named("conv3x3_weight", rows, columns, min(now.pair_pixels, columns), bc, bo, tc, to, stride)
    return name, (*pairs, -(-n * tiles // chunk)), (bc // tc * bo // to,), chunk


def gemm(m: int, n: int, k: int, *transposed: bool) -> Launch:
    """The product of m x k and k x n, by the tile with the least overhang; besides, the depth of a chunk of k: more than one
    where there are few tiles. grid[2] is the number of chunks."""
    bm, bn, bk, tm, tn = min(table().gemm, key=lambda t: -(-m // t[0]) * -(-n // t[1]) * t[0] * t[1])
    tiles = -(-n // bn), -(-m // bm)
    chunks = min(max(table().blocks // (tiles[0] * tiles[1]), 1), -(-k // (16 * bk)))
    depth = -(-k // (chunks * bk)) * bk
    return (
        _named("gemm_blocked", bm, bn, bk, tm, tn, *transposed),
        (*tiles, -(-k // depth)),
        (bm // tm * bn // tn,),
        depth,
    )


def columns(m: int, c: int, kernel: str, *options: bool) -> Launch:
    """A kernel that adds up the columns of an m x c matrix; besides, the columns of a block and the rows of a chunk. grid[1]
    is the number of chunks."""
    now = table()
    strips = -(-c // now.columns)
    rows = max(-(-m // max(now.blocks // strips, 1)), 16)
    return (
        _named(kernel, run_of(c, now.column_run), *options),
        (strips, -(-m // rows)),
        (now.threads,),
        now.columns,
        rows,
    )


def sgd(parameters: int, largest: int) -> Launch:
    """The step for some parameters, the largest of which has so many elements."""
    run, threads = table().sgd
    return f"sgd_step<{run}>", (parameters, min(-(-largest // (run * threads)), 256)), (threads,)

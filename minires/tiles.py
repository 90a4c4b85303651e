"""Which sizes a kernel's template gets for which shape: a table of numbers for each device, and why they are as they are.

A GPU wants many threads with small parts, at least 8 warps a multiprocessor; its widest load is 16 bytes, and a word that is
loaded must feed four multiply-adds: a thread's 8 x 4 sums take 40 words of pixels and 48 of weights for 384 of them. A CPU
wants parts that fill its vector registers, 16 sums of 64 bytes, and few threads, since each waits at every barrier.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import device

_SMALL = (8, 16), (8, 8), (4, 8), (2, 4)
NUMBERS: dict[str, tuple[Any, Any]] = {  # of the cuda device, of the cpu device
    # Rows and columns of a block's tile of an image, the largest first.
    "pixels": (((8, 32), *_SMALL), ((16, 32), (8, 32), (16, 16), *_SMALL)),
    "vector": (16, 128),  # bytes of neighbouring channels that a thread has
    "sums": (128, 1024),  # bytes of sums that a thread of a convolution has in registers, for 8 rows of pixels at most
    "threads": (256, 1),  # of a block whose parts any number of threads can share, at most
    "pairs": (16, 64),  # channels in, and out, that a block of the filters' gradient has
    "pair_pixels": (8, 4),  # of a row that it does together
    "pair_sums": (16, 128),  # bytes of sums of a tap
    # Rows, columns and depth of a block's tile of a product; rows and columns of a thread.
    "gemm": (((64, 64, 16, 8, 8),), (*((64, n, 32, 8, 32) for n in (128, 96, 64, 32)), (64, 16, 32, 16, 16))),
    "columns": (8, 64),  # that a block adds up, or more if a thread would have fewer than 8 rows: 8 floats are a sector
    "column_run": (1, 64),  # neighbours of them that a thread has
    "rows": (4, 16),  # of a chunk that a thread adds up, at least: to put threads and chunks together takes longer
    "sgd": ((1, 256), (4096, 1)),  # neighbours a thread takes at a time; threads of a block, each with 2 KB of pointers
    "blocks": (512, 32),  # wanted of what can be cut into any number; it is the same for any number of processors
}
TABLES = {d: SimpleNamespace(**{k: v[i] for k, v in NUMBERS.items()}) for i, d in enumerate(("cuda", "cpu"))}
SHARED = 48 * 1024  # bytes that every GPU grants a block, and that a CPU's first cache holds
Launch = tuple[Any, ...]  # a kernel's instance, grid and block; and what else is said


def table() -> SimpleNamespace:
    """The current device's."""
    return TABLES[device.current().tiling]


def run(n: int, dtype: np.dtype) -> int:
    """How many of n neighbours a thread takes that has nothing but neighbours: a power of two that divides n."""
    return _run_of(n, table().vector // dtype.itemsize)


def _run_of(n: int, most: int) -> int:
    return most if n % most == 0 else _run_of(n, most // 2)


def _divisor(n: int, most: int) -> int:
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def _named(kernel: str, *sizes: Any) -> str:
    return f"{kernel}<{', '.join(str(size).lower() for size in sizes)}>"


def serves(window: tuple[int, ...], c: int, o: int) -> bool:
    """Whether the 3 x 3 kernels compute convolutions of this window, its size, strides and paddings, from c channels to o."""
    fits = window[:4] in ((3, 3, 1, 1), (3, 3, 2, 2)) and max(window[4:]) <= 2
    return fits and max(c, o) <= 64 and o % 4 == 0


@functools.cache
def _pixels(tiling: str, height: int, width: int, stride: int, halo_bytes: int, more: int = 0) -> tuple[int, int, int]:
    """Rows and columns of the tile that covers height x width with the least overhang, of those that fit into shared memory:
    with a halo, of `halo_bytes` a pixel, and without, of `more`. And how many such tiles there are."""
    halo = {t: (((t[0] - 1) * stride + 3) * ((t[1] - 1) * stride + 3)) for t in TABLES[tiling].pixels}
    count = {t: -(-height // t[0]) * -(-width // t[1]) for t in halo}
    fitting = [t for t in halo if halo[t] * halo_bytes + t[0] * t[1] * more <= SHARED]
    return min(((*t, count[t]) for t in fitting), key=lambda t: t[0] * t[1] * t[2])


def conv(n: int, c: int, o: int, places: tuple[int, int], stride: int, dtype: np.dtype, *options: bool) -> Launch:
    """The convolution of n images from c channels to o, with so many rows and columns of output pixels."""
    now, size = table(), dtype.itemsize
    rows, columns, tiles = _pixels(device.current().tiling, *places, stride, (c + 4) * size)
    to = run(o, dtype)
    tp = min(rows, 8 // stride, now.sums // size // to)
    name = _named("conv3x3", rows, columns, tp, to, c, o, stride, *options)
    return name, (n * tiles,), (min(rows // tp * columns * o // to, now.threads),)


def strided_gradient(n: int, o: int, c: int, places: tuple[int, int], dtype: np.dtype) -> Launch:
    """The input gradient of a convolution with stride 2, from o channels to c, for so many fours of pixels."""
    now, size = table(), dtype.itemsize
    rows, columns, tiles = _pixels(device.current().tiling, *places, 1, (o + 4) * size)
    to = _run_of(c, min(now.vector, 64) // size)
    tp = min(rows, max(now.sums // size // to // 4, 1))
    name = _named("conv3x3_strided_gradient", rows, columns, tp, to, o, c)
    return name, (n * tiles,), (min(rows // tp * columns * c // to, now.threads),)


def weight(n: int, c: int, o: int, places: tuple[int, int], stride: int, dtype: np.dtype) -> Launch:
    """The gradient of the filters; besides, the tiles of a chunk. grid[2] is the number of chunks."""
    now, size, to = table(), dtype.itemsize, run(o, dtype)
    bc, bo = _divisor(c, now.pairs), to * _divisor(o // to, max(now.pairs // to, 1))
    tc = _divisor(bc, max(now.pair_sums // size // to, 1))
    rows, columns, tiles = _pixels(device.current().tiling, *places, stride, bc * size, bo * size)
    chunk = -(-n * tiles // max(now.blocks // (c // bc * o // bo), 1))
    name = _named("conv3x3_weight", rows, columns, min(now.pair_pixels, columns), bc, bo, tc, to, stride)
    return name, (c // bc, o // bo, -(-n * tiles // chunk)), (min(bc // tc * bo // to, now.threads),), chunk


def gemm(m: int, n: int, k: int, transposed: bool) -> Launch:
    """The product of m x k and k x n; besides, the depth of a chunk of k. grid[2] is their number, 1 where tiles are many."""
    bm, bn, bk, tm, tn = min(table().gemm, key=lambda t: -(-m // t[0]) * -(-n // t[1]) * t[0] * t[1])
    x, y, threads = -(-n // bn), -(-m // bm), min(bm // tm * bn // tn, table().threads)
    chunks = min(max(table().blocks // (x * y), 1), -(-k // (16 * bk)))
    depth = -(-k // (chunks * bk)) * bk
    return _named("gemm_blocked", bm, bn, bk, tm, tn, threads, transposed), (x, y, -(-k // depth)), (threads,), depth


def columns(m: int, c: int, kernel: str, *options: bool) -> Launch:
    """To add up the columns of an m x c matrix; besides, the columns of a block and the rows of a chunk, grid[1] of them."""
    now, run = table(), _run_of(c, table().column_run)
    wide = min(max(now.columns, 1 << (8 * now.threads * run // m).bit_length() >> 1), 256)  # Strip::MOST of common.cuh
    strips = -(-c // wide)
    rows = max(-(-m // max(now.blocks // strips, 1)), now.rows * max(now.threads * run // wide, 1))
    return _named(kernel, run, *options), (strips, -(-m // rows)), (now.threads,), wide, rows


def sgd(parameters: int, largest: int) -> Launch:
    """The step for some parameters, the largest of which has so many elements."""
    run, threads = table().sgd
    return f"sgd_step<{run}>", (parameters, min(-(-largest // (run * threads)), 256)), (threads,)

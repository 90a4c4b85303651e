"""Which instance of a kernel's template serves which shape: a table for each device, and why its rows are as they are.

A GPU wants many threads with small tiles, neighbouring lanes at neighbouring addresses, and at least 8 warps for each
multiprocessor. A CPU wants few threads, since each waits at every barrier, with tiles that fill its vector registers and
stay in a core's first cache. Sizes stand in the kernels' headers, and the counters and figures behind them in
kernels/README.md; examples/inspect_kernel.py --step shows what becomes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import device


class _Tile:
    @property
    def arguments(self) -> str:
        """Of the template, as C++ has them."""
        return ", ".join(str(v).lower() for v in vars(self).values())


@dataclass(frozen=True)
class Conv(_Tile):
    """conv3x3: images, channels, rows and columns of a block; channels, rows and columns of a part of it."""

    images: int
    channels: int
    rows: int
    columns: int
    part_channels: int
    part_rows: int
    part_columns: int

    @property
    def threads(self) -> int:
        """Of a block: one for each part, or one for all where a part's columns are a vector, on a CPU."""
        values = self.images * self.channels * self.rows * self.columns
        return 1 if self.part_columns > 1 else values // (self.part_channels * self.part_rows)

    def overhang(self, n: int, o: int, oh: int, ow: int) -> int:
        """How many values the tiles compute that cover n x o x oh x ow."""
        sizes = (self.images, n), (self.channels, o), (self.rows, oh), (self.columns, ow)
        total = 1
        for tile, size in sizes:
            total *= -(-size // tile) * tile
        return total

    def grid(self, n: int, o: int, oh: int, ow: int) -> tuple[int, int]:
        """The blocks that cover n x o x oh x ow."""
        tiles = -(-n // self.images) * -(-oh // self.rows) * -(-ow // self.columns)
        return tiles, -(-o // self.channels)


@dataclass(frozen=True)
class Weight(_Tile):
    """conv3x3_weight: rows and columns of a tile of pixels; channels in and out, and pixels at a time, of a thread."""

    rows: int
    columns: int
    thread_in: int
    thread_out: int
    pixels: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 256 // (self.thread_in * self.thread_out)


@dataclass(frozen=True)
class Gemm(_Tile):
    """gemm_blocked: rows, columns and depth of a block's tile; rows and columns of a thread; whether these are spread."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    striped: bool

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)


@dataclass(frozen=True)
class Tiles:
    """A device's table; the keys 1 and 2 are the stride."""

    conv: dict[int, Sequence[Conv]]
    strided_gradient: Sequence[Conv]
    weight: dict[int, Sequence[Weight]]  # the widest first: the first that is no wider than the image serves
    gemm: Sequence[Gemm]
    run: int  # neighbours that an element-wise or reducing thread takes at a time
    sum_run: int  # the same of conv3x3_weight_sum
    sgd: tuple[int, int]  # of sgd_step: neighbours that a thread takes at a time, threads of a block
    reduction_threads: int  # of a block that adds up a chunk of a channel
    chunk: int  # values of a channel that such a block adds up, at most
    blocks: int  # wanted of what can be cut into any number; it is the same for any number of processors


TABLES = {
    "cuda": Tiles(
        # 4 x 8 sums a thread: 66 loads from shared memory feed 288 multiply-adds, and 32 sums, a column of 10 pixels and a
        # weight fit into 128 registers. A row of lanes is a row of the image, in the stages of 32, 16 and 8 columns.
        conv={
            1: (Conv(1, 16, 8, 32, 4, 8, 1), Conv(1, 32, 8, 16, 4, 8, 1), Conv(1, 64, 8, 8, 4, 8, 1)),
            2: (Conv(1, 32, 8, 16, 4, 4, 1), Conv(1, 64, 8, 8, 4, 4, 1)),
        },
        strided_gradient=(Conv(1, 16, 8, 16, 2, 4, 1), Conv(1, 32, 8, 8, 2, 4, 1)),
        # All nine taps of 1 x 4 pairs: 34 loads feed 144 multiply-adds. Two warps a block, and 512 blocks.
        weight={
            1: (Weight(4, 32, 1, 4, 4), Weight(8, 16, 1, 4, 4), Weight(8, 8, 1, 4, 4)),
            2: (Weight(4, 16, 1, 4, 4), Weight(8, 8, 1, 4, 4)),
        },
        gemm=(Gemm(64, 64, 16, 8, 4, True),),
        run=1,
        sum_run=1,
        sgd=(1, 256),
        reduction_threads=256,
        chunk=16384,
        blocks=512,
    ),
    "cpu": Tiles(
        # 8 channels of two vectors of 16 pixels are 16 sums in registers, of 32. As many pixels a block as the first cache
        # holds, with their halo, so that the weights, which are brought into order for each block, cost little.
        conv={
            1: (Conv(1, 16, 32, 32, 8, 2, 16), Conv(2, 32, 16, 16, 8, 2, 16), Conv(4, 64, 8, 8, 8, 2, 16)),
            2: (Conv(1, 32, 16, 16, 8, 2, 16), Conv(2, 64, 8, 8, 8, 2, 8)),
        },
        strided_gradient=(Conv(1, 16, 16, 16, 4, 1, 16), Conv(1, 32, 8, 8, 4, 2, 8)),
        # All nine taps of 2 x 16 pairs are 18 vectors of sums.
        weight={
            1: (Weight(8, 32, 2, 16, 1), Weight(16, 16, 2, 16, 1), Weight(8, 8, 2, 16, 1)),
            2: (Weight(8, 16, 2, 16, 1), Weight(8, 8, 2, 16, 1)),
        },
        # Three shapes: a convolution's matrices are as high as it has channels, 16, 32 or 64.
        gemm=(Gemm(64, 64, 32, 8, 16, False), Gemm(32, 128, 32, 8, 16, False), Gemm(16, 256, 32, 8, 16, False)),
        run=64,
        sum_run=16,
        sgd=(4096, 1),  # each thread gets a copy of 2 KB of pointers
        reduction_threads=1,
        chunk=16384,  # they stay in a core's second cache between two passes
        blocks=64,
    ),
}
TRANSPOSED = {"nn": "false, false", "nt": "false, true", "tn": "true, false"}


def table() -> Tiles:
    """The current device's."""
    return TABLES[device.current().tiling]


def serves(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether the 3 x 3 kernels compute convolutions of this geometry."""
    return tuple(kernel) == (3, 3) and stride in ((1, 1), (2, 2)) and max(padding) <= 2


def conv(stride: int, turned: bool, n: int, o: int, oh: int, ow: int, fused: int = 0) -> tuple[str, tuple, tuple]:
    """Name, grid and block of the convolution of a shape: the tile that covers it with the least overhang."""
    tile = min(table().conv[stride], key=lambda t: t.overhang(n, o, oh, ow))
    name = f"conv3x3<{tile.arguments}, {stride}, {str(turned).lower()}, {fused}>"
    return name, tile.grid(n, o, oh, ow), (tile.threads,)


def strided_gradient(n: int, c: int, h: int, w: int) -> tuple[str, tuple, tuple]:
    """Name, grid and block of the input gradient of a convolution with stride 2, for an input of n x c x h x w."""
    places = n, c, -(-h // 2), -(-w // 2)
    tile = min(table().strided_gradient, key=lambda t: t.overhang(*places))
    return f"conv3x3_strided_gradient<{tile.arguments.partition(', ')[2]}>", tile.grid(*places), (tile.threads,)


def weight(stride: int, ow: int) -> tuple[str, int]:
    """Name and threads of the weight gradient for dy that is ow wide: of the tiles that are not half empty the widest."""
    tiles = table().weight[stride]
    tile = next((t for t in tiles if t.columns < 2 * ow and t.columns <= max(ow, 8)), tiles[-1])
    return f"conv3x3_weight<{tile.arguments}, {stride}>", tile.threads


def gemm(kind: str, m: int, n: int, batch: int) -> tuple[str, tuple, tuple]:
    """Name, grid and block of a product: the tile with the least overhang; the squarest of equal ones reads least."""
    tile = min(table().gemm, key=lambda t: -(-m // t.rows) * -(-n // t.columns) * t.rows * t.columns)
    grid = -(-n // tile.columns), -(-m // tile.rows), min(batch, 65535)
    return f"gemm_blocked<{tile.arguments}, {TRANSPOSED[kind]}>", grid, (tile.threads,)


def sgd(parameters: int, largest: int) -> tuple[str, tuple, tuple]:
    """Name, grid and block of the step for some parameters, the largest of which has so many elements."""
    run, threads = table().sgd
    return f"sgd_step<{run}>", (parameters, min(-(-largest // (run * threads)), 256)), (threads,)

"""Host memory as a device's: fresh memory costs a page fault every 4 KB, so what nothing uses any more is kept for the next."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

Block = tuple[int, int, np.ndarray]  # its size, the address in it where a line of the cache begins, and the memory


class Pool:
    """Blocks of memory that nothing uses, by size. All blocks together are at most `most` times what was in use at once."""

    def __init__(self, most: float, exact: bool = False) -> None:
        self.used = self.unused = self._peak = 0  # bytes
        self._most, self._exact = most, exact
        self._blocks: dict[int, list[Block]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array, whose memory comes back when the last array over it is gone."""
        return np.ndarray(shape, dtype, np.asarray(_Memory(self, max(math.prod(shape) * dtype.itemsize, 1))))

    def take(self, nbytes: int) -> Block:
        """A block for so many bytes: an unused one, at most twice as large unless exact, or a new one."""
        size = self._size_of(nbytes)
        if not self._blocks[size] and not self._exact:
            size = min((s for s, blocks in self._blocks.items() if blocks and size <= s <= 2 * size), default=size)
        unused = self._blocks[size]
        self.used += size
        self._peak = max(self._peak, self.used)
        if unused:
            self.unused -= size
            return unused.pop()
        self._give_back()
        slack = 0 if self._exact else 63
        memory = np.empty(size + slack, np.uint8)
        return size, memory.ctypes.data + min(-memory.ctypes.data % 64, slack), memory

    def put(self, block: Block) -> None:
        """Nothing uses the block any more."""
        size = block[0]
        self.used, self.unused = self.used - size, self.unused + size
        self._blocks[size].append(block)
        self._give_back()

    def _size_of(self, nbytes: int) -> int:
        """Rounded up by an eighth at most: of few different sizes."""
        step = 1 if self._exact else max(1 << max(nbytes.bit_length() - 4, 0), 64)
        return -(-nbytes // step) * step

    def _give_back(self) -> None:
        """To the system, the largest first."""
        while self.unused and self.used + self.unused > self._most * self._peak:
            size = max(size for size, blocks in self._blocks.items() if blocks)
            self._blocks[size].pop()
            self.unused -= size


class _Memory:
    """A block of a pool, as an array of bytes."""

    def __init__(self, pool: Pool, nbytes: int) -> None:
        self._pool, self._block = pool, pool.take(nbytes)
        place = self._block[1], False
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": place, "version": 3}

    def __del__(self) -> None:
        self._pool.put(self._block)


def owner_of(array: Any) -> Any:
    """What an array's memory belongs to, whatever views lie between; None where it is NumPy's own."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array


def is_device_memory(array: Any) -> bool:
    """Whether an array's memory is a pool's."""
    return isinstance(owner_of(array), _Memory)

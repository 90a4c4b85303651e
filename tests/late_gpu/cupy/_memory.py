"""Memory as CuPy's pool hands it out, and pinned memory.

CuPy's documentation, "Memory Management", and memory.pyx: sizes are rounded up to 512 bytes; a pool keeps a list of free
blocks for each stream; the smallest that fits is taken and its rest split off; neighbours that are free are merged; and
a block is free at the moment when Python drops the last array over it, whatever is queued that still uses it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from . import _queues

UNIT = 512
FRESH = 0xAB  # what cudaMalloc gives is not zeros
allocated = 0  # how often fresh memory was asked for: tests look at it


class _Block:
    """A piece of a segment; `before` and `behind` are its neighbours."""

    def __init__(self, segment: np.ndarray, begin: int, size: int, stream: object) -> None:
        self.segment, self.begin, self.size, self.stream = segment, begin, size, stream
        self.before: _Block | None = None
        self.behind: _Block | None = None
        self.free = False

    @property
    def ptr(self) -> int:
        return self.segment.ctypes.data + self.begin


class _Memory:
    """What an array keeps: its block goes back when this goes."""

    def __init__(self, pool: MemoryPool | None, block: _Block) -> None:
        self.block = block
        if pool is not None:
            weakref.finalize(self, pool._release, block)


class MemoryPointer:
    def __init__(self, mem: _Memory, offset: int) -> None:
        self.mem, self._offset = mem, offset

    @property
    def ptr(self) -> int:
        return self.mem.block.ptr + self._offset

    def bytes_of(self, size: int) -> np.ndarray:
        begin = self.mem.block.begin + self._offset
        return self.mem.block.segment[begin : begin + size]

    def copy_from_host_async(self, mem: int, size: int, stream: _queues.Stream | None = None) -> None:
        """CUDA Runtime API, cudaMemcpyAsync: pinned memory is read when the copy runs; other memory is staged now."""
        stream, target = stream or _queues.current[-1], self.bytes_of(size)
        mem = getattr(mem, "value", mem)
        source = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * size).from_address(mem))
        if not any(p.ctypes.data <= mem < p.ctypes.data + p.nbytes for p in pinned):
            stream.forbid_while_recording("copy from pageable memory")
            source = source.copy()
        stream.put(lambda: target.__setitem__(..., source))


def _fresh(size: int, stream: object) -> _Block:
    global allocated
    allocated += 1
    whole = np.full(size + UNIT, FRESH, np.uint8)
    return _Block(whole[-whole.ctypes.data % UNIT :][:size], 0, size, stream)


class MemoryPool:
    def __init__(self, allocator: Callable | None = None) -> None:
        self._free: dict[object, list[_Block]] = {}

    def malloc(self, size: int) -> MemoryPointer:
        size = max(-(-size // UNIT) * UNIT, UNIT)
        stream = _queues.current[-1]
        fitting = [b for b in self._free.get(stream, []) if b.size >= size]
        if fitting:
            least = min(b.size for b in fitting)
            block = _queues.rng.choice([b for b in fitting if b.size == least])
            self._free[stream].remove(block)
            self._split(block, size)
        else:
            block = _fresh(size, stream)
        block.free = False
        return MemoryPointer(_Memory(self, block), 0)

    def _split(self, block: _Block, size: int) -> None:
        if block.size == size:
            return
        rest = _Block(block.segment, block.begin + size, block.size - size, block.stream)
        rest.before, rest.behind, rest.free = block, block.behind, True
        if block.behind:
            block.behind.before = rest
        block.behind, block.size = rest, size
        self._free[block.stream].append(rest)

    def _release(self, block: _Block) -> None:
        free = self._free.setdefault(block.stream, [])
        block.free = True
        for first, second in ((block, block.behind), (block.before, block)):
            if first and second and first.free and second.free:
                for merged in (first, second):
                    if merged is not block:
                        free.remove(merged)
                first.size += second.size
                first.behind = second.behind
                if second.behind:
                    second.behind.before = first
                block = first
        free.append(block)

    def used_bytes(self) -> int:
        raise NotImplementedError

    def free_all_blocks(self, stream: object = None) -> None:
        self._free.clear()


default_pool = MemoryPool()
_allocators: list[Callable[[int], MemoryPointer]] = [default_pool.malloc]


def malloc(size: int) -> MemoryPointer:
    return _allocators[-1](size)


def set_allocator(allocator: Callable | None = None) -> None:
    _allocators[0] = allocator or (lambda size: MemoryPointer(_Memory(None, _fresh(max(size, 1), None)), 0))


@contextlib.contextmanager
def using_allocator(allocator: Callable | None = None) -> Iterator[None]:
    _allocators.append(allocator or default_pool.malloc)
    try:
        yield
    finally:
        _allocators.pop()


# ---------------------------------------------------------------------------------------------------------------------
# Pinned memory: CuPy's pool gives a block again as soon as it is dropped, too

pinned: list[np.ndarray] = []
_free_pinned: dict[int, list[np.ndarray]] = {}


class PinnedMemoryPointer(np.ndarray):
    """Bytes that NumPy can view, and their address."""

    @property
    def ptr(self) -> int:
        return self.ctypes.data


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    size = 1 << max(size - 1, 0).bit_length()
    free = _free_pinned.setdefault(size, [])
    if free:
        block = free.pop(_queues.rng.randrange(len(free)))
    else:
        block = np.full(size, FRESH, np.uint8)
        pinned.append(block)
    pointer = block.view(PinnedMemoryPointer)
    weakref.finalize(pointer, _drop_pinned, block, free)
    return pointer


def _drop_pinned(block: np.ndarray, free: list[np.ndarray]) -> None:
    block[...] = FRESH
    free.append(block)

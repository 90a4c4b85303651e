from .._memory import MemoryPointer, MemoryPool, PinnedMemoryPointer, alloc_pinned_memory, set_allocator, using_allocator
from .._queues import Event, Graph, Stream, get_current_stream, get_elapsed_time
from . import compiler, runtime

__all__ = [
    "Device",
    "Event",
    "Graph",
    "MemoryPointer",
    "MemoryPool",
    "PinnedMemoryPointer",
    "Stream",
    "alloc_pinned_memory",
    "compiler",
    "get_current_stream",
    "get_elapsed_time",
    "runtime",
    "set_allocator",
    "using_allocator",
]


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = 0

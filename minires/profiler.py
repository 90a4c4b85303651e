"""mr.profile(): how often each kernel ran, how long, and how many bytes its arrays hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import device
from .device.source import named
from .table import Table


@dataclass
class KernelTime:
    """Sums over the launches of one kernel: seconds, and the bytes of the arrays that were passed to it."""

    launches: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Profile:
    """`kernels` maps names to KernelTime; str(), and a notebook, show a table, the longest first."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelTime] = {}

    def _table(self) -> Table:
        total = sum(k.seconds for k in self.kernels.values()) or 1.0
        rows = []
        for name, k in sorted(self.kernels.items(), key=lambda item: -item[1].seconds):
            rate = k.bytes / k.seconds / 1e9 if k.seconds else 0.0
            rows.append([f"{k.launches}", f"{k.seconds * 1e3:.2f}", f"{k.seconds / total:.1%}", f"{rate:.1f}", named(name)])
        return Table(["launches", "ms", "share", "GB/s", "kernel"], rows)

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


@contextlib.contextmanager
def profile() -> Iterator[Profile]:
    """Within this context every launch of a kernel of `kernels/` is counted and timed, one after another.

    The device is waited for after each launch (CUDA events on a GPU, a clock on the CPU), so the whole runs slower than
    without. Bytes are those of the arrays passed to a kernel, each counted once: what it would move at the least.

        with mr.profile() as p:
            net(x)
        print(p)
    """
    result = Profile()

    def count(name: str, run: Callable[[], None], arrays: list) -> None:
        entry = result.kernels.setdefault(name, KernelTime())
        entry.seconds += device.current().time(run)
        entry.launches += 1
        entry.bytes += sum(array.nbytes for array in arrays)

    with device.observe(count):
        yield result

"""mr.profile(): how often each kernel ran, how long, and how many bytes its arrays hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import device
from .device.source import named


@dataclass
class KernelTime:
    """Sums over the launches of one kernel: seconds, and the bytes of the arrays that were passed to it."""

    launches: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Profile:
    """`kernels` maps names to KernelTime; str() is a table, the longest first."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelTime] = {}

    def __str__(self) -> str:
        total = sum(k.seconds for k in self.kernels.values()) or 1.0
        lines = [f"{'launches':>8}{'ms':>11}{'share':>8}{'GB/s':>8}  kernel"]
        for name, k in sorted(self.kernels.items(), key=lambda item: -item[1].seconds):
            rate = k.bytes / k.seconds / 1e9 if k.seconds else 0.0
            lines.append(f"{k.launches:8}{k.seconds * 1e3:11.2f}{k.seconds / total:8.1%}{rate:8.1f}  {named(name)}")
        return "\n".join(lines)


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

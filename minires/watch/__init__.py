"""The instruments: what looks at kernels of the CPU device without changing them.

A watched launch runs thread by thread (engine.cpp) and hands each access to an observer: the checks of the sanitizer
(checks.cpp), or a trace for the counters (trace.cpp).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from .. import device
from ..device.cpu import CpuDevice
from .counters import counters
from .sanitizer import Sanitizer, SanitizerError

__all__ = ["SanitizerError", "counters", "sanitize"]


def _of_the_process() -> Sanitizer | None:
    checks = os.environ.get("MINIRES_SANITIZE", "0")
    return Sanitizer(checks) if checks not in ("", "0") else None


CpuDevice.default_watcher = staticmethod(_of_the_process)


@contextlib.contextmanager
def sanitize(checks: str | Iterable[str] = "all", seed: int = 0) -> Iterator[None]:
    """Within this context kernels run slowly, one thread after another, and what CUDA leaves undefined is an error.

    `checks` are "all" or some of "race", "mem", "init", "sync" and "value", where a GPU computes another one than a CPU, as
    a list or with commas between; MINIRES_SANITIZE is the same for a whole process. Launches run in forward, reverse and
    random orders, which `seed` decides. Only arrays made within the context are checked for "init". Raises SanitizerError,
    with kernel, source line, block, thread, array and index, where it finds something; ValueError for an unknown check;
    DeviceError on a GPU, where NVIDIA's compute-sanitizer does this.
    """
    now = device.current()
    if now.name != "cpu":
        raise device.DeviceError("the sanitizer is one of the cpu device; on a GPU run NVIDIA's compute-sanitizer")
    before, now.watcher = now.watcher, Sanitizer(checks, seed)
    try:
        yield
    finally:
        now.watcher = before

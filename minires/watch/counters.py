"""mr.counters(): what a GPU's load/store units would see of each launch, without a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import device
from ..device.cpu import CpuDevice, Library, compile_library
from ..device.source import DeviceError, Signature, named
from ..table import Table
from . import display
from .accesses import Access, Launch
from .engine import INSTRUMENTS, WatchedLaunch, source_lines
from .requests import requests_of

_KINDS = "load", "store", "atomic"
_AT_ONCE = 2_000_000  # accesses that are counted together
_TOUCH = np.dtype([("at", np.int64), ("thread", np.int64)])  # as trace.cpp has it


class _Site(ctypes.Structure):  # as trace.cpp has it
    _sizes = ((name, ctypes.c_uint64) for name in ("shared", "kind", "count"))
    _fields_ = (("pc", ctypes.c_uint32), ("bytes", ctypes.c_uint32), *_sizes, ("touched", ctypes.c_void_p))


class Counters:
    """The launches that were counted. str() is a table; a notebook shows the lanes of each line too."""

    tracker = None  # of memory, which counts have no use for

    def __init__(self, blocks: int | None) -> None:
        self.launches: list[Launch] = []
        self._blocks = blocks
        self._lines: dict[tuple[Path, int], tuple[str, int]] = {}

    def compile(self, now: CpuDevice, code: str, names: tuple[str, ...], scalar: np.dtype) -> dict:
        """Signature and launch of each name expression: first as it is, then some of its blocks on copies, watched."""
        plain = now.runs(compile_library(code, names, scalar), code)
        watched = compile_library(code, names, scalar, INSTRUMENTS)

        def launcher(name: str, signature: Signature, run: Callable) -> tuple[Signature, Callable]:
            def launch(*given: Any) -> None:
                grid, block, args, shared = given
                copies = WatchedLaunch(watched, name, given)  # before it changes them
                run(*given)
                accesses, blocks = now.watcher._count(watched, copies, math.prod(grid))
                array_bytes = sum({a.ctypes.data: a.nbytes for a in copies.arrays}.values())
                arguments = {
                    p.name: a.shape if isinstance(a, np.ndarray) else a.item()
                    for p, a in zip(signature.parameters, args, strict=True)
                    if isinstance(a, (np.ndarray, np.number, np.bool_))
                }
                counted = Launch(name, grid, block, blocks, accesses, shared, array_bytes, arguments, code, scalar.name)
                now.watcher.launches.append(counted)

            return signature, launch

        return {name: launcher(name, *found) for name, found in plain.items()}

    def _count(self, library: Library, launch: WatchedLaunch, total: int) -> tuple[list[Access], int]:
        """The accesses of some of the launch's blocks, and how many blocks these are."""
        wanted = total if self._blocks is None else min(self._blocks, total)
        chosen = np.unique(np.linspace(0, total - 1, wanted).astype(int)).tolist()
        found: dict[tuple, Access] = {}
        sites: dict[tuple, list[np.ndarray]] = defaultdict(list)  # what each block has touched there
        touched, rows = 0, ctypes.c_void_p()
        for which in chosen:
            n, report = launch.run(library.runtime.minires_trace, ctypes.c_uint(which), ctypes.byref(rows))
            if n < 0:
                raise DeviceError(launch.describe(report))
            for row in (_Site * n).from_address(rows.value or 0):
                touched += row.count
                trace = np.frombuffer(ctypes.string_at(row.touched, row.count * _TOUCH.itemsize), _TOUCH)
                sites[row.pc, row.bytes, row.shared, row.kind].append(trace)
            if which == chosen[-1] or touched > _AT_ONCE:
                self._add(found, library.path, sites)
                sites.clear()
                touched = 0
        return sorted(found.values(), key=lambda a: (a.file, a.line, a.space, a.kind)), len(chosen)

    def _add(self, found: dict[tuple, Access], path: Path, sites: dict[tuple, list[np.ndarray]]) -> None:
        self._find_lines(path, [pc for pc, *_ in sites])
        for (pc, size, shared, kind), traces in sorted(sites.items()):
            key = *self._lines[path, pc], "shared" if shared else "global", _KINDS[kind], size
            threads = np.concatenate([trace["thread"] + 1024 * i for i, trace in enumerate(traces)])  # no warp of two blocks
            places = requests_of(threads, np.concatenate([trace["at"] for trace in traces]))
            found.setdefault(key, Access(*key)).count(places)

    def _find_lines(self, path: Path, addresses: list[int]) -> None:
        if unknown := sorted({pc for pc in addresses if (path, pc) not in self._lines}):
            try:
                lines = source_lines(path, unknown)
            except OSError as error:
                raise DeviceError(f"counters: {error}") from None
            self._lines |= {(path, pc): line for pc, line in zip(unknown, lines, strict=True)}

    def _of_kernels(self) -> list[list[Launch]]:
        names = dict.fromkeys(launch.kernel for launch in self.launches)
        return [[launch for launch in self.launches if launch.kernel == name] for name in names]

    def _table(self) -> Table:
        rows = []
        for launches in self._of_kernels():
            for space in ("global", "shared"):
                total = Access("", 0, space, "all", 0)
                for launch in launches:
                    total.add(launch.total(space))
                if total.requests:
                    sectors = f"{total.sectors / total.sectors_least:.2f}" if total.sectors_least else ""
                    waves = f"{total.wavefronts / total.wavefronts_least:.2f}" if total.wavefronts_least else ""
                    counts = [f"{len(launches)}", space, f"{total.requests}", f"{total.lanes / total.requests:.1f}"]
                    rows.append([*counts, sectors, waves, named(launches[0].kernel, launches[0].code)])
        kernel = "kernel (lanes a request; sectors and wavefronts against the least)"
        return Table(["launches", "space", "requests", "lanes", "sectors", "wavefronts", kernel], rows)

    def __repr__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        """The table, and the costliest launch of each kernel."""
        drawn = []
        for launches in self._of_kernels():
            costliest = max(launches, key=lambda launch: sum(a.cost for a in launch.accesses))
            body = display.launch_html(costliest, requests=1)
            drawn.append(f"<details><summary>{display.heading(costliest)}</summary>{body}</details>")
        if len(drawn) == 1:
            drawn = [drawn[0].replace("<details>", "<details open>", 1)]
        return display.STYLE + self._table()._repr_html_() + "".join(drawn)

    def to_json(self, path: str | Path) -> None:
        """Write every launch with its accesses. Raises OSError where the file cannot be written."""
        launches = [dataclasses.asdict(launch) for launch in self.launches]
        for launch in launches:
            del launch["code"]
        Path(path).write_text(json.dumps({"launches": launches}, indent=1))


@contextlib.contextmanager
def counters(blocks: int | None = 4) -> Iterator[Counters]:
    """Within this context each launch is counted as a GPU's load/store units would see it. Only on the CPU device.

    The operations choose the tiles and the launch geometry of the cuda device. Every launch first runs as it is, so
    that results are right and come soon; then `blocks` of its blocks, spread over the grid with its edges among them
    (None: all), run again on copies, thread by thread.

        with mr.counters() as c:
            net(x)
        print(c)

    c.launches has a Launch each, with an Access for each source line, space, kind and width. What this is not: it sees
    the accesses of the source, not what ptxas makes of them (which may merge, move or drop some), and no caches.
    Raises DeviceError on a GPU, where NVIDIA's `ncu` counts; ValueError where blocks is below 1.
    """
    now = device.current()
    if now.name != "cpu":
        raise DeviceError("counters are of the cpu device; on a GPU NVIDIA's Nsight Compute, ncu, counts")
    if blocks is not None and blocks < 1:
        raise ValueError(f"counters: blocks must be at least 1, or None for all, got {blocks}")
    before, counted = (now.watcher, now.tiling), Counters(blocks)
    now.watcher, now.tiling = counted, "cuda"
    try:
        yield counted
    finally:
        now.watcher, now.tiling = before

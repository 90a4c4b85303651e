"""The sanitizer of the CPU device: races, accesses out of bounds, uninitialised reads and divergent barriers."""

from __future__ import annotations

import bisect
import ctypes
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..device.cpu import CpuDevice, Library, compile_library, pack_arguments
from ..device.source import DeviceError, Signature
from .engine import INSTRUMENTS, Report, arena, cell_of, describe, named_arrays, regions_of, replace_arrays

CHECKS = {"race": 1, "mem": 2, "init": 4, "sync": 8}
_ORDERS = ("forward", "reverse", "random")


class SanitizerError(DeviceError):
    """A kernel did what CUDA leaves undefined. `kind` is race, mem, init or sync."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Tracker:
    """Which bytes of device memory something has written, for the arrays that the device has handed out."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._written: dict[int, np.ndarray] = {}

    def add(self, memory: np.ndarray) -> None:
        """From now on `memory`, bytes, holds nothing; it is filled with a pattern that is NaN in floating point."""
        start = memory.ctypes.data
        memory[...] = 255
        self._written[start] = np.zeros(len(memory), np.uint8)
        bisect.insort(self._starts, start)
        weakref.finalize(memory, self._remove, start)

    def _remove(self, start: int) -> None:
        del self._written[start]
        self._starts.remove(start)

    def find(self, array: np.ndarray) -> np.ndarray | None:
        """A view of what is known of the array's bytes; None where the device did not hand it out."""
        begin = array.__array_interface__["data"][0]
        i = bisect.bisect_right(self._starts, begin) - 1
        if i < 0:
            return None
        start = self._starts[i]
        offset = begin - start
        return self._written[start][offset : offset + array.nbytes] if offset < len(self._written[start]) else None


class Sanitizer:
    """Runs launches in three orders under the checks that were asked for; see checks.cpp."""

    def __init__(self, checks: str | Iterable[str] = "all", seed: int = 0) -> None:
        names = checks.replace(" ", "").split(",") if isinstance(checks, str) else list(checks)
        names = list(CHECKS) if names in (["all"], ["1"]) else names
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"unknown check {unknown[0]!r}: choose 'all' or some of {', '.join(CHECKS)}")
        self.checks = sum({CHECKS[name] for name in names})
        self.tracker = Tracker()
        self._random = np.random.default_rng(seed)

    def allocated(self, memory: np.ndarray) -> None:
        """The device hands out fresh memory, bytes."""
        self.tracker.add(memory)

    def written(self, array: np.ndarray) -> None:
        """The host has written to an array of the device."""
        if (known := self.tracker.find(array)) is not None:
            known[...] = 1

    def read(self, array: np.ndarray) -> None:
        """Raise SanitizerError where the host reads an element that no kernel wrote."""
        known = self.tracker.find(array)
        if self.checks & CHECKS["init"] and known is not None and not known.all():
            index = int(np.argmin(known)) // array.itemsize
            where = list(map(int, np.unravel_index(index, array.shape)))
            raise SanitizerError("init", f"element {where} of an array of shape {array.shape} was never written")

    def compile(self, device: CpuDevice, code: str, names: tuple[str, ...], scalar: np.dtype) -> dict:
        """Signature and launch of each name expression; the launches are those of the sanitizer of the moment."""
        library = compile_library(code, names, scalar, INSTRUMENTS)
        return {
            name: (signature, lambda *launch, s=signature, k=symbol: device.watcher.launch(library, s, k, *launch))
            for name, (signature, symbol) in library.kernels.items()
        }

    def launch(
        self, library: Library, signature: Signature, symbol: str, grid: tuple, block: tuple, args: list, shared: int
    ) -> None:
        named = named_arrays(signature, args)
        names, arrays = [name for name, _ in named], [array for _, array in named]
        memory, copies = arena(arrays)
        _, pointers = values = pack_arguments(replace_arrays(args, iter(copies)))
        written = [self.tracker.find(a) if self.checks & CHECKS["init"] else None for a in arrays]
        cells: list[Any] = [
            None if w is None else w.reshape(-1, cell_of(a.dtype)).all(1) for w, a in zip(written, arrays, strict=True)
        ]
        before: list[Any] = [None if e is None else e.copy() for e in cells]
        originals, results = memory.copy(), []
        kernel = ctypes.cast(library.loaded[symbol], ctypes.c_void_p)
        regions = regions_of(copies, cells)
        orders = _ORDERS if self.checks & CHECKS["race"] else _ORDERS[:1]
        for number in range(len(orders)):
            np.copyto(memory, originals)
            for e, b in zip(cells, before, strict=True):
                if e is not None:
                    np.copyto(e, b)
            report = Report()
            found = library.runtime.minires_check(
                kernel,
                (ctypes.c_uint * 6)(*grid, *block),
                ctypes.c_uint64(shared),
                pointers,
                regions,
                ctypes.c_uint64(len(arrays)),
                self.checks,
                number,
                ctypes.c_uint64(int(self._random.integers(2**63))),
                ctypes.byref(report),
            )
            if found and report.kind == b"assert":
                raise DeviceError(describe(report, library.path, signature.name, names))
            if found:
                raise SanitizerError(report.kind.decode(), describe(report, library.path, signature.name, names))
            results.append([c.tobytes() for c in copies])
        del values
        self._compare(signature.name, names, arrays, results)
        self._keep(signature.name, names, arrays, copies, written, before, cells)

    def _compare(self, kernel: str, names: list[str], arrays: list[np.ndarray], results: list[list[bytes]]) -> None:
        for order, result in zip(_ORDERS[1:], results[1:], strict=False):
            for name, array, first, other in zip(names, arrays, results[0], result, strict=True):
                if first != other:
                    a, b = (np.frombuffer(r, array.dtype) for r in (first, other))
                    index = int(np.argmax((a.view(np.uint8) != b.view(np.uint8)).reshape(-1, array.itemsize).any(1)))
                    raise SanitizerError(
                        "race",
                        f"kernel {kernel} gives {name}[{index}] = {a[index]} with its threads in forward order, "
                        f"{b[index]} in {order} order",
                    )

    def _keep(
        self, kernel: str, names: list, arrays: list, copies: list, written: list, before: list, cells: list
    ) -> None:
        """Take the results over; an output that was fresh and is now partly written lacks something."""
        for name, array, copy, known, old, new in zip(names, arrays, copies, written, before, cells, strict=True):
            np.copyto(array, copy)
            if known is None:
                continue
            known.reshape(-1, cell_of(array.dtype))[...] = new[:, None]
            if not old.any() and new.any() and not new.all():
                raise SanitizerError(
                    "init",
                    f"kernel {kernel} left {name}[{int(np.argmin(new))}] of {new.size} elements unwritten "
                    f"({new.size - int(new.sum())} in all)",
                )

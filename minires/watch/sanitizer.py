"""The sanitizer of the CPU device: races, accesses out of bounds, uninitialised reads and divergent barriers."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from ..device.cpu import CpuDevice, Library, compile_library
from ..device.memory import owner_of
from ..device.source import DeviceError
from .display import lines_of
from .engine import INSTRUMENTS, WatchedLaunch, cell_of

CHECKS = {"race": 1, "mem": 2, "init": 4, "sync": 8, "value": 16}
_ORDERS = ("forward", "reverse", "random")


class SanitizerError(DeviceError):
    """A kernel did what CUDA leaves undefined. `kind` is race, mem, init, sync or value.

    A notebook that displays it shows the lines of `code` that it names.
    """

    def __init__(self, kind: str, message: str, code: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.code = kind, code

    def _repr_html_(self) -> str:
        named = [(file, int(n)) for file, n in re.findall(r"([\w/.]+):(\d+)", str(self))]
        lines = [f"{n:5}  {line}" for file, n in dict.fromkeys(named) for line in lines_of(file, self.code)[n - 1 : n]]
        return f"<p>{escape(str(self))}</p><pre>{escape(chr(10).join(lines))}</pre>"


class _Tracked:
    """Memory as an array of bytes, full of what is NaN in floating point, and which of them something has written."""

    def __init__(self, nbytes: int) -> None:
        self.memory, self.written = np.full(nbytes, 255, np.uint8), np.zeros(nbytes, np.uint8)
        self.__array_interface__ = self.memory.__array_interface__


class Tracker:
    """Which bytes of device memory something has written, for the arrays that the device has handed out."""

    def __init__(self, is_checked: bool) -> None:
        self._is_checked = is_checked

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array that holds nothing yet."""
        return np.ndarray(shape, dtype, np.asarray(_Tracked(max(math.prod(shape) * dtype.itemsize, 1))))

    def find(self, array: np.ndarray) -> np.ndarray | None:
        """A view of what is known of the array's bytes; None where the device did not hand it out."""
        if not isinstance(owner := owner_of(array), _Tracked):
            return None
        begin = array.__array_interface__["data"][0] - owner.memory.ctypes.data
        return owner.written[begin : begin + array.nbytes]

    def written(self, array: np.ndarray) -> None:
        """The host has written to an array of the device."""
        if (known := self.find(array)) is not None:
            known[...] = 1

    def read(self, array: np.ndarray) -> None:
        """Raise SanitizerError where the host reads an element that no kernel wrote."""
        known = self.find(array)
        if self._is_checked and known is not None and not known.all():
            index = int(np.argmin(known)) // array.itemsize
            where = list(map(int, np.unravel_index(index, array.shape)))
            raise SanitizerError("init", f"element {where} of an array of shape {array.shape} was never written")


class Sanitizer:
    """Runs launches in three orders under the checks that were asked for; see checks.cpp."""

    def __init__(self, checks: str | Iterable[str] = "all", seed: int = 0) -> None:
        names = checks.replace(" ", "").split(",") if isinstance(checks, str) else list(checks)
        names = list(CHECKS) if names in (["all"], ["1"]) else names
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"unknown check {unknown[0]!r}: choose 'all' or some of {', '.join(CHECKS)}")
        self.checks = sum({CHECKS[name] for name in names})
        self.tracker = Tracker(bool(self.checks & CHECKS["init"]))
        self._random = np.random.default_rng(seed)

    def compile(self, device: CpuDevice, code: str, names: tuple[str, ...], scalar: np.dtype) -> dict:
        """Signature and launch of each name expression; the launches are those of the sanitizer of the moment."""
        library = compile_library(code, names, scalar, INSTRUMENTS)
        return {
            name: (signature, lambda *launch, name=name: device.watcher.launch(library, code, name, *launch))
            for name, (signature, _) in library.kernels.items()
        }

    def launch(self, library: Library, code: str, name: str, *launch: Any) -> None:
        def known(array: np.ndarray) -> Any:
            written = self.tracker.find(array) if self.checks & CHECKS["init"] else None
            return None if written is None else written.reshape(-1, cell_of(array.dtype)).all(1)

        watched = WatchedLaunch(library, name, launch, known)
        before: list[Any] = [None if cells is None else cells.copy() for cells in watched.cells]
        originals, results = watched.memory.copy(), []
        for order in range(len(_ORDERS) if self.checks & CHECKS["race"] else 1):
            np.copyto(watched.memory, originals)
            for cells, old in zip(watched.cells, before, strict=True):
                if cells is not None:
                    np.copyto(cells, old)
            seed = ctypes.c_uint64(int(self._random.integers(2**63)))
            found, report = watched.run(library.runtime.minires_check, self.checks, order, seed)
            if found and report.kind == b"assert":
                raise DeviceError(watched.describe(report))
            if found:
                raise SanitizerError(report.kind.decode(), watched.describe(report), code)
            results.append([copy.tobytes() for copy in watched.copies])
        self._compare(watched, results)
        self._keep(watched, before)

    def _compare(self, watched: WatchedLaunch, results: list[list[bytes]]) -> None:
        for order, result in zip(_ORDERS[1:], results[1:], strict=False):
            for name, array, first, other in zip(watched.names, watched.arrays, results[0], result, strict=True):
                if first != other:
                    a, b = (np.frombuffer(r, array.dtype) for r in (first, other))
                    index = int(np.argmax((a.view(np.uint8) != b.view(np.uint8)).reshape(-1, array.itemsize).any(1)))
                    raise SanitizerError(
                        "race",
                        f"kernel {watched.kernel} gives {name}[{index}] = {a[index]} with its threads in forward order, "
                        f"{b[index]} in {order} order",
                    )

    def _keep(self, watched: WatchedLaunch, before: list) -> None:
        """Take the results over; an output that was fresh and is now partly written lacks something."""
        rows = zip(watched.names, watched.arrays, watched.copies, before, watched.cells, strict=True)
        for name, array, copy, old, new in rows:
            np.copyto(array, copy)
            if new is None:
                continue
            known: Any = self.tracker.find(array)
            known.reshape(-1, cell_of(array.dtype))[...] = new[:, None]
            if not old.any() and new.any() and not new.all():
                raise SanitizerError(
                    "init",
                    f"kernel {watched.kernel} left {name}[{int(np.argmin(new))}] of {new.size} elements unwritten "
                    f"({new.size - int(new.sum())} in all)",
                )

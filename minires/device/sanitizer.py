"""The sanitizer of the CPU device: races, accesses out of bounds, uninitialised reads and divergent barriers."""

from __future__ import annotations

import bisect
import ctypes
import subprocess
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .source import DeviceError, Signature, pack_arguments

CHECKS = {"race": 1, "mem": 2, "init": 4, "sync": 8}
_ORDERS = ("forward", "reverse", "random")
_RED_ZONE = 4096


class SanitizerError(DeviceError):
    """A kernel did what CUDA leaves undefined. `kind` is race, mem, init or sync."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class _Region(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("element", ctypes.c_uint64),
        ("initialized", ctypes.c_void_p),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char * 8),
        ("text", ctypes.c_char * 512),
        ("name", ctypes.c_char * 64),
        ("region", ctypes.c_int64),
        ("index", ctypes.c_int64),
        ("elements", ctypes.c_uint64),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
    )


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
    """Runs launches in three orders under the checks that were asked for; see sanitizer.cpp."""

    def __init__(self, checks: str | Iterable[str] = "all", seed: int = 0) -> None:
        names = checks.replace(" ", "").split(",") if isinstance(checks, str) else list(checks)
        names = list(CHECKS) if names in (["all"], ["1"]) else names
        if unknown := [name for name in names if name not in CHECKS]:
            raise ValueError(f"unknown check {unknown[0]!r}: choose 'all' or some of {', '.join(CHECKS)}")
        self.checks = sum({CHECKS[name] for name in names})
        self.tracker = Tracker()
        self._random = np.random.default_rng(seed)

    def check_written(self, array: np.ndarray) -> None:
        """Raise SanitizerError where the host reads an element that no kernel wrote."""
        written = self.tracker.find(array)
        if self.checks & CHECKS["init"] and written is not None and not written.all():
            index = int(np.argmin(written)) // array.itemsize
            where = list(map(int, np.unravel_index(index, array.shape)))
            raise SanitizerError("init", f"element {where} of an array of shape {array.shape} was never written")

    def launch(
        self, path: Path, library: ctypes.CDLL, signature: Signature, grid: tuple, block: tuple, args: list
    ) -> None:
        named = [pair for p, a in zip(signature.parameters, args, strict=True) for pair in _named_arrays(p.name, a)]
        names, arrays = [name for name, _ in named], [array for _, array in named]
        arena, copies = _arena(arrays)
        values, pointers = pack_arguments(_replace_arrays(args, iter(copies)))
        written = [self.tracker.find(a) if self.checks & CHECKS["init"] else None for a in arrays]
        elements = [
            None if w is None else w.reshape(-1, a.itemsize).all(1) for w, a in zip(written, arrays, strict=True)
        ]
        before = [None if e is None else e.copy() for e in elements]
        originals, results = arena.copy(), []
        kernel = ctypes.cast(library[f"minires_launch_{signature.name}"], ctypes.c_void_p)
        regions = (_Region * max(len(arrays), 1))(
            *(
                _Region(c.ctypes.data, c.nbytes, c.itemsize, None if e is None else e.ctypes.data)
                for c, e in zip(copies, elements, strict=True)
            )
        )
        orders = _ORDERS if self.checks & CHECKS["race"] else _ORDERS[:1]
        for number in range(len(orders)):
            np.copyto(arena, originals)
            for e, b in zip(elements, before, strict=True):
                if e is not None:
                    np.copyto(e, b)
            report = _Report()
            found = library.minires_sanitized_launch(
                kernel,
                (ctypes.c_uint * 6)(*grid, *block),
                pointers,
                regions,
                ctypes.c_uint64(len(arrays)),
                self.checks,
                number,
                ctypes.c_uint64(int(self._random.integers(2**63))),
                ctypes.byref(report),
            )
            if found:
                raise SanitizerError(report.kind.decode(), _describe(report, path, signature.name, names))
            results.append([c.tobytes() for c in copies])
        self._compare(signature.name, names, arrays, results)
        self._keep(signature.name, names, arrays, copies, written, before, elements)

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

    def _keep(self, kernel, names, arrays, copies, written, before, elements) -> None:
        """Take the results over; an output that was fresh and is now partly written lacks something."""
        for name, array, copy, known, old, new in zip(names, arrays, copies, written, before, elements, strict=True):
            np.copyto(array, copy)
            if known is None:
                continue
            known.reshape(-1, array.itemsize)[...] = new[:, None]
            if not old.any() and new.any() and not new.all():
                raise SanitizerError(
                    "init",
                    f"kernel {kernel} left {name}[{int(np.argmin(new))}] of {new.size} elements unwritten "
                    f"({new.size - int(new.sum())} in all)",
                )


def _named_arrays(parameter: str, argument: Any) -> list[tuple[str, np.ndarray]]:
    """A list of arrays brings one more: that of their addresses."""
    if isinstance(argument, list):
        arrays = [(f"{parameter}[{i}]", array) for i, array in enumerate(argument)]
        return [*arrays, (parameter, np.zeros(len(argument), np.uint64))]
    return [(parameter, argument)] if isinstance(argument, np.ndarray) else []


def _replace_arrays(args: list, copies: Iterator[np.ndarray]) -> list:
    """The arguments with copies for arrays, and the array of the copies' addresses for a list."""
    replaced = []
    for argument in args:
        if isinstance(argument, list):
            addresses = [next(copies).ctypes.data for _ in argument]
            table = next(copies)
            table[:] = addresses
            replaced.append(table)
        else:
            replaced.append(next(copies) if isinstance(argument, np.ndarray) else argument)
    return replaced


def _arena(arrays: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Memory with a copy of every array between red zones. An array given twice has one copy."""
    places: dict[tuple[int, int], int] = {}
    end = _RED_ZONE
    for array in arrays:
        key = array.ctypes.data, array.nbytes
        if key not in places:
            places[key] = end
            end += -(-array.nbytes // 64) * 64 + _RED_ZONE
    memory = np.full(end + 64, 255, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]
    copies = []
    for array in arrays:
        begin = places[array.ctypes.data, array.nbytes]
        copies.append(memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape))
        np.copyto(copies[-1], array)
    return memory, copies


def _describe(report: _Report, path: Path, kernel: str, names: list[str]) -> str:
    where = f", {_source_line(path, report.pc)}" if report.pc else ""
    thread = f"block {tuple(report.block)}, thread {tuple(report.thread)}"
    text = report.text.decode()
    if report.pc or report.elements:
        name = f"shared array {report.name.decode()}" if report.region < 0 else names[report.region]
        text += f": {name}[{report.index}], of {report.elements} elements"
        if report.other_pc:
            text += f" (the other access: {_source_line(path, report.other_pc)})"
    return f"kernel {kernel}{where}, {thread}: {text}"


def _source_line(path: Path, pc: int) -> str:
    """`file:line` of the instruction before a return address."""
    command = ["addr2line", "-e", str(path), hex(pc - 1)]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"{path.name}+{pc - 1:#x}"
    file = Path(output.split(" ")[0].strip())
    return f"{file.parent.name}/{file.name}" if file.is_absolute() and file.parent.name == "kernels" else file.name

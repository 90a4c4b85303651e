"""What the sanitizer and the counters share: kernels compiled to be watched, and arguments in copies between red zones."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..device.cpu import Instruments, Library, pack_arguments
from ..device.source import DeviceError, Signature, blank, closing, place_of, split

_HERE = Path(__file__).parent
_RED_ZONE = 4096


class Region(ctypes.Structure):
    """An argument, as engine.h has it."""

    _sizes = ((name, ctypes.c_uint64) for name in ("bytes", "element", "cell"))
    _fields_ = (("base", ctypes.c_void_p), *_sizes, ("initialized", ctypes.c_void_p))


class Report(ctypes.Structure):
    """Where and why a launch was stopped, as engine.h has it."""

    _texts = (("kind", ctypes.c_char * 8), ("text", ctypes.c_char * 512), ("name", ctypes.c_char * 64))
    _numbers = ((name, ctypes.c_int64) for name in ("region", "index", "elements", "pc", "other_pc"))
    _fields_ = (*_texts, *_numbers, ("block", ctypes.c_uint * 3), ("thread", ctypes.c_uint * 3))


# Shared arrays: each one that is declared becomes one between red zones, and keeps its name (see watched.h)

_QUALIFIER = re.compile(r"(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)|\b(?:static|const)\b")
_DECLARATOR = re.compile(r"(?P<type>.*?)(?P<stars>[*\s]*)\b(?P<name>[A-Za-z_]\w*)\s*(?P<dims>(?:\[[^\]]*\]\s*)*)$", re.DOTALL)


def _name_types(unit: str) -> str:
    """`unit` with what is defined in a `__shared__` declaration, `struct { int a; } s`, defined before it, with a name."""
    for n, match in enumerate(reversed(list(_DEFINED.finditer(blank(unit))))):
        name, end = match["name"] or f"minires_type_{n}", closing(blank(unit), match.end() - 1)
        body = unit[match.end() - 1 : end]
        unit = f"{unit[: match.start()]}{match['kind']} {name} {body}; __shared__ {name}{unit[end:]}"
    return unit


_DEFINED = re.compile(r"\b__shared__\s+(?P<kind>struct|union|class)\s*(?P<name>\w*)\s*\{")


def rewrite_shared(unit: str) -> str:
    """`unit` with its `__shared__` declarations rewritten, and a function that makes those outside of functions known."""
    unit = _name_types(unit)
    text, parts, end, outside = blank(unit), [], 0, []
    depth, counted = 0, 0
    for match in re.finditer(r"__shared__\b([^;]*);", text):
        if match.start() < end:
            continue
        depth += text.count("{", counted, match.start()) - text.count("}", counted, match.start())
        counted = match.start()
        declaration = _QUALIFIER.sub(" ", unit[match.start(1) : match.end(1)]).strip()
        names = split(declaration)
        found = [m for m in map(_DECLARATOR.match, names) if m]
        if len(found) < len(names) or "{" in declaration:
            file, line = place_of(unit, match.start())
            words = "what stands in shared memory must be declared with the name of a type, which is defined before"
            raise DeviceError(f"{file}:{line}: __shared__ {' '.join(declaration.split())}: {words}")
        kind = found[0]["type"].strip()
        declared = [(kind + one["stars"].strip(), one["name"], one["dims"]) for one in found]
        macro = "MINIRES_SHARED" if depth else "MINIRES_GLOBAL_SHARED"
        outside += [] if depth else [(name, kind) for kind, name, _ in declared]
        lines = "\n" * unit.count("\n", match.start(), match.end())
        parts += [unit[end : match.start()], " ".join(f"{macro}({n}, {d}, {k});" for k, n, d in declared) + lines]
        end = match.end()
    known = "".join(f'minires_shared(&{n}_zone, &{n}, sizeof {n}, sizeof({k}), "{n}"); ' for n, k in outside)
    return f"{''.join(parts)}{unit[end:]}\nvoid minires::minires_globals() {{ {known}}}\n"


_CHECKED = "-fsanitize=thread,float-cast-overflow,shift-exponent,alignment"
# Of DWARF 5, addr2line of binutils 2.40 gets a unit's first file wrong.
_WATCHED = "-O1", "-g1", "-gdwarf-4", _CHECKED, "-fsanitize-recover=all"
INSTRUMENTS = Instruments(
    header=_HERE / "watched.h",
    runtime=tuple(_HERE / name for name in ("engine.cpp", "checks.cpp", "values.cpp", "trace.cpp")),
    rewrite=rewrite_shared,
    gcc_flags=(*_WATCHED, "-fno-tree-sra"),  # loads of vectors are to stay whole
    clang_flags=(*_WATCHED, "-fno-builtin", "-mllvm", "-tsan-instrument-read-before-write"),
)


# Launches


def cell_of(dtype: np.dtype) -> int:
    """Of how many bytes it is known apart who touched them."""
    return dtype.itemsize if dtype.kind != "V" else 4 if dtype.itemsize % 4 == 0 else 1


def _named_arrays(signature: Signature, args: list) -> list[tuple[str, np.ndarray]]:
    """The arrays among the arguments, with names for messages."""
    named = []
    for p, argument in zip(signature.parameters, args, strict=True):
        if isinstance(argument, list):
            named += [(f"{p.name}[{i}]", array) for i, array in enumerate(argument)]
        elif isinstance(argument, np.ndarray):
            named.append((p.name, argument))
    return named


def _arena(arrays: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Memory with a copy of every array between red zones. An array given twice has one copy."""
    places: dict[tuple[int, int], int] = {}
    end = _RED_ZONE
    for array in arrays:
        key = array.ctypes.data, array.nbytes
        if key not in places:
            places[key] = end
            end += -(-array.nbytes // 256) * 256 + _RED_ZONE
    memory = np.full(end + 256, 255, np.uint8)
    memory = memory[-memory.ctypes.data % 256 :]  # as CUDA aligns what it allocates
    copies = []
    for array in arrays:
        begin = places[array.ctypes.data, array.nbytes]
        copies.append(memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape))
        np.copyto(copies[-1], array)
    return memory, copies


class WatchedLaunch:
    """A launch on copies of its arrays: `arrays`, with `names`, their `copies` in `memory`, and of each the `cells`.

    `known(array)` gives those: which cells of an array hold something, None where all do.
    """

    def __init__(
        self, library: Library, name: str, launch: tuple, known: Callable[[np.ndarray], Any] = lambda array: None
    ) -> None:
        grid, block, args, shared = launch
        (signature, kernel), self._path = library.kernels[name], library.path
        named = _named_arrays(signature, args)
        self.kernel, self.names, self.arrays = signature.name, [n for n, _ in named], [a for _, a in named]
        self.memory, self.copies = _arena(self.arrays)
        self.cells = [known(array) for array in self.arrays]
        copies, regions = iter(self.copies), (Region * max(len(named), 1))()
        for i, (copy, cells) in enumerate(zip(self.copies, self.cells, strict=True)):
            at = None if cells is None else cells.ctypes.data
            regions[i] = Region(copy.ctypes.data, copy.nbytes, copy.itemsize, cell_of(copy.dtype), at)
        copied = [
            [next(copies) for _ in a] if isinstance(a, list) else next(copies) if isinstance(a, np.ndarray) else a for a in args
        ]
        self._values, pointers = pack_arguments(copied)
        geometry, sizes = (ctypes.c_uint * 6)(*grid, *block), list(map(ctypes.c_uint64, (shared, len(named))))
        self._arguments = ctypes.byref(kernel), geometry, sizes[0], pointers, regions, sizes[1]

    def run(self, function: Callable, *more: Any) -> tuple[int, Report]:
        """What minires_check or minires_trace gives, and where it stopped."""
        report = Report()
        return function(*self._arguments, *more, ctypes.byref(report)), report

    def describe(self, report: Report) -> str:
        """A report in words."""
        where = f", {line}" if report.pc and (line := _source_line(self._path, report.pc)) != "??:0" else ""
        thread = f"block {tuple(report.block)}, thread {tuple(report.thread)}"
        text = report.text.decode()
        if report.elements:
            name = f"shared array {report.name.decode()}" if report.region < 0 else self.names[report.region]
            text += f": {name}[{report.index}], of {report.elements} elements"
            if report.other_pc:
                text += f" (the other access: {_source_line(self._path, report.other_pc)})"
        return f"kernel {self.kernel}{where}, {thread}: {text}"


# Source lines


def source_lines(path: Path, addresses: list[int]) -> list[tuple[str, int]]:
    """File and line of the instructions before some return addresses. Raises OSError where no tool can tell."""
    tools = {"addr2line": ["addr2line", "-e"], "llvm-symbolizer": ["llvm-symbolizer", "--output-style=GNU", "-f=none", "-e"]}
    tools["atos"] = ["atos", "-o"]
    tool = next((command for name, command in tools.items() if shutil.which(name)), None)
    if tool is None:
        raise OSError("source lines are found by addr2line (Debian, Ubuntu: apt install binutils), llvm-symbolizer or atos")
    text = "\n".join(hex(pc - 1) for pc in addresses)
    output = subprocess.run([*tool, str(path)], input=text, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^(?:.*\()?([^()\n]*?):(\d+|\?)", output, re.MULTILINE)
    return [(_short(file), int(line) if line.isdigit() else 0) for file, line in found]


def _short(name: str) -> str:
    file = Path(name.strip())
    return f"{file.parent.name}/{file.name}" if file.is_absolute() and file.parent.name == "kernels" else file.name


def _source_line(path: Path, pc: int) -> str:
    """`file:line` of the instruction before a return address."""
    try:
        ((file, line),) = source_lines(path, [pc])
    except (OSError, ValueError):
        return f"{path.name}+{pc - 1:#x}"
    return f"{file}:{line}"

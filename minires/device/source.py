"""What both devices share: where the kernels are, how a source is made ready, and what a kernel's parameters are."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the kernels inside the package; a checkout has them beside it.
KERNELS_DIR = next(d for d in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels") if d.is_dir())


class DeviceError(RuntimeError):
    """A device cannot be used, or a kernel could not be compiled or did not run to its end."""


def forbid_while_recording(device: Any) -> None:
    """Raise DeviceError where a graph is being recorded: what the host reads or writes is not in it."""
    if device.is_recording:
        raise DeviceError("a recorded function must not bring data from or to the host: see minires.graph")


# Sources


def read_source(path: Path) -> str:
    """The file's text after a line that lets messages name it."""
    return f'#line 1 "{path.as_posix()}"\n{path.read_text()}\n'


@functools.cache
def library_files() -> dict[str, Path]:
    """The file of `kernels/` that holds each kernel, by the kernel's name without template arguments."""
    return {name: path for path in sorted(KERNELS_DIR.glob("*.cu")) for name in find_kernels(path.read_text())}


def expand_includes(code: str, replace: Callable[[str], str | None]) -> str:
    """`code` with unix line ends, and with common.cuh in the place of its #include: a cache then sees its changes too.

    `replace` says what stands for the header of any other #include line; None keeps the line.
    """
    code = code.removeprefix("\ufeff").replace("\r\n", "\n")

    def one(match: re.Match) -> str:
        text = read_source(KERNELS_DIR / "common.cuh") if match[1] == "common.cuh" else replace(match[1])
        if text is None or "\n" not in text:
            return match[0] if text is None else text
        name, line = place_of(code, match.start())
        return f'{text.rstrip()}\n#line {line + 1} "{name}"'

    return _INCLUDE.sub(one, code)


def place_of(code: str, position: int) -> tuple[str, int]:
    """File and line of a place in `code`, by the last #line above it."""
    marks = list(re.finditer(r'^#line (\d+) "([^"\n]*)"$', code[:position], re.MULTILINE))
    if not marks:
        return "RawKernel", code.count("\n", 0, position) + 1
    return marks[-1][2], int(marks[-1][1]) + code.count("\n", marks[-1].end(), position) - 1


# Headers of a whole program that a kernel does not need; what they declare for kernels is built in.
HOST_HEADERS = re.compile(
    r"cuda\w*\.h|(?:device|vector|surface|texture|channel|driver|host)_\w+\.h|sm_\d+_\w+\.h|math_functions\.h"
    r"|(?:helper|exception|nvidia)\w*\.h|(?:cu(?:blas|sparse|fft|solver|rand|dnn)|nvml|nccl|nvToolsExt)\w*\.h|mpi\.h"
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"].*$', re.MULTILINE)
_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def blank(code: str) -> str:
    """`code` with spaces in the place of comments and of what stands between quotes: braces then pair up."""
    return _COMMENT_OR_STRING.sub(lambda m: re.sub(r"[^\n\"']", " ", m[0]) if m[0][0] != "/" else spaces(m[0]), code)


def spaces(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def closing(code: str, begin: int) -> int:
    """The place behind the bracket that closes the one at `begin`; the end of the code where none does."""
    depth = 0
    for bracket in re.finditer(r"[()\[\]{}]", code[begin:]):
        depth += 1 if bracket[0] in "([{" else -1
        if depth == 0:
            return begin + bracket.end()
    return len(code)


# Kernels in a source


@dataclass(frozen=True)
class KernelText:
    """Where a kernel stands in a source, and its template parameters and parameters as they are written there."""

    name: str
    begin: int
    end: int
    template: tuple[str, ...] | None  # None: it is no template
    parameters: tuple[str, ...]


_BEFORE = re.compile(
    r'(?:template\s*<(?P<parameters>[^;{}]*)>\s*)?(?:(?:extern\s*"[^"]*"|static|inline|__forceinline__|__launch_bounds__'
    r"\s*\([^()]*\))\s*)*$"
)
_MACRO = re.compile(r"^[ \t]*#[ \t]*define\b(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_ATTRIBUTE = re.compile(r"(?:__\w+__|alignas)\s*\((?:[^()]|\([^()]*\))*\)")
_DECLARATOR = re.compile(r"(?P<name>\w+)\s*(?:<[^;{}()]*>)?\s*\(")


@functools.lru_cache(maxsize=64)  # of a source it is asked for each instance of its templates
def find_kernels(code: str) -> dict[str, KernelText]:
    """The `__global__` functions that `code` defines."""
    text, found = blank(code), {}
    text = _MACRO.sub(lambda m: spaces(m[0]), text)  # what a macro defines has no name yet
    for mark in re.finditer(r"__global__", text):
        after = _ATTRIBUTE.sub(lambda m: spaces(m[0]), text[mark.end() : mark.end() + 4000])
        declarator = _DECLARATOR.search(after)
        if not declarator:
            continue
        opening = mark.end() + declarator.end() - 1
        body = closing(text, opening)
        while body < len(text) and text[body].isspace():
            body += 1
        if text[body : body + 1] != "{":
            continue
        before = _BEFORE.search(text[max(mark.start() - 2000, 0) : mark.start()])
        assert before  # the empty string matches
        template = before["parameters"]
        names = split(template) if template is not None else ()
        begin = mark.start() - len(before[0])
        written = split(text[opening + 1 : closing(text, opening) - 1])
        parameters = [p.partition("=")[0].strip() for p in written if p != "void"]  # without defaults
        found[declarator["name"]] = KernelText(
            declarator["name"], begin, closing(text, body), None if template is None else tuple(names), tuple(parameters)
        )
    return found


def split(text: str) -> list[str]:
    """The parts between the commas that stand outside of brackets."""
    parts, depth, begin = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return [part for part in [*parts, text[begin:].strip()] if part]


@functools.cache
def base_name(name: str) -> str:
    """The kernel's name in a name expression, `scale` in `filters::scale<float, 4>`."""
    return name.split("<")[0].split("::")[-1].strip()


@functools.lru_cache(maxsize=1024)
def named(name: str, code: str = "") -> str:
    """An instance with its parameters' names, `conv3x3<rows=8, columns=32, ...>`, as `code` or else `kernels/` has them."""
    file, values = library_files().get(base_name(name)), split(name.partition("<")[2].rpartition(">")[0])
    text = find_kernels(code or (file.read_text() if file else "")).get(base_name(name)) if values else None
    if text is None or text.template is None or len(text.template) != len(values):
        return name
    names = [re.sub(r"\s*=.*", "", parameter).split()[-1].lower() for parameter in text.template]
    return f"{base_name(name)}<{', '.join(f'{n}={v}' for n, v in zip(names, values, strict=True))}>"


def parameter_name(declaration: str, number: int) -> str:
    """The name in a parameter's declaration; `argument 2` where it has none."""
    words = re.findall(r"[A-Za-z_]\w*", re.sub(r"\[.*", "", declaration))
    return words[-1] if len(words) > 1 else f"argument {number}"


# Parameters and arguments


@dataclass(frozen=True)
class Parameter:
    """A parameter's name, kind and type. A type that is no number is a NumPy void of its size; None is not known."""

    name: str
    kind: str  # "scalar", "array" (a pointer) or "arrays" (minires's Pointers<T>)
    dtype: np.dtype | None


@dataclass(frozen=True)
class Signature:
    """A kernel's name and parameters."""

    name: str
    parameters: tuple[Parameter, ...]

    def bind(self, args: tuple, array_type: type) -> list[Any]:
        """`args` with every scalar as a NumPy scalar of its parameter's type; arrays and None are checked and kept.

        A structure is given as a NumPy structured scalar; an array of vectors or structures as an array of a dtype of
        that size, or with a last axis of that many bytes.
        """
        if len(args) != len(self.parameters):
            names = ", ".join(p.name for p in self.parameters)
            raise TypeError(f"kernel {self.name} takes {len(self.parameters)} arguments ({names}), {len(args)} were given")
        return [self._bind_one(p, a, array_type) for p, a in zip(self.parameters, args, strict=True)]

    def _bind_one(self, p: Parameter, value: Any, array_type: type[Any]) -> Any:
        if type(value) is array_type and p.kind == "array" and value.dtype == p.dtype and value.flags.c_contiguous:
            return value  # most are so: no words for what is not wrong
        where = f"argument {p.name!r} of kernel {self.name}"
        if p.kind == "scalar":
            return _scalar(p.dtype, value, where)
        if value is None:
            return [] if p.kind == "arrays" else None
        if p.kind == "arrays":
            if not isinstance(value, (list, tuple)) or len(value) > MAX_POINTERS:
                raise TypeError(
                    f"{where} must be a list of at most {MAX_POINTERS} {p.dtype} arrays, got "
                    + (f"{len(value)} arrays" if isinstance(value, (list, tuple)) else type(value).__name__)
                )
            array = Parameter(p.name, "array", p.dtype)
            return [self._bind_one(array, one, array_type) for one in value]
        if not isinstance(value, array_type):
            raise TypeError(
                f"{where} must be a {array_type.__module__} array on the current device, got {type(value).__module__}."
                f"{type(value).__name__}: create it on this device, or call minires.set_device first"
            )
        if not _fits(value, p.dtype):
            raise TypeError(f"{where} must be {_words(p.dtype)}, got {value.dtype} of shape {value.shape}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous, got strides {value.strides} for shape {value.shape}")
        return value


C_TYPE = {"float32": "float", "float64": "double"}  # what scalar_t is, by the dtype's name
MAX_POINTERS = 64  # of Pointers<T> in kernels/common.cuh


def _words(dtype: np.dtype | None) -> str:
    if dtype is None or dtype.kind != "V":
        return f"a {dtype} array"
    return f"an array of elements of {dtype.itemsize} bytes, or with a last axis of so many"


def _fits(array: Any, dtype: np.dtype | None) -> bool:
    if dtype is None:
        return True
    if dtype.kind != "V":
        return array.dtype == dtype
    last = array.shape[-1] if array.shape else 1
    return dtype.itemsize in (array.dtype.itemsize, array.dtype.itemsize * last)


def _scalar(dtype: np.dtype | None, value: Any, where: str) -> Any:
    if dtype is None or dtype.kind == "V":
        wanted = "of its type" if dtype is None else f"of {dtype.itemsize} bytes"
        if not isinstance(value, np.generic) or (dtype is not None and value.dtype.itemsize != dtype.itemsize):
            raise TypeError(f"{where} is a structure: give a NumPy structured scalar {wanted}, got {value!r}")
        return value
    if type(value) is not int:
        if not isinstance(value, (bool, int, float, np.generic)) or isinstance(value, np.void):
            raise TypeError(f"{where} must be a {dtype} scalar, got {type(value).__name__}")
        if dtype.kind in "iu" and int(value) != value:
            raise TypeError(f"{where} must be a whole number, got {value!r}")
    try:
        return dtype.type(value)
    except OverflowError:
        raise ValueError(f"{where} is {value}, which does not fit {dtype}") from None


def arrays_in(args: Iterable[Any], array_type: type) -> list[Any]:
    """The arrays among the arguments, those in lists too."""
    flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return [a for a in flat if isinstance(a, array_type)]


# Launches

_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
MAX_SHARED = 48 * 1024  # bytes of shared memory that every GPU grants a block without asking


def check_geometry(name: str, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> tuple[tuple, tuple]:
    """`grid` and `block` filled up to three dimensions. Raises ValueError outside CUDA's limits, on either device."""
    for what, dims, limits in (("grid", grid, _MAX_GRID), ("block", block, _MAX_BLOCK)):
        whole = isinstance(dims, (tuple, list)) and all(isinstance(d, (int, np.integer)) for d in dims)
        if not whole or not 1 <= len(dims) <= 3:
            raise TypeError(f"{what} of kernel {name} must be a tuple of one to three integers, got {dims!r}")
        if any(not 1 <= d <= limit for d, limit in zip(dims, limits, strict=False)):
            raise ValueError(f"{what} of kernel {name} is {tuple(dims)}: each must lie in 1 .. {limits}")
    grid, block = ((*map(int, dims), 1, 1)[:3] for dims in (grid, block))
    if block[0] * block[1] * block[2] > 1024:
        raise ValueError(f"block of kernel {name} is {block}: it may have at most 1024 threads")
    if not isinstance(shared_mem, (int, np.integer)) or not 0 <= shared_mem <= MAX_SHARED:
        raise ValueError(f"shared_mem of kernel {name} is {shared_mem!r}: it must lie in 0 .. {MAX_SHARED} bytes")
    return grid, block


Run = Callable[[tuple, tuple, list, int], None]  # (grid, block, bound arguments, bytes of dynamic shared memory)


class Module:
    """A source, whose kernels are compiled when they are first asked for.

    `compile_names` compiles the kernels of some name expressions together, and gives each one's signature and how it
    is run.
    """

    def __init__(
        self, code: str, array_type: type, compile_names: Callable[[tuple[str, ...]], dict[str, tuple[Signature, Run]]]
    ) -> None:
        self.texts = find_kernels(code)
        self._code, self._array_type, self._compile = code, array_type, compile_names
        self._kernels: dict[str, Callable] = {}

    def kernel(self, name: str, together: bool = False) -> Callable[..., None]:
        """The kernel of a name expression, `(grid, block, args, shared_mem=0)`.

        With `together`, all kernels that are no templates are compiled at once with the first of them. Raises
        ValueError where the source has no such kernel.
        """
        if name not in self._kernels:
            if not re.search(rf"\b{re.escape(base_name(name))}\b|##", self._code):  # ##: a macro may make the name
                known = ", ".join(sorted(self.texts)) or "none"
                raise ValueError(f"no kernel {name!r} (__global__ void {name}(...)) in the source; it has: {known}")
            plain = tuple(text.name for text in self.texts.values() if text.template is None)
            names = plain if together and name in plain else (name,)
            for one, (signature, run) in self._compile(names).items():
                self._kernels[one] = self._bind(signature, run)
        return self._kernels[name]

    def _bind(self, signature: Signature, run: Run) -> Callable[..., None]:
        def call(grid: tuple, block: tuple, args: tuple, shared_mem: int = 0) -> None:
            geometry = check_geometry(signature.name, grid, block, shared_mem)
            run(*geometry, signature.bind(args, self._array_type), int(shared_mem))

        return call

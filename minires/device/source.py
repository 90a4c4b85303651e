"""What both devices share: where the kernel sources are, and what a kernel's parameters are."""

from __future__ import annotations

import ctypes
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


def _read(path: Path) -> str:
    return f'#line 1 "{path.as_posix()}"\n{path.read_text()}\n'


def library_source() -> str:
    """One translation unit with every kernel of `kernels/`."""
    return "".join(map(_read, sorted(KERNELS_DIR.glob("*.cu"))))


def expand_include(code: str) -> str:
    """`code` with common.cuh in the place of its #include, so that a cache keyed by the code sees its changes too."""
    header, *rest = _INCLUDE.split(code)
    return code if not rest else header + _read(KERNELS_DIR / "common.cuh") + "\n".join(rest)


_INCLUDE = re.compile(r'^#include "common.cuh"$', re.MULTILINE)
_C_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "bool": np.bool_,
    "char": np.int8,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    **{f"{u}int{bits}_t": getattr(np, f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)},
}
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{'
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    name: str
    dtype: np.dtype
    pointers: int  # 0: a scalar, 1: an array, 2: a list of arrays


@dataclass(frozen=True)
class Signature:
    """A kernel's name and parameters, read from its source."""

    name: str
    parameters: tuple[Parameter, ...]

    @staticmethod
    def parse(code: str, scalar: np.dtype) -> dict[str, Signature]:
        """The signatures of all `extern "C" __global__` kernels in `code`, where `scalar_t` means `scalar`."""
        found = {}
        for name, parameters in _KERNEL.findall(_COMMENT.sub(" ", code)):
            declarations = [p for p in parameters.split(",") if p.strip()]
            found[name] = Signature(name, tuple(_parse_parameter(name, p, scalar) for p in declarations))
        return found

    def bind(self, args: tuple, array_type: type) -> list[Any]:
        """`args` with every scalar as a NumPy scalar of its parameter's type; arrays and None are checked and kept."""
        if len(args) != len(self.parameters):
            names = ", ".join(p.name for p in self.parameters)
            raise TypeError(
                f"kernel {self.name} takes {len(self.parameters)} arguments ({names}), {len(args)} were given"
            )
        return [self._bind_one(p, a, array_type) for p, a in zip(self.parameters, args, strict=True)]

    def _bind_one(self, p: Parameter, value: Any, array_type: type) -> Any:
        where = f"argument {p.name!r} of kernel {self.name}"
        if p.pointers == 0:
            if not isinstance(value, (bool, int, float, np.generic)):
                raise TypeError(f"{where} must be a {p.dtype} scalar, got {type(value).__name__}")
            if p.dtype.kind in "iu" and int(value) != value:
                raise TypeError(f"{where} must be a whole number, got {value!r}")
            try:
                return p.dtype.type(value)
            except OverflowError:
                raise ValueError(f"{where} is {value}, which does not fit {p.dtype}") from None
        if value is None:
            return None
        if p.pointers == 2 and isinstance(value, (list, tuple)):
            array = Parameter(p.name, p.dtype, 1)
            return [self._bind_one(array, one, array_type) for one in value]
        if p.pointers == 2:
            raise TypeError(f"{where} must be a list of {p.dtype} arrays, got {type(value).__name__}")
        if not isinstance(value, array_type):
            raise TypeError(
                f"{where} must be a {array_type.__module__} array on the current device, got {type(value).__module__}."
                f"{type(value).__name__}: create it on this device, or call minires.set_device first"
            )
        if value.dtype != p.dtype:
            raise TypeError(f"{where} must be a {p.dtype} array, got {value.dtype}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous, got strides {value.strides} for shape {value.shape}")
        return value


def _parse_parameter(kernel: str, declaration: str, scalar: np.dtype) -> Parameter:
    words = re.sub(r"\b(?:const|__restrict__|restrict|volatile)\b", " ", declaration.replace("*", " * ")).split()
    pointers = words.count("*")
    *type_words, name = [w for w in words if w != "*"]
    c_type = " ".join(type_words)
    if c_type == "scalar_t":
        return Parameter(name, np.dtype(scalar), pointers)
    if c_type not in _C_TYPES:
        raise TypeError(
            f"parameter {name!r} of kernel {kernel} has the type {c_type!r}; use one of {', '.join(_C_TYPES)}"
        )
    return Parameter(name, np.dtype(_C_TYPES[c_type]), pointers)


_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)


def check_geometry(name: str, grid: tuple[int, ...], block: tuple[int, ...]) -> tuple[tuple, tuple]:
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
    return grid, block


class Module:
    """Compiled source: its kernels by name, each a callable `(grid, block, args)`."""

    def __init__(
        self, code: str, scalar: np.dtype, array_type: type, function: Callable[[Signature], Callable]
    ) -> None:
        self._signatures = Signature.parse(code, scalar)
        self._array_type = array_type
        self._function = function
        self._kernels: dict[str, Callable] = {}

    def kernel(self, name: str) -> Callable[[tuple, tuple, tuple], None]:
        """Raises ValueError where the source has no such kernel."""
        if name not in self._kernels:
            if name not in self._signatures:
                known = ", ".join(sorted(self._signatures)) or "none"
                raise ValueError(
                    f'no kernel {name!r} (extern "C" __global__ void {name}(...)) in the source; it has: {known}'
                )
            self._kernels[name] = self._bind_kernel(self._signatures[name])
        return self._kernels[name]

    def _bind_kernel(self, signature: Signature) -> Callable[[tuple, tuple, tuple], None]:
        function, array_type = self._function(signature), self._array_type

        def call(grid: tuple, block: tuple, args: tuple) -> None:
            function(*check_geometry(signature.name, grid, block), signature.bind(args, array_type))

        return call


def arrays_in(args: Iterable[Any], array_type: type) -> list[Any]:
    """The arrays among the arguments, those in lists too."""
    flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
    return [a for a in flat if isinstance(a, array_type)]


def pack_arguments(args: list) -> tuple[list, ctypes.Array]:
    """The arguments as C values, and an array of their addresses, which is good as long as the values are kept."""
    values = [_c_value(a) for a in args]
    return values, (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


def _c_value(argument: Any) -> Any:
    if argument is None or isinstance(argument, np.ndarray):
        return ctypes.c_void_p(_address(argument))
    if isinstance(argument, list):  # the array decays to a pointer to its first element
        return ctypes.pointer((ctypes.c_void_p * len(argument))(*map(_address, argument)))
    return _C[argument.dtype](argument)


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.__array_interface__["data"][0]


_C = {np.dtype(t): c for t, c in ((t, np.ctypeslib.as_ctypes_type(t)) for t in "?bBhHiIqQfd")}

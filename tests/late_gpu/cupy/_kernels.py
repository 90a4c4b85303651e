"""RawModule: kernels compiled by the product's CPU device in the tiling of a GPU, their arguments packed as CuPy does."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np

from minires.device.source import DeviceError

from . import _arrays, _errors, _queues
from .cuda import compiler


def pack(argument: Any) -> bytes:
    """The bytes that CuPy's function.pyx puts into a launch; their number is the value's, not the parameter's."""
    if isinstance(argument, _arrays.ndarray):
        return np.uint64(argument.data.ptr).tobytes()
    if isinstance(argument, np.ndarray):
        if argument.size != 1:
            raise TypeError("a NumPy array as an argument must have one element, which is passed by value")
        return argument.tobytes()
    if isinstance(argument, np.generic) and not isinstance(argument, np.void):
        return argument.tobytes()
    for python, numpy in ((bool, np.bool_), (int, np.int64), (float, np.float64), (complex, np.complex128)):
        if isinstance(argument, python):
            return numpy(argument).tobytes()
    raise TypeError(f"Unsupported type {type(argument)}")


class RawModule:
    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: list[str] | None = None,
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError("compiler options must be a tuple")
        self._code, self._options, self._names, self._library = code, options, tuple(name_expressions or ()), None

    def get_function(self, name: str) -> _Function:
        from minires.device import cuda
        from minires.device.cpu import compile_library

        c_type = next((o.partition("=")[2] for o in self._options if o.startswith("-Dscalar_t=")), "float")
        code = self._code
        for built_in in (
            cuda._FIXED_WIDTH,
            cuda._LIMITS,
            cuda._SHORT,
        ):  # what NVRTC has to be given, and a C++ compiler has
            code = code.replace(built_in, "")
        try:
            self._library = self._library or compile_library(
                code, self._names, np.dtype({"float": "f4", "double": "f8"}[c_type])
            )
        except DeviceError as error:
            raise compiler.CompileException(str(error), self._code, name, self._options) from None
        return _Function(self._library, name)


class _Function:
    def __init__(self, library: Any, name: str) -> None:
        self._library, self._name = library, name  # it keeps the library loaded
        self._signature, _ = library.kernels[name]

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        packed = [pack(a) for a in args]
        wanted = [self._bytes(p) for p in self._signature.parameters]
        # CUDA reads as many bytes as the parameter has: what is missing is whatever lies there.
        values = [
            ctypes.create_string_buffer(p.ljust(n, b"\xab"), max(n, 1)) for p, n in zip(packed, wanted, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        geometry = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        launch = self._library.launch(self._name, *geometry, (values, pointers), 1)

        def run() -> None:
            try:
                launch()
            except DeviceError as error:
                _errors.pending.append("cudaErrorAssert: " + re.sub(r"\s+", " ", str(error)))

        _queues.current[-1].put(run)

    @staticmethod
    def _bytes(parameter: Any) -> int:
        return {"array": 8, "arrays": 512}.get(parameter.kind) or parameter.dtype.itemsize

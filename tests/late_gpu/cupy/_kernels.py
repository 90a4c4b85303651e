"""RawModule: kernels as NVRTC compiles them, executed instruction by instruction; their arguments packed as CuPy does.

Where NVRTC is not installed the product's CPU device compiles the same source, in the tiling of a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ptx
from occupancy import compile_with_nvrtc

from minires.device import cuda
from minires.device.cache import cached
from minires.device.cpu import Library, compile_library
from minires.device.source import DeviceError

from . import _arrays, _errors, _queues
from .cuda import compiler


def _real_cupy() -> Path:
    return Path(importlib.metadata.distribution("cupy-cuda12x").locate_file("cupy"))


@functools.cache
def nvrtc() -> Any:
    """The real CuPy's bindings, which do not need the rest of it; None where it or NVRTC is not there."""
    name = "cupy._environment"  # finds NVRTC's library
    try:
        spec = importlib.util.spec_from_file_location(name, _real_cupy() / "_environment.py")
        sys.modules[name] = sys.modules["cupy"]._environment = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        from cupy_backends.cuda.libs import nvrtc

        if nvrtc.getVersion():
            sys.modules["cupy.cuda.nvrtc"] = sys.modules["cupy.cuda"].nvrtc = nvrtc
            return nvrtc
    except (ImportError, RuntimeError, OSError):
        pass
    return None


def description() -> str:
    if nvrtc() is None:
        return "kernels by the C++ compiler: NVRTC is not installed"
    return f"PTX of NVRTC {'.'.join(map(str, nvrtc().getVersion()))} for compute_{_ARCHITECTURE}, executed"


_ARCHITECTURE = os.environ.get("LATE_GPU_ARCHITECTURE", "90")


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
        self._code, self._options, self._names = code, options, tuple(name_expressions or ())

    def get_function(self, name: str) -> _Function:
        try:
            return self._functions[name]
        except DeviceError as error:
            raise compiler.CompileException(str(error), self._code, name, self._options) from None

    @functools.cached_property
    def _functions(self) -> dict[str, _Function]:
        c_type = next((o.partition("=")[2] for o in self._options if o.startswith("-Dscalar_t=")), "float")
        scalar = np.dtype({"float": "f4", "double": "f8"}[c_type])
        if nvrtc():
            # cuda.py gives a header of CuPy's with it, whose place this package has taken
            headers = _real_cupy() / "_core/include/cupy/_cccl/libcudacxx"
            options = *self._options, f"-I{headers}", f"-arch=compute_{_ARCHITECTURE}"
            cxx, entries, lowered = _translated(self._code, self._names, options)
            library = compile_library(cxx, tuple(entries), scalar)
            return {n: _Function(library, lowered[n], entries[lowered[n]]) for n in self._names}
        code = self._code
        for built_in in (cuda._FIXED_WIDTH, cuda._LIMITS, cuda._SHORT):  # which a C++ compiler has
            code = code.replace(built_in, "")
        library = compile_library(code, self._names, scalar)
        return {n: _Function(library, n, [_bytes(p) for p in library.kernels[n][0].parameters]) for n in self._names}


def _translated(code: str, names: tuple[str, ...], options: tuple[str, ...]) -> list[Any]:
    """What NVRTC makes of a source in C++, the entries and their names: kept from one process to the next, of which there are
    many."""

    def make(path: Path) -> None:
        compiled = compile_with_nvrtc(code, names, options)
        program = ptx.translate(broken(compiled["ptx"]))
        path.write_text(json.dumps([program.code, program.entries, compiled["names"]]))

    translator, mistake = Path(ptx.__file__).read_text(), os.environ.get("LATE_GPU_BREAK", "")
    parts = [code, *names, *options, str(nvrtc().getVersion()), translator, ptx.HEADER, mistake]
    return json.loads(cached(parts, make).read_text())


def broken(text: str) -> str:
    """PTX with a mistake in it, that a test of the tests asks for: in the entry of a kernel something becomes something else."""
    if not (asked := os.environ.get("LATE_GPU_BREAK")):
        return text
    kernel, pattern, replacement = json.loads(asked)
    begin = re.search(rf"\.entry \w*{kernel}", text)
    if not begin:
        return text
    entry, found = re.subn(pattern, replacement, text[begin.start() :], count=1)
    assert found, f"{pattern} is not in {kernel}"
    return text[: begin.start()] + entry


def _bytes(parameter: Any) -> int:
    return {"array": 8, "arrays": 512}.get(parameter.kind) or parameter.dtype.itemsize


class _Function:
    def __init__(self, library: Library, name: str, sizes: list[int]) -> None:
        self._library, self._name, self._sizes = library, name, sizes  # it keeps the library loaded

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        packed = [pack(a) for a in args]
        # CUDA reads as many bytes as the parameter has: what is missing is whatever lies there.
        packed = [p.ljust(n, b"\xab") for p, n in zip(packed, self._sizes, strict=True)]
        packed.append(np.uint64(shared_mem).tobytes())  # of which PTX's entries are told
        values = [ctypes.create_string_buffer(p, max(len(p), 1)) for p in packed]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        geometry = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        launch = self._library.launch(self._name, *geometry, (values, pointers), 1)

        def run() -> None:
            try:
                launch()
            except DeviceError as error:
                _errors.pending.append("cudaErrorAssert: " + re.sub(r"\s+", " ", str(error)))

        _queues.current[-1].put(run)

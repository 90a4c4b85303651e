"""How a kernel is compiled and launched: the only package that knows CuPy from NumPy.

A device allocates arrays, copies them to and from the host, and compiles and launches CUDA C++. There are two, with
the same methods: `cuda` (CuPy and NVRTC) and `cpu` (NumPy and the host's C++ compiler). Arrays are CuPy's on the
first and NumPy's on the second.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .source import KERNELS_DIR, MAX_POINTERS, DeviceError, Module, arrays_in, base_name, library_files, read_source

__all__ = [
    "KERNELS_DIR", "MAX_POINTERS", "DeviceError", "RawKernel", "current", "describe_device", "get_device", "is_watched",
    "launch", "observe", "set_device",
]  # fmt: skip

_current = None


@functools.cache
def _make(name: str) -> Any:
    if name == "cpu":
        from .cpu import CpuDevice

        return CpuDevice()
    if name == "cuda":
        from .cuda import CudaDevice

        return CudaDevice()
    raise ValueError(f"unknown device {name!r}: choose 'cuda' or 'cpu' (see MINIRES_DEVICE and minires.set_device)")


def _gpu_is_usable() -> bool:
    try:
        _make("cuda")
    except DeviceError:
        return False
    return True


def current():
    """The device that kernels run on, chosen at the first call: MINIRES_DEVICE, else `cuda` if usable, else `cpu`."""
    global _current
    if _current is None:
        _current = _make(os.environ.get("MINIRES_DEVICE") or ("cuda" if _gpu_is_usable() else "cpu"))
    return _current


def get_device() -> str:
    """The name of the device that kernels run on: `"cuda"` or `"cpu"`."""
    return current().name


def describe_device() -> str:
    """The device that kernels run on and what compiles for it, in words."""
    return current().description()


def set_device(name: str) -> None:
    """Make `name`, `"cuda"` or `"cpu"`, the device of all tensors and kernels created from now on.

    Raises ValueError for another name, and DeviceError where the device cannot be used, saying why.
    """
    global _current
    _current = _make(name)


@functools.cache
def _library(device: Any, file: Path, scalar: np.dtype, watcher: str) -> Module:
    return device.compile(read_source(file), scalar)


@functools.cache
def _kernel(device: Any, name: str, scalar: np.dtype, watcher: str) -> Callable[..., None]:
    file = library_files().get(base_name(name))
    if file is None:
        raise ValueError(f"no kernel {name!r} in {KERNELS_DIR}")
    return _library(device, file, scalar, watcher).kernel(name, together=True)


def launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, scalar: np.dtype | None = None) -> None:
    """Launch a kernel of `kernels/`, `relu_forward` or an instance of a template, `gemm<...>`, on the current device.

    `args` are device arrays (None is a null pointer), lists of them where the parameter is a Pointers<T>, and Python or
    NumPy scalars, in the order of the kernel's parameters. `scalar`, or the dtype of the first floating-point array,
    is scalar_t. Raises ValueError for an unknown kernel, TypeError where an argument does not fit its parameter.
    """
    now = current()
    if scalar is None:
        floats = (a.dtype for a in args if type(a) is now.array_type and a.dtype.kind == "f")
        scalar = next(floats, None) or next(a.dtype for a in arrays_in(args, now.array_type) if a.dtype.kind == "f")
    kernel = _kernel(now, name, scalar, type(now.watcher).__name__)
    if _observer is None:
        kernel(grid, block, args)
    else:
        _observer(name, lambda: kernel(grid, block, args), arrays_in(args, now.array_type))


Observer = Callable[[str, Callable[[], None], list], None]
_observer: Observer | None = None


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Within this context `observer(name, run, arrays)` is called for each launch, and runs it by calling `run()`."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def is_watched() -> bool:
    """Whether an observer, the sanitizer or counters look at each launch."""
    return _observer is not None or current().watcher is not None


class RawKernel:
    """A CUDA C++ kernel of your own, compiled for the current device and called as `cupy.RawKernel` is.

    `code` is CUDA C++17 that holds `__global__ void name(...)`, and `name` a name expression: for a template,
    "scale<float, 4>". `#include "common.cuh"` finds the one in `kernels/`, and `scalar_t` is float.
    `kernel(grid, block, args, shared_mem=0)` launches it on the current device: `grid` and `block` are tuples of one to
    three integers, `args` a tuple of device arrays (None is a null pointer) and scalars, `shared_mem` the bytes of its
    `extern __shared__` arrays. Scalars are converted to their parameter's type; an array must have it already. A
    structure is given as a NumPy structured scalar, and an array of vectors (float4) or structures as an array of a
    dtype of that size, or with a last axis of that many bytes.

    Raises DeviceError with the compiler's message where the code does not compile, ValueError where it has no such
    kernel, TypeError or ValueError where an argument or the launch geometry does not fit.
    """

    def __init__(self, code: str, name: str) -> None:
        self._code, self._name = code, name
        self._compiled()

    def _compiled(self) -> Callable:
        now = current()
        return _user_module(now, self._code, type(now.watcher).__name__).kernel(self._name)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple, shared_mem: int = 0) -> None:
        self._compiled()(grid, block, args, shared_mem)


@functools.lru_cache(maxsize=256)
def _user_module(device: Any, code: str, watcher: str) -> Module:
    code = code.removeprefix("\ufeff")
    return device.compile(f'#line 1 "RawKernel"\n{code}', np.dtype(np.float32))

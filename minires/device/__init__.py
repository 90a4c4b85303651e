"""How a kernel is compiled and launched: the only package that knows CuPy from NumPy.

A device allocates arrays, copies them to and from the host, and compiles and launches CUDA C++. There are two, with
the same methods: `cuda` (CuPy and NVRTC) and `cpu` (NumPy and the host's C++ compiler). Arrays are CuPy's on the
first and NumPy's on the second.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .sanitizer import Sanitizer, SanitizerError
from .source import KERNELS_DIR, DeviceError, Module, Signature, arrays_in, library_source

__all__ = [
    "KERNELS_DIR",
    "DeviceError",
    "RawKernel",
    "SanitizerError",
    "Signature",
    "current",
    "describe_device",
    "get_device",
    "launch",
    "observe",
    "sanitize",
    "set_device",
]

_current = None


@functools.cache
def _make(name: str):
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


@contextlib.contextmanager
def sanitize(checks: str | Iterable[str] = "all", seed: int = 0) -> Iterator[None]:
    """Within this context kernels run slowly, one thread after another, and what CUDA leaves undefined is an error.

    `checks` are "all" or some of "race", "mem", "init" and "sync", as a list or with commas between; MINIRES_SANITIZE
    is the same for a whole process. Launches run in forward, reverse and random orders, which `seed` decides. Only
    arrays made within the context are checked for "init". Raises SanitizerError, with kernel, source line, block,
    thread, array and index, where it finds something; ValueError for an unknown check; DeviceError on a GPU, where
    NVIDIA's compute-sanitizer does this.
    """
    now = current()
    if now.name != "cpu":
        raise DeviceError("the sanitizer is one of the cpu device; on a GPU run NVIDIA's compute-sanitizer")
    before, now.sanitizer = now.sanitizer, Sanitizer(checks, seed)
    try:
        yield
    finally:
        now.sanitizer = before


@functools.cache
def _library(device, scalar: np.dtype, sanitized: bool) -> Module:
    return device.compile(library_source(), scalar)


def launch(
    name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, scalar: np.dtype | None = None
) -> None:
    """Launch the kernel `name` of `kernels/` on the current device.

    `args` are device arrays (None is a null pointer), lists of them where the parameter is a pointer to pointers, and
    Python or NumPy scalars, in the order of the kernel's parameters. `scalar`, or the dtype of the first
    floating-point array, says which of the two modules is used.
    Raises TypeError where an argument does not fit its parameter.
    """
    now = current()
    if scalar is None:
        scalar = next(a.dtype for a in arrays_in(args, now.array_type) if a.dtype.kind == "f")
    kernel = _library(now, scalar, now.sanitizer is not None).kernel(name)
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


class RawKernel:
    """A CUDA C++ kernel of your own, compiled for the current device and called as `cupy.RawKernel` is.

    `code` is CUDA C++17 that holds `extern "C" __global__ void name(...)`; `#include "common.cuh"` finds the one in
    `kernels/`, and `scalar_t` is float. `kernel(grid, block, args)` launches it on the current device: `grid` and
    `block` are tuples of one to three integers, `args` a tuple of device arrays (None is a null pointer) and scalars.
    Scalars are converted to their parameter's type; an array must have it already.

    Raises DeviceError with the compiler's message where the code does not compile, TypeError or ValueError where an
    argument or the launch geometry does not fit.
    """

    def __init__(self, code: str, name: str) -> None:
        self._code, self._name = code, name
        self._compiled()

    def _compiled(self) -> Callable:
        now = current()
        return _user_module(now, self._code, now.sanitizer is not None).kernel(self._name)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple) -> None:
        self._compiled()(grid, block, args)


@functools.lru_cache(maxsize=256)
def _user_module(device, code: str, sanitized: bool) -> Module:
    return device.compile(f'#line 1 "RawKernel"\n{code}', np.dtype(np.float32))

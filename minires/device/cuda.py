"""The CUDA device: CuPy for memory and launches, NVRTC for compiling."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from .source import DeviceError, Module, Signature, expand_include


def nvrtc_options(scalar: np.dtype) -> tuple[str, ...]:
    """The options that every kernel is compiled with."""
    c_type = {"float32": "float", "float64": "double"}[scalar.name]
    return ("-std=c++17", f"-Dscalar_t={c_type}", "-DBLOCKED=false")


def _driver_is_there() -> bool:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name) is not None
        except OSError:
            continue
    return False


def _import_cupy():
    if not _driver_is_there():  # without a driver, do not spend a second on importing CuPy
        raise DeviceError("the cuda device cannot be used: no NVIDIA driver (libcuda) was found; use the cpu device")
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"the cuda device cannot be used: CuPy cannot be imported ({error})") from None
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy
        reason = "CUDA finds no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = str(error)
    raise DeviceError(f"the cuda device cannot be used: {reason}; use the cpu device")


class CudaDevice:
    """CuPy arrays as device memory; kernels run on CuPy's current stream."""

    name = "cuda"
    sanitizer = None
    reduction_threads = 256  # of a block that adds up many values

    def __init__(self) -> None:
        self._cupy = _import_cupy()
        self.array_type = self._cupy.ndarray

    def description(self) -> str:
        name = self._cupy.cuda.runtime.getDeviceProperties(self._cupy.cuda.Device().id)["name"].decode()
        return f"cuda, {name}, CuPy {self._cupy.__version__}"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype):
        """An uninitialised array of device memory."""
        return self._cupy.empty(shape, dtype)

    def to_device(self, array):
        """A copy of a host array in device memory."""
        return self._cupy.array(array, order="C")

    def assign(self, target, source) -> None:
        """Copy an array of the host or the device into a device array of the same shape and dtype."""
        if isinstance(source, np.ndarray):
            target.set(source)
        else:
            self._cupy.copyto(target, source)

    def to_host(self, array) -> np.ndarray:
        """A copy of a device array as a NumPy array."""
        return self._cupy.asnumpy(array)

    def synchronize(self) -> None:
        """Wait until all launched kernels have ended."""
        self._cupy.cuda.get_current_stream().synchronize()

    def time(self, run: Callable[[], None]) -> float:
        """The seconds that the launches in `run` take, by CUDA events."""
        begin, end = (self._cupy.cuda.Event() for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return self._cupy.cuda.get_elapsed_time(begin, end) / 1e3

    def compile(self, code: str, scalar: np.dtype) -> Module:
        """Compile CUDA C++, with `scalar` as scalar_t. Raises DeviceError with the compiler's message."""
        module = self._cupy.RawModule(code=expand_include(code), options=nvrtc_options(scalar), backend="nvrtc")
        try:
            module.compile()
        except self._cupy.cuda.compiler.CompileException as error:
            raise DeviceError(f"NVRTC could not compile the kernels:\n{error}") from None

        def function(signature: Signature) -> Callable:
            kernel = module.get_function(signature.name)
            null = np.uint64(0)
            return lambda grid, block, args: kernel(grid, block, tuple(null if a is None else a for a in args))

        return Module(code, scalar, self._cupy.ndarray, function)

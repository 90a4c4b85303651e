"""The CUDA device: CuPy for memory and launches, NVRTC for compiling."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

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
    is_recording = False  # nothing may then be brought from or to the host
    reduction_threads = 256  # of a block that adds up many values
    blocks_wanted = 512  # of a reduction that can be cut into any number

    def __init__(self) -> None:
        self._cupy = _import_cupy()
        self.array_type = self._cupy.ndarray
        self._tables: dict[tuple[int, ...], Any] = {}

    def description(self) -> str:
        name = self._cupy.cuda.runtime.getDeviceProperties(self._cupy.cuda.Device().id)["name"].decode()
        return f"cuda, {name}, CuPy {self._cupy.__version__}"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype):
        """An uninitialised array of device memory."""
        return self._cupy.empty(shape, dtype)

    def to_device(self, array):
        """A copy of a host array in device memory."""
        return self._cupy.array(array, order="C")

    def filled(self, shape: tuple[int, ...], dtype: np.dtype, value: float):
        """An array of device memory with one value everywhere."""
        return self._cupy.full(shape, value, dtype)

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

    def recording(self, function: Callable) -> Callable:
        """`function`, of arrays, as one that takes a list of arrays and from its third call on replays a CUDA graph."""
        return _Recording(self, self._cupy, function)

    def _argument(self, value):
        if isinstance(value, list):
            return self._address_table(value)
        return np.uint64(0) if value is None else value

    def _address_table(self, arrays: list):
        """The arrays' addresses in device memory. Kept, since the same come again, and recorded launches read them."""
        key = tuple(a.data.ptr for a in arrays)
        if key not in self._tables:
            side = self._cupy.cuda.Stream(non_blocking=True)  # the current one may be recording
            host = np.array(key, np.uint64)
            table = self._tables[key] = self._cupy.empty(len(key), np.uint64)
            table.data.copy_from_host_async(host.ctypes.data, host.nbytes, stream=side)
            side.synchronize()
        return self._tables[key]

    def compile(self, code: str, scalar: np.dtype) -> Module:
        """Compile CUDA C++, with `scalar` as scalar_t. Raises DeviceError with the compiler's message."""
        module = self._cupy.RawModule(code=expand_include(code), options=nvrtc_options(scalar), backend="nvrtc")
        try:
            module.compile()
        except self._cupy.cuda.compiler.CompileException as error:
            raise DeviceError(f"NVRTC could not compile the kernels:\n{error}") from None

        def function(signature: Signature) -> Callable:
            kernel = module.get_function(signature.name)
            return lambda grid, block, args: kernel(grid, block, tuple(map(self._argument, args)))

        return Module(code, scalar, self._cupy.ndarray, function)


class _Recording:
    """The launches of a function as a CUDA graph, with the memory that they use.

    All memory comes from a pool of its own, which lives as long as the graph: the addresses in it stay valid. Two calls
    before the recording fill the pool, so that the recording finds every size it asks for.
    """

    def __init__(self, device: CudaDevice, cupy: Any, function: Callable) -> None:
        self._device, self._cupy, self._function = device, cupy, function
        self._pool, self._stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self._inputs: list | None = None
        self._graph, self._outputs, self._calls = None, None, 0

    def __call__(self, arrays: list) -> Any:
        if self._inputs is None:
            self._inputs = [self._cupy.empty_like(a) for a in arrays]
        for fixed, given in zip(self._inputs, arrays, strict=True):
            self._cupy.copyto(fixed, given)
        self._calls += 1
        if self._calls <= 2:
            return self._run()
        if self._graph is None:
            self._record()
        self._graph.launch()
        return self._outputs

    def _run(self) -> Any:
        self._cupy.cuda.get_current_stream().synchronize()
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            outputs = self._function(*self._inputs)
            self._stream.synchronize()
        return outputs

    def _record(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            self._stream.begin_capture()
            self._device.is_recording = True
            try:
                self._outputs = self._function(*self._inputs)
            finally:
                self._device.is_recording = False
                self._graph = self._stream.end_capture()

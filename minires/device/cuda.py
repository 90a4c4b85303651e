"""The CUDA device: CuPy for memory and launches, NVRTC for compiling."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import source

# Compiling


def nvrtc_options(scalar: np.dtype) -> tuple[str, ...]:
    """The options that every kernel is compiled with."""
    known = "-DINFINITY=__int_as_float(0x7f800000)", "-DNAN=__int_as_float(0x7fffffff)"  # as math.h has it
    return ("-std=c++17", f"-Dscalar_t={source.C_TYPE[scalar.name]}", *known, *(f"-I{path}" for path in _include_paths()))


def _include_paths() -> list[Path]:
    """Where cooperative_groups.h and what it includes are: NVIDIA's wheel and CuPy bring CUDA's headers."""
    places = {"nvidia": "cuda_runtime/include", "cupy": "_core/include/cupy/_cccl/libcudacxx"}
    specs = ((importlib.util.find_spec(name), place) for name, place in places.items())
    paths = (Path(root) / place for spec, place in specs if spec for root in spec.submodule_search_locations or ())
    return [path for path in paths if path.is_dir()]


def prepare(code: str) -> str:
    """`code` as NVRTC takes it, which knows no headers of C and of host programs."""
    return source.expand_includes(code, _header)


_FIXED_WIDTH = "".join(
    f"typedef {'unsigned ' if u else 'signed '}{name} {u}int{bits}_t;"
    for u in ("", "u")
    for bits, name in ((8, "char"), (16, "short"), (32, "int"), (64, "long long"))
)
_SHORT = "typedef unsigned int uint; typedef unsigned short ushort;"  # as the host's headers have it
_LIMITS = "".join(  # cooperative_groups.h brings macros of these names
    f"#ifndef {name}\nconstexpr auto {name} = {value};\n#endif\n"
    for name, value in {
        "FLT_MAX": "3.402823466e+38f", "FLT_MIN": "1.175494351e-38f", "FLT_EPSILON": "1.192092896e-7f",
        "DBL_MAX": "1.7976931348623157e+308", "DBL_EPSILON": "2.2204460492503131e-16",
        "INT_MAX": "2147483647", "INT_MIN": "-2147483647 - 1", "UINT_MAX": "0xffffffffu",
    }.items()
)  # fmt: skip


def _header(name: str) -> str | None:
    if name in ("stdint.h", "cstdint", "inttypes.h"):
        return _FIXED_WIDTH
    if name in ("float.h", "cfloat", "limits.h", "climits"):
        return _LIMITS
    if re.fullmatch(r"c?(?:std(?:io|lib|bool|def)|math|assert|string|time)(?:\.h)?|[a-z_]+", name):
        return _SHORT
    return _SHORT if source.HOST_HEADERS.fullmatch(name) and "fp" not in name else None


_C_TYPES = {
    "float": np.float32, "double": np.float64, "bool": np.bool_, "char": np.int8, "signed char": np.int8,
    "unsigned char": np.uint8, "uchar": np.uint8, "short": np.int16, "unsigned short": np.uint16, "ushort": np.uint16,
    "int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32, "uint": np.uint32, "long long": np.int64,
    "unsigned long long": np.uint64, "size_t": np.uint64, "clock_t": np.int64,
    **{f"{u}int{bits}_t": getattr(np, f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_NOISE = re.compile(r"\b(?:const|__restrict__|restrict|volatile|__grid_constant__|struct|typename|signed(?= (?:int|short)))\b")


def signature_of(text: source.KernelText | None, name: str, code: str, scalar: np.dtype) -> source.Signature:
    """What can be read of a kernel's parameters in its source. A type that is not understood is not checked."""
    if text is None:
        raise source.DeviceError(f"the parameters of kernel {name} cannot be read from its source: a macro defines it?")
    arguments = source.split(name.partition("<")[2].rpartition(">")[0])
    names = [re.split(r"[\s=]+", re.sub(r"=.*", "", p).strip())[-1] for p in text.template or ()]
    types = {"scalar_t": scalar, **{k: np.dtype(v) for k, v in _C_TYPES.items()}}
    types |= {k: types[v] for k, v in zip(names, arguments, strict=False) if v in types}
    return source.Signature(
        source.named(name, code), tuple(_parameter(p, n, types) for n, p in enumerate(text.parameters, start=1))
    )


def _parameter(declaration: str, number: int, types: dict[str, np.dtype]) -> source.Parameter:
    name = source.parameter_name(declaration, number)
    plain = _NOISE.sub(" ", re.sub(rf"\b{re.escape(name)}\b(?=\s*(?:\[[^\]]*\])?\s*$)", "", declaration))
    if listed := re.search(r"Pointers<([^>]*)>", plain):
        return source.Parameter(name, "arrays", types[_NOISE.sub("", listed[1]).strip()])
    if "(" in plain:  # of an array: (*rows)[64], (&values)[64]
        return source.Parameter(name, "array", None)
    stars = plain.count("*") + ("&" in plain) + ("[" in plain)
    dtype = types.get(" ".join(re.sub(r"[*&]|\[.*", " ", plain).split()))
    if stars:
        return source.Parameter(name, "array", dtype if stars == 1 else np.dtype(np.uint64))
    return source.Parameter(name, "scalar", dtype)


# The device


def _driver_is_there() -> bool:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name) is not None
        except OSError:
            continue
    return False


def _import_cupy():
    if not _driver_is_there():  # without a driver, do not spend a second on importing CuPy
        raise source.DeviceError("the cuda device cannot be used: no NVIDIA driver (libcuda) was found; use the cpu device")
    try:
        import cupy
    except ImportError as error:
        raise source.DeviceError(f"the cuda device cannot be used: CuPy cannot be imported ({error})") from None
    if int(cupy.__version__.split(".")[0]) < 14:  # CuPy 13 does not find NVRTC where pip has put it
        raise source.DeviceError(
            f"the cuda device cannot be used: CuPy {cupy.__version__} is too old, minires needs 14 or newer; "
            "pip install -U cupy-cuda12x"
        )
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy
        reason = "CUDA finds no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = str(error)
    raise source.DeviceError(f"the cuda device cannot be used: {reason}; use the cpu device")


class CudaDevice:
    """CuPy arrays as device memory; kernels run on CuPy's current stream."""

    name = "cuda"
    watcher = None
    tiling = "cuda"  # which table of tiles the operations use

    def __init__(self) -> None:
        self._cupy = _import_cupy()
        self.array_type = self._cupy.ndarray
        self.is_recording = False
        self._checks: dict[Callable[[], None], None] = {}

    def description(self) -> str:
        name = self._cupy.cuda.runtime.getDeviceProperties(self._cupy.cuda.Device().id)["name"].decode()
        return f"cuda, {name}, CuPy {self._cupy.__version__}"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An uninitialised array of device memory."""
        return self._cupy.empty(shape, dtype)

    def to_device(self, array):
        """A copy of a host array, or of one on the device, in device memory."""
        if isinstance(array, np.ndarray):
            source.forbid_while_recording(self)
        return self._cupy.array(array, order="C")

    constant = to_device

    def filled(self, shape: tuple[int, ...], dtype: np.dtype, value: float) -> Any:
        """An array of device memory with one value everywhere."""
        return self._cupy.full(shape, value, dtype)

    def assign(self, target: Any, values: Any) -> None:
        """Copy an array of the host or the device into a device array of the same shape and dtype."""
        if isinstance(values, np.ndarray):
            source.forbid_while_recording(self)
            target.set(values)
        else:
            self._cupy.copyto(target, values)

    def fill(self, target: Any, value: float) -> None:
        """Set every element of a device array, when the launches before have run, without waiting for them."""
        source.forbid_while_recording(self)
        target.fill(value)

    def to_host(self, array: Any) -> np.ndarray:
        """A copy of a device array as a NumPy array."""
        source.forbid_while_recording(self)
        copy = self._cupy.asnumpy(array)
        checks, self._checks = self._checks, {}
        for check in checks:
            check()
        return copy

    def when_read(self, check: Callable[[], None]) -> None:
        """Run `check`, which reads from the device, when the host next waits for it anyway."""
        self._checks[check] = None

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

    def recording(self, pool: Any = None) -> Recording:
        """A CUDA graph to be recorded, with another one's pool if they never run at once: see minires.graph."""
        return Recording(self, self._cupy, pool)

    def compile(self, code: str, scalar: np.dtype) -> source.Module:
        """Compile CUDA C++, with `scalar` as scalar_t. Raises DeviceError with the compiler's message."""
        texts, options = source.find_kernels(code), nvrtc_options(scalar)

        def compile_names(names: tuple[str, ...]) -> dict:
            module = self._cupy.RawModule(code=prepare(code), options=options, backend="nvrtc", name_expressions=list(names))
            try:
                kernels = {name: module.get_function(name) for name in names}
            except self._cupy.cuda.compiler.CompileException as error:
                raise source.DeviceError(f"NVRTC could not compile the kernels:\n{error}") from None
            signatures = {name: signature_of(texts.get(source.base_name(name)), name, code, scalar) for name in names}
            return {name: (signatures[name], _runner(kernels[name])) for name in names}

        return source.Module(code, self._cupy.ndarray, compile_names)


def _runner(kernel: Any) -> Callable:
    def run(grid: tuple, block: tuple, args: list, shared_mem: int) -> None:
        kernel(grid, block, tuple(map(_argument, args)), shared_mem=shared_mem)

    return run


def _argument(value: Any) -> Any:
    """Structures travel as NumPy arrays of one element, whose bytes CuPy puts into the launch."""
    if isinstance(value, list):
        addresses = np.zeros((), [("at", np.uint64, source.MAX_POINTERS)])
        addresses["at"][: len(value)] = [array.data.ptr for array in value]
        return addresses
    if isinstance(value, np.void):
        return np.asarray(value)
    return np.uint64(0) if value is None else value


class Recording:
    """Launches as a CUDA graph, with the memory that they use, from a pool that lives as long: the addresses stay valid."""

    def __init__(self, device: CudaDevice, cupy: Any, pool: Any) -> None:
        self._device, self._cupy = device, cupy
        self.pool, self._stream = pool or cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        self._graph: Any = None

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Within this context memory comes from the recording's own pool, and launches go to its stream."""
        self._cupy.cuda.get_current_stream().synchronize()
        with self._cupy.cuda.using_allocator(self.pool.malloc), self._stream:
            yield
            self._stream.synchronize()

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Within this context what is launched becomes the graph, and is not done."""
        with self.memory():
            self._stream.begin_capture()
            self._device.is_recording = True
            try:
                yield
            except BaseException:
                self._device.is_recording = False
                with contextlib.suppress(self._cupy.cuda.runtime.CUDARuntimeError):
                    self._stream.end_capture()  # what went wrong is on its way already
                raise
            self._device.is_recording = False
            self._graph = self._stream.end_capture()

    def replay(self) -> None:
        """Do what was recorded."""
        self._graph.launch()

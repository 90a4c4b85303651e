"""The CPU device: CUDA C++ compiled by the host's compiler under cuda_on_cpu.h, launched through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .sanitizer import Sanitizer
from .source import DeviceError, Module, Signature, expand_include, pack_arguments

_HEADER = Path(__file__).with_name("cuda_on_cpu.h")
_FLAGS = ["-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-march=native", "-w"]
_FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]  # what NVRTC assumes too; NaN stays NaN


def _tuning(is_clang: bool) -> list[str]:
    """Measured on the GEMM: at -O3 g++ 12 leaves its accumulators in memory and takes twice the time."""
    flags = ["-O3"] if is_clang else ["-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags += ["-mprefer-vector-width=512"] + ([] if is_clang else ["-mtls-dialect=gnu2"])
    return flags


def _user_flags() -> list[str]:
    """Of MINIRES_CXXFLAGS, to debug a kernel. They come last, so that -O0 wins over -O2."""
    return shlex.split(os.environ.get("MINIRES_CXXFLAGS", ""))


def _compiler() -> list[str]:
    for command in filter(None, [os.environ.get("CXX"), "g++", "clang++"]):
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
        if command == os.environ.get("CXX"):
            raise DeviceError(f"the C++ compiler {words[0]!r} that CXX names was not found: correct CXX or unset it")
    raise DeviceError(
        "no C++ compiler was found, which the cpu device needs: install g++ (Debian, Ubuntu: apt install g++; Fedora: "
        "dnf install gcc-c++) or clang++ (macOS: xcode-select --install), or name one in CXX"
    )


def _cache_dir() -> Path:
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minires"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot create {path} for compiled kernels ({error}): set XDG_CACHE_HOME") from None
    return path


def _processor() -> str:
    """What -march=native depends on: a cache in a shared home directory serves several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def build(code: str, scalar: np.dtype, blocked: bool = True, sanitize: bool = False) -> Path:
    """The shared library with the kernels of `code`, from the cache or compiled now.

    Two processes may compile the same code at once: each writes a file of its own and renames it into place.
    """
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    is_clang = "clang" in version
    unit = expand_include(code) + "".join(f"\nMINIRES_KERNEL({name})" for name in Signature.parse(code, scalar)) + "\n"
    if not is_clang:  # g++ spells CUDA's pragma its own way
        unit = unit.replace("#pragma unroll", "#pragma GCC unroll 16")
    c_type = {"float32": "float", "float64": "double"}[scalar.name]
    flags = [*_FLAGS, f"-Dscalar_t={c_type}", f"-DBLOCKED={str(blocked).lower()}"]
    if sanitize:
        unit = _SHARED.sub(_shared_between_red_zones, unit)
        flags += _SANITIZE_FLAGS
    else:
        flags += _tuning(is_clang)
    flags += _user_flags()
    runtime = [path.read_text() for path in sorted(_HEADER.parent.glob("*.[hc]*"))]
    key = hashlib.sha256("\0".join([unit, *runtime, *compiler, *flags, version, _processor()]).encode()).hexdigest()
    library = _cache_dir() / f"{key[:32]}.so"
    if not library.exists():
        _compile(compiler, flags, unit, library, sanitize)
    return library


_SHARED = re.compile(
    r"__shared__\s+(?:__align__\(\d+\)\s+)?(?P<type>(?:unsigned\s+)?\w+)\s+(?P<names>\w+(?:\[[^\]]+\]|[\s\w,])*);"
)


def _shared_between_red_zones(declaration: re.Match) -> str:
    """Each array of shared memory that is declared becomes one between red zones, and keeps its name: sanitizer.h."""
    arrays = re.findall(r"(\w+)\s*((?:\[[^\]]+\]\s*)*)(?:,|$)", declaration["names"].strip())
    return " ".join(f"MINIRES_SHARED({declaration['type']}, {name}, {dims});" for name, dims in arrays)


# Of DWARF 5, addr2line of binutils 2.40 gets a unit's first file wrong.
_SANITIZE_FLAGS = ["-O1", "-g1", "-gdwarf-4", "-fsanitize=thread", "-DMINIRES_SANITIZE"]


def _compile(compiler: list[str], flags: list[str], unit: str, library: Path, sanitize: bool) -> None:
    try:
        folder = tempfile.TemporaryDirectory(dir=library.parent, prefix=".compile-")
    except OSError as error:
        raise DeviceError(f"cannot write to {library.parent} ({error}): set XDG_CACHE_HOME") from None
    with folder as name:
        kernels, runtime, linked = (f"{name}/{file}" for file in ("kernels.o", "runtime.o", "linked.so"))
        steps = [[*flags, "-include", str(_HEADER), "-c", "-x", "c++", "-", "-o", kernels]]
        if sanitize:  # the runtime itself is not watched
            steps += [[*_FLAGS, "-O2", "-c", str(_HEADER.with_name("sanitizer.cpp")), "-o", runtime]]
        steps += [[*_FLAGS, *_user_flags(), "-shared", kernels, *([runtime] if sanitize else []), "-o", linked]]
        for step in steps:
            result = subprocess.run([*compiler, *step], input=unit, capture_output=True, text=True, check=False)
            if result.returncode:
                raise DeviceError(f"{compiler[0]} could not compile the kernels:\n{result.stderr.strip()}")
        os.replace(linked, library)


def _thread_count() -> int:
    text = os.environ.get("MINIRES_NUM_THREADS") or str(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise ValueError(f"MINIRES_NUM_THREADS is {text!r}: it must be a whole number from 1 to 1024")
    return int(text)


class _Memory:
    """A block of host memory that goes back to its pool when the last array over it is gone."""

    def __init__(self, pool: list[np.ndarray], nbytes: int) -> None:
        self._pool = pool
        self._bytes = pool.pop() if pool else np.empty(nbytes, np.uint8)
        self.__array_interface__ = self._bytes.__array_interface__

    def __del__(self) -> None:
        self._pool.append(self._bytes)


class CpuDevice:
    """NumPy arrays as device memory; kernels run on the OS threads of this process."""

    name = "cpu"
    is_recording = False
    blocked = True  # see kernels/common.cuh
    reduction_threads = 32  # of a block that adds up many values
    blocks_wanted = 64  # of a reduction that can be cut into any number: it is the same for any number of OS threads
    array_type = np.ndarray

    def __init__(self) -> None:
        self.threads = _thread_count()
        # A training step asks for the same sizes each time. Fresh memory costs a page fault every 4 KB, so keep it.
        self._pools: dict[int, list[np.ndarray]] = defaultdict(list)
        checks = os.environ.get("MINIRES_SANITIZE", "0")
        self.sanitizer = Sanitizer(checks) if checks not in ("", "0") else None

    def description(self) -> str:
        return f"cpu, {self.threads} threads, {' '.join(_compiler())}"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array of device memory."""
        count = math.prod(shape)
        nbytes = max(count * np.dtype(dtype).itemsize, 1)
        if self.sanitizer:
            memory = np.empty(nbytes, np.uint8)
            self.sanitizer.tracker.add(memory)
        else:
            memory = np.asarray(_Memory(self._pools[nbytes], nbytes))
        return memory[: count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """A copy of a host array in device memory."""
        copy = self.empty(array.shape, array.dtype)
        self.assign(copy, array)
        return copy

    def filled(self, shape: tuple[int, ...], dtype: np.dtype, value: float):
        """An array of device memory with one value everywhere."""
        return self.to_device(np.full(shape, value, dtype))

    def assign(self, target: np.ndarray, source: np.ndarray) -> None:
        """Copy an array of the host or the device into a device array of the same shape and dtype."""
        np.copyto(target, source)
        if self.sanitizer and (written := self.sanitizer.tracker.find(target)) is not None:
            written[...] = 1

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """A copy of a device array as a NumPy array."""
        if self.sanitizer:
            self.sanitizer.check_written(array)
        return np.array(array)

    def synchronize(self) -> None:
        """Kernels have ended when their launch returns: nothing to wait for."""

    def time(self, run: Callable[[], None]) -> float:
        """The seconds that the launches in `run` take."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def recording(self, function: Callable) -> Callable:
        """See CudaDevice.recording: on this device nothing is gained by it."""
        return lambda arrays: function(*arrays)

    def compile(self, code: str, scalar: np.dtype) -> Module:
        """Compile CUDA C++, with `scalar` as scalar_t. Raises DeviceError with the compiler's message."""
        path = build(code, scalar, self.blocked, self.sanitizer is not None)
        library = ctypes.CDLL(str(path))

        def function(signature: Signature) -> Callable:
            if self.sanitizer:
                return lambda *launch: self.sanitizer.launch(path, library, signature, *launch)
            launcher = library[f"minires_launch_{signature.name}"]
            launcher.restype = ctypes.c_int64
            return lambda grid, block, args: self._launch(signature.name, launcher, grid, block, args)

        return Module(code, scalar, np.ndarray, function)

    def _launch(self, name: str, launcher: Callable, grid: tuple, block: tuple, args: list) -> None:
        values, pointers = pack_arguments(args)
        stuck = launcher((ctypes.c_uint * 6)(*grid, *block), pointers, self.threads)
        if stuck >= 0:
            index = stuck % grid[0], stuck // grid[0] % grid[1], stuck // grid[0] // grid[1]
            raise DeviceError(
                f"kernel {name}, block {index}: some threads wait at a barrier or warp primitive that the others of "
                "the block never reach (a barrier in a branch, or a mask that names absent lanes)"
            )

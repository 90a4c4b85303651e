"""The CPU device: CUDA C++ compiled by the host's compiler under cuda_on_cpu.h, launched through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import source
from .cache import cached
from .memory import Pool, is_device_memory

_HERE = Path(__file__).parent
_RUNTIME = _HERE / "runtime.cpp", _HERE / "scheduler.cpp"
_FLAGS = ["-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-march=native", "-w", "-fno-exceptions"]
_FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]  # what NVRTC assumes too; NaN stays NaN


def _tuning(version: str) -> list[str]:
    """Measured on the GEMM: at -O3 g++ 12 leaves its accumulators in memory and takes twice the time. A structure of 64 bytes
    that it copies in two halves takes four times as long to be read whole."""
    is_clang = "clang" in version
    flags = ["-O3"] if is_clang else ["-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags += ["-mprefer-vector-width=512"] + ([] if is_clang else ["-mtls-dialect=gnu2"])
        if not is_clang and int((re.search(r"\) (\d+)\.", version) or "00")[1]) >= 12:
            flags += ["-mmove-max=512", "-mstore-max=512"]
    return flags


def _user_flags() -> list[str]:
    """Of MINIRES_CXXFLAGS, to debug a kernel. They come last, so that -O0 wins over -O2."""
    return shlex.split(os.environ.get("MINIRES_CXXFLAGS", ""))


def _unsanitized_flags() -> list[str]:
    """Those for minires' own runtime, and for instruments, which stand on -fsanitize=thread: no other goes with it."""
    return [flag for flag in _user_flags() if not flag.startswith("-fsanitize=")]


def _compiler() -> list[str]:
    for command in filter(None, [os.environ.get("CXX"), "g++", "clang++"]):
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
        if command == os.environ.get("CXX"):
            raise source.DeviceError(f"the C++ compiler {words[0]!r} that CXX names was not found: correct CXX or unset it")
    raise source.DeviceError(
        "no C++ compiler was found, which the cpu device needs: install g++ (Debian, Ubuntu: apt install g++; Fedora: "
        "dnf install gcc-c++) or clang++ (macOS: xcode-select --install), or name one in CXX"
    )


def _processor() -> str:
    """What -march=native depends on: a cache in a shared home directory serves several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


# From CUDA C++ to a shared library


@dataclass(frozen=True)
class Instruments:
    """What kernels are compiled with to be watched: a header for what threads.h leaves to it, and a runtime of its own."""

    header: Path
    runtime: tuple[Path, ...]
    rewrite: Callable[[str], str]
    gcc_flags: tuple[str, ...]
    clang_flags: tuple[str, ...]


class Kernel(ctypes.Structure):
    """A compiled kernel, as launch.h has it."""

    _pointers = ((name, ctypes.c_void_p) for name in ("all", "one", "state"))
    _fields_ = (*_pointers, ("parameters", ctypes.CFUNCTYPE(ctypes.c_char_p)))


@dataclass
class Library:
    """Compiled kernels: the file, what runs them, and each kernel with its signature by name expression."""

    path: Path
    runtime: ctypes.CDLL  # threads, or the instruments
    kernels: dict[str, tuple[source.Signature, Kernel]] = field(default_factory=dict)

    def launch(self, name: str, grid: tuple, block: tuple, packed: tuple, threads: int) -> Callable[[], None]:
        """An unwatched launch with packed arguments, put together: it can be done any number of times."""
        values, pointers = packed
        geometry, message = (ctypes.c_uint * 6)(*grid, *block), ctypes.create_string_buffer(512)
        kernel, run = ctypes.byref(self.kernels[name][1]), self.runtime.minires_run

        def launch(keep: Any = values) -> None:  # whose addresses are in `pointers`
            stopped = run(kernel, geometry, pointers, threads, message)
            if stopped >= 0:
                raise _stopped(name, grid, stopped, message.value.decode())

        return launch


def compile_library(code: str, names: tuple[str, ...], scalar: np.dtype, instruments: Instruments | None = None) -> Library:
    """The kernels of some name expressions, from the cache or compiled now."""
    # The runtimes first: the kernels' symbols are found in them.
    for sources in (_RUNTIME, *([instruments.runtime] if instruments else [])):
        runtime = ctypes.CDLL(str(_runtime(sources)), mode=ctypes.RTLD_GLOBAL)
    if not instruments:
        runtime.minires_run.restype = ctypes.c_int64
    path = build(code, names, scalar, instruments)
    library, loaded, texts = Library(path, runtime), ctypes.CDLL(str(path)), source.find_kernels(code)
    for i, name in enumerate(names):
        kernel = Kernel.in_dll(loaded, f"minires_kernel_{i}")
        text = texts.get(source.base_name(name))
        words = [p.split(" ") for p in kernel.parameters().decode().split(",")[:-1]]
        written = text.parameters if text and len(text.parameters) == len(words) else [""] * len(words)
        parameters = [
            source.Parameter(source.parameter_name(p, n), kind, np.dtype(of) if of else None)
            for n, (p, (kind, of)) in enumerate(zip(written, words, strict=True), start=1)
        ]
        library.kernels[name] = source.Signature(source.named(name, code), tuple(parameters)), kernel
    return library


def build(code: str, names: tuple[str, ...], scalar: np.dtype, instruments: Instruments | None = None) -> Path:
    """The shared library with kernels of `code`, from the cache or compiled now, whole or not at all."""
    compiler = _compiler()
    version = _version(*compiler)
    is_clang = "clang" in version
    wanted, texts = {source.base_name(name) for name in names}, source.find_kernels(code)
    unit = prepare(code, wanted)
    if instruments:
        unit = instruments.rewrite(unit)
    entries = "".join(f"\nMINIRES_KERNEL({i}, {_expression(name, texts)})" for i, name in enumerate(names))
    unit = f'{unit}\n#line 1 "entries"{entries}\n'
    if not is_clang:  # g++ spells CUDA's pragma its own way, and needs a number
        unit = _UNROLL.sub(lambda m: f"#pragma GCC unroll {m[1] or 16}", unit)
    flags = [*_FLAGS, f"-Dscalar_t={source.C_TYPE[scalar.name]}"]
    if instruments:
        flags += [f'-DMINIRES_WATCHED="{instruments.header}"', "-fno-delete-null-pointer-checks"]
        flags += instruments.clang_flags if is_clang else instruments.gcc_flags
    else:
        flags += _tuning(version)
    flags += _unsanitized_flags() if instruments else _user_flags()
    sources = [*sorted(_HERE.rglob("*.h")), *(instruments.runtime if instruments else ())]
    sources += [instruments.header] if instruments else []
    runtime = [path.read_text() for path in sources]

    def make(linked: Path) -> None:
        kernels = str(linked.with_name("kernels.o"))
        compiling = [*flags, "-include", str(_HERE / "cuda_on_cpu.h"), "-c", "-x", "c++", "-", "-o", kernels]
        copies = instruments and is_clang and sys.platform != "darwin"  # whose linker has no such option: see engine.cpp
        wrap = ["-Wl,--wrap=memcpy,--wrap=memset,--wrap=memmove"] if copies else []
        for step in compiling, [*_FLAGS, *_user_flags(), *_SHARED, *wrap, kernels, "-o", str(linked)]:
            _run([*compiler, *step], "the kernels", unit)

    return cached([unit, *runtime, *compiler, *flags, version, _processor()], make)


def _expression(name: str, texts: dict[str, source.KernelText]) -> str:
    """A kernel's name in C++; with its type where a function of C's library, `index` or `exp`, may have the same name."""
    text = texts.get(name)
    if text is None or text.template is not None:
        return name
    return f"static_cast<void (*)({', '.join(text.parameters)})>({name})"


@functools.cache
def _version(*compiler: str) -> str:
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout


def _run(command: list[str], what: str, unit: str = "") -> None:
    result = subprocess.run(command, input=unit, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = _explain(unit, result.stderr) if unit else None
        raise source.DeviceError(reason or f"{command[0]} could not compile {what}:\n{result.stderr.strip()}")


_UNROLL = re.compile(r"#pragma unroll\b[ \t]*\(?(\d+)?[^\n]*")


def prepare(code: str, wanted: set[str]) -> str:
    """`code` as a C++ compiler takes it: without the kernels that are not wanted, its headers and arrays made known."""
    code = _ready(code)
    for kernel in source.find_kernels(code).values():
        if kernel.name not in wanted:
            code = code[: kernel.begin] + source.spaces(code[kernel.begin : kernel.end]) + code[kernel.end :]
    for name in filter(functools.partial(hasattr, ctypes.CDLL(None)), wanted):  # C's library has such a function too
        code = re.sub(rf'\bextern\s*"C"(?=\s*__global__\s+void\s+{name}\b)', "", code)
    return code


@functools.lru_cache(maxsize=64)  # it is asked for with each instance of a source's templates
def _ready(code: str) -> str:
    code = source.expand_includes(code, _header)
    code = re.sub(r"\bstatic\s+(?=__(?:constant|shared|device)__)|(?:(?<=__constant__)|(?<=__shared__))\s+static\b", "", code)
    for order in (rf"\b__shared__\s+alignas\s*({_BRACKETS})", rf"\balignas\s*({_BRACKETS})\s*__shared__"):
        code = re.sub(order, r"__shared__ __align__\1", code)
    code = _SHARED_LATER.sub(r"\1__shared__ \2", code)
    code = re.sub(r"(__shared__[^;={}()]*?)\bextern\b", r"extern \1", code)
    text, dynamic = source.blank(code), False

    def shared(match: re.Match) -> str:
        nonlocal dynamic
        dynamic = True
        before = text[: match.start()]
        if before.count("{") == before.count("}"):  # outside of functions it stays an array
            return f"MINIRES_DYNAMIC_SHARED {match[0][match.end('head') - match.start() : -1]} __asm__(MINIRES_DYNAMIC_SYMBOL);"
        kind, rest = re.sub(rf"(?:__align__|alignas)\s*{_BRACKETS}", "", match["type"]).strip(), match["rest"].strip()
        return f"{kind} (*const {match['name']}){rest} = reinterpret_cast<{kind} (*){rest}>(minires_dynamic_shared);"

    code = _DYNAMIC.sub(shared, code)
    return f"MINIRES_DYNAMIC_MEMORY({source.MAX_SHARED})\n{code}" if dynamic else code


_BRACKETS = r"\((?:[^()]|\([^()]*\))*\)"
# `float __shared__ tile[32]`, `extern volatile __shared__ float values[]`: what stands before it in its declaration
_SHARED_LATER = re.compile(r"(^[ \t]*|[;{}][ \t]*)((?:[\w:]+(?:<[^;{}()]*>)?[ \t]+)+)__shared__\b", re.MULTILINE)
_DYNAMIC = re.compile(
    rf"(?P<head>\bextern\s+__shared__)\s+(?P<type>(?:[^;()]|{_BRACKETS})*?)"
    r"(?P<name>\b\w+)\s*\[\s*\](?P<rest>(?:\s*\[[^\];]*\])*)\s*;"
)


def _header(name: str) -> str | None:
    own = _HERE / "include" / name
    if own.exists():
        return f'#include "{own.as_posix()}"'
    if name.startswith("cuda/std/"):
        return f"#include <{name.removeprefix('cuda/std/')}>\nnamespace cuda {{ namespace std = ::std; }}"
    return "" if source.HOST_HEADERS.fullmatch(name) else None


# A library's undefined symbols are those of the runtime.
_SHARED = ["-shared", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


@functools.cache
def _runtime(sources: tuple[Path, ...]) -> Path:
    """The library that all kernels of a process share."""
    compiler = _compiler()
    texts = [p.read_text() for p in (*sources, *sorted({*sources[0].parent.glob("*.h"), *_HERE.glob("*.h")}))]
    options = ["-std=c++17", "-O2", "-fPIC", "-pthread", "-w", *_unsanitized_flags(), *_SHARED]

    def make(linked: Path) -> None:
        _run([*compiler, *options, *map(str, sources), "-o", str(linked)], sources[0].name)

    return cached([*compiler, *_unsanitized_flags(), *texts], make)


_NOT_HERE = {  # what it is called: how it looks, and a word of the compiler's message about it
    "textures and surfaces": (r"\b(?:texture\s*<|cuda(?:Texture|Surface)Object_t|surface\s*<|(?:tex|surf)[123]D\w*)",
                              "tex|surf|Texture|Surface"),
    "inline PTX (asm)": (r"\b(?:asm|__asm__)\b\s*(?:volatile\b|__volatile__\b)?\s*\(\s*\"", "asm|Assembler|invalid|Error"),
    "tensor cores (nvcuda::wmma)": (r"\b(?:nvcuda|wmma)\b", "nvcuda|wmma"),
    "half precision": (r"\b(?:__half2?|half2?|__nv_bfloat162?|nv_bfloat16|bfloat162?|__nv_fp8\w*|__\w*half2?\w*)\b",
                       "half|bfloat|fp8"),
    "asynchronous copies and pipelines": (
        r"\b(?:cuda::(?:std|pipeline|barrier|ptx|memcpy_async|atomic)\w*|__pipeline_\w+|memcpy_async|pipeline)\b",
        "cuda|pipeline|memcpy_async"),
    "exceptions": (r"\b(?:throw|try|catch)\b", "exception"),
    "random numbers of cuRAND": (r"\bcurand\w*", "curand"),
    "a launch from a kernel (<<<...>>>)": (r"<<<", "expected|primary-expression"),
    "synchronising the grid or clusters": (
        r"\b(?:this_grid|grid_group|this_multi_grid|this_cluster|__cluster_dims__|cluster_group)\b", "grid|cluster"),
}  # fmt: skip


def _explain(code: str, message: str) -> str | None:
    """One sentence for what cannot be had on a CPU; None where the mistake is the kernel's own."""
    if missing := re.search(r"fatal error: '?([^:'\n]+)'?(?: file not found|: No such file)", message):
        place = re.search(rf"^[^\n]*?(\S+:\d+):\d+: fatal error: '?{re.escape(missing[1])}", message, re.MULTILINE)
        return f"{place[1] if place else 'RawKernel'}: there is no header {missing[1]!r} on the cpu device"
    candidate = re.search(r"candidate is: .(.*).$", message, re.MULTILINE)
    if candidate and re.search(r"^entries: In function", message, re.MULTILINE) and "no matches converting" in message:
        return f"there is no such instance: {candidate[1]}"
    for what, (pattern, words) in _NOT_HERE.items():
        if re.search(words, message) and (found := re.search(pattern, source.blank(code))):
            file, line = source.place_of(code, found.start())
            return f"{file}:{line}: {what} cannot be had on the cpu device: {found[0].strip()!r}"
    return None


def _thread_count() -> int:
    text = os.environ.get("MINIRES_NUM_THREADS") or str(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise ValueError(f"MINIRES_NUM_THREADS is {text!r}: it must be a whole number from 1 to 1024")
    return int(text)


class Recording:
    """What a CUDA graph is to a GPU: launches put together once, with memory of their own, to be done again and again."""

    def __init__(self, device: CpuDevice, pool: Pool | None) -> None:
        self._device = device
        self.pool = pool or device.new_pool(most=math.inf)  # it goes with the last recording
        self._steps: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Within this context memory comes from the recording's own pool."""
        before, self._device.pool = self._device.pool, self.pool
        try:
            yield
        finally:
            self._device.pool = before

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Within this context what is launched is written down, and not done."""
        self._device.recorded, self._device.is_recording = self._steps, True
        try:
            with self.memory():
                yield
        except BaseException:
            self._steps.clear()
            raise
        finally:
            self._device.is_recording = False

    def replay(self) -> None:
        """Do what was recorded."""
        for step in self._steps:
            step()


class CpuDevice:
    """NumPy arrays as device memory; kernels run on the OS threads of this process."""

    name = "cpu"
    tiling = "cpu"  # which table of tiles the operations use
    array_type = np.ndarray
    default_watcher: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.threads = _thread_count()
        self.pool = self.new_pool(most=2)
        self.is_recording = False
        self.recorded: list[Callable[[], None]] = []  # while a graph is recorded, what it will do
        # None, or what compiles and runs the launches in this device's place: see minires/watch.
        self.watcher = self.default_watcher()

    def description(self) -> str:
        return f"cpu, {self.threads} threads, {' '.join(_compiler())}"

    @staticmethod
    def new_pool(most: float) -> Pool:
        """See memory.py; where MINIRES_CXXFLAGS has a sanitizer, it is to see what lies behind an array."""
        return Pool(most, exact=any(flag.startswith("-fsanitize=") for flag in _user_flags()))

    @property
    def _tracker(self) -> Any:
        """What the sanitizer knows of memory, or None."""
        return self.watcher and self.watcher.tracker

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised array of device memory."""
        return (self._tracker or self.pool).empty(shape, np.dtype(dtype))

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """A copy of a host array in device memory."""
        copy = self.empty(array.shape, array.dtype)
        self.assign(copy, array)
        return copy

    def constant(self, array: np.ndarray) -> np.ndarray:
        """A host array that stays as it is, in device memory: here itself, so that large data are there once."""
        return np.ascontiguousarray(array)

    def filled(self, shape: tuple[int, ...], dtype: np.dtype, value: float) -> np.ndarray:
        """An array of device memory with one value everywhere."""
        return self._write(self.empty(shape, dtype), value)

    def fill(self, target: np.ndarray, value: float) -> None:
        """Set every element of a device array."""
        source.forbid_while_recording(self)
        self._write(target, value)

    def assign(self, target: np.ndarray, values: np.ndarray) -> None:
        """Copy an array of the host or the device into a device array of the same shape and dtype."""
        if not is_device_memory(values):
            source.forbid_while_recording(self)
        self._write(target, values)

    def _write(self, target: np.ndarray, values: np.ndarray | float) -> np.ndarray:
        if self._tracker:
            self._tracker.written(target)
        self._do(functools.partial(np.copyto, target, values))
        return target

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """A copy of a device array as a NumPy array."""
        source.forbid_while_recording(self)
        if self._tracker:
            self._tracker.read(array)
        return np.array(array)

    def when_read(self, check: Callable[[], None]) -> None:
        """Run `check`, which reads from the device: here at once, on a GPU when the host next waits for it anyway."""
        check()

    def synchronize(self) -> None:
        """Kernels have ended when their launch returns: nothing to wait for."""

    def time(self, run: Callable[[], None]) -> float:
        """The seconds that the launches in `run` take."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def recording(self, pool: Pool | None = None) -> Recording:
        """A graph to be recorded, with another one's pool if they never run at once: see minires.graph."""
        return Recording(self, pool)

    def _do(self, step: Callable[[], None]) -> None:
        if self.is_recording:
            self.recorded.append(step)
        else:
            step()

    def compile(self, code: str, scalar: np.dtype) -> source.Module:
        """Compile CUDA C++, with `scalar` as scalar_t. Raises DeviceError with the compiler's message."""

        def compile_names(names: tuple[str, ...]) -> dict:
            if self.watcher:
                return self.watcher.compile(self, code, names, scalar)
            return self.runs(compile_library(code, names, scalar), code)

        return source.Module(code, np.ndarray, compile_names)

    def runs(self, library: Library, code: str) -> dict:
        """How each kernel of a library is run, unwatched."""
        threads = 1 if re.search(r"\bprintf\s*\(", source.blank(code)) else self.threads  # lines then come in order

        def run_of(name: str) -> Callable:
            return lambda grid, block, args, _: self._do(library.launch(name, grid, block, pack_arguments(args), threads))

        return {name: (signature, run_of(name)) for name, (signature, _) in library.kernels.items()}


def _stopped(name: str, grid: tuple, block: int, reason: str) -> source.DeviceError:
    if reason:
        return source.DeviceError(f"kernel {name}, {reason}")
    index = block % grid[0], block // grid[0] % grid[1], block // grid[0] // grid[1]
    return source.DeviceError(
        f"kernel {name}, block {index}: some threads wait at a barrier or warp primitive that the others of "
        "the block never reach (a barrier in a branch, or a mask that names absent lanes)"
    )


def pack_arguments(args: list) -> tuple[Any, ctypes.Array]:
    """The arguments as C has them, and an array of their addresses, which is good as long as the first is kept."""
    formats, values = list[str](), list[Any]()
    for argument in args:
        if argument is None or isinstance(argument, np.ndarray):
            formats.append("Q8x")
            values.append(_address(argument))
        elif isinstance(argument, list):
            formats.append(f"{source.MAX_POINTERS}Q")
            values += [*map(_address, argument), *[0] * (source.MAX_POINTERS - len(argument))]
        elif isinstance(argument, np.void):
            formats.append(f"{argument.nbytes}s{-argument.nbytes % 16}x")
            values.append(argument.tobytes())
        else:
            formats.append(_SCALAR[argument.dtype])
            values.append(argument)
    packing, offsets = _packing(tuple(formats))
    memory = ctypes.create_string_buffer(packing.pack(*values), packing.size)
    return memory, (ctypes.c_void_p * len(args))(*[ctypes.addressof(memory) + offset for offset in offsets])


@functools.lru_cache(maxsize=1024)
def _packing(formats: tuple[str, ...]) -> tuple[struct.Struct, list[int]]:
    """The arguments one behind another, each at a multiple of 16 bytes, as a vector's alignment asks; and where each is."""
    sizes = [struct.calcsize(f"={one}") for one in formats]
    return struct.Struct("=" + "".join(formats)), np.cumsum([0, *sizes]).tolist()[: len(sizes)]


_SCALAR = {np.dtype(c): f"{c}{16 - np.dtype(c).itemsize}x" for c in "?bBhHiIqQfd"}


def _address(array: np.ndarray | None) -> int:
    if array is None:
        return 0
    if array.flags.carray and array.size:  # the quicker way, of arrays that can be written to
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.__array_interface__["data"][0]

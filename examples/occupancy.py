"""What NVRTC's ptxas says of a kernel, how many of its warps a GPU holds, and how fast a GPU can be at best.

The limits of each compute capability: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications
per Compute Capability"; the rules of rounding: CUDA's cuda_occupancy.h.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.device.cache import cached
from minires.device.cuda import nvrtc_options, prepare
from minires.device.source import DeviceError


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits. Clock (boost, MHz), GB/s and TFLOP/s (fp32) are its maker's figures, from the source named."""

    architecture: int
    multiprocessors: int
    warps: int  # resident in a multiprocessor, at most
    blocks: int
    shared_kb: int  # of a multiprocessor
    mhz: int
    gb_per_s: int
    tflop_per_s: float
    source: str


GPUS = {
    "T4": Gpu(75, 40, 32, 16, 64, 1590, 320, 8.1, "NVIDIA T4 datasheet; Turing architecture whitepaper"),
    "A100": Gpu(80, 108, 64, 32, 164, 1410, 1555, 19.5, "NVIDIA A100 (SXM, 40 GB) architecture whitepaper, table 3"),
    "H100": Gpu(90, 132, 64, 32, 228, 1980, 3350, 66.9, "NVIDIA H100 (SXM) datasheet; Hopper whitepaper"),
    "RTX 4090": Gpu(89, 128, 48, 24, 100, 2520, 1008, 82.6, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
}
SHARED_KB = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}


@dataclass(frozen=True)
class Resources:
    """Of a compiled kernel: registers a thread, bytes spilled to memory a thread, static shared memory a block."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def has_nvrtc() -> bool:
    """Whether NVRTC is installed here: it needs no GPU."""
    try:
        from cupy.cuda import nvrtc

        return nvrtc.getVersion() is not None
    except Exception:  # CuPy, or the library that it loads, is not there: whatever the reason, there is none
        return False


_ENTRY = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers[^\n]*?(?:, (\d+) bytes smem|\n|$)",
    re.DOTALL,
)


@functools.lru_cache(maxsize=1024)
def resources(code: str, names: tuple[str, ...], architecture: int, scalar: np.dtype) -> dict[str, Resources]:
    """What ptxas reports of each kernel, by name expression. Raises DeviceError where the code does not compile."""
    compiled = compile_with_nvrtc(prepare(code), names, (*nvrtc_options(scalar), f"-arch=sm_{architecture}"))
    entries = {e[0]: e[1:] for e in _ENTRY.findall(compiled["log"])}
    found = {}
    for name, lowered in compiled["names"].items():
        stores, loads, registers, shared = entries[lowered]
        found[name] = Resources(int(registers), int(stores) + int(loads), int(shared or 0))
    return found


def compile_with_nvrtc(code: str, names: tuple[str, ...], options: tuple[str, ...]) -> dict[str, Any]:
    """Of a prepared source: its "ptx"; "cubin", in base 64, for an sm_ architecture; "names", what the name expressions are
    called there; and the "log". From the cache or compiled now. Raises DeviceError where the code does not compile."""
    from cupy.cuda import nvrtc

    def compile_to(path: Path) -> None:
        program = nvrtc.createProgram(code, "kernels.cu", (), ())
        for name in names:
            nvrtc.addNameExpression(program, name)
        is_real = any("=sm_" in option for option in options)
        try:
            nvrtc.compileProgram(program, (*options, *["--ptxas-options=-v"] * is_real))
        except nvrtc.NVRTCError:
            raise DeviceError(f"NVRTC could not compile the kernels:\n{nvrtc.getProgramLog(program)}") from None
        # CuPy leaves a cubin's last byte out.
        cubin = base64.b64encode(nvrtc.getCUBIN(program) + b"\0").decode() if is_real else ""
        lowered = {name: nvrtc.getLoweredName(program, name) for name in names}
        found = {"ptx": nvrtc.getPTX(program), "cubin": cubin, "names": lowered, "log": nvrtc.getProgramLog(program)}
        nvrtc.destroyProgram(program)
        path.write_text(json.dumps(found, default=bytes.decode))

    return json.loads(cached([code, *names, *options, str(nvrtc.getVersion())], compile_to).read_text())


def warps_by_resources(gpu: Gpu, used: Resources, threads: int, dynamic_shared: int = 0) -> int:
    """How many warps of blocks of `threads` a multiprocessor can hold: CUDA's occupancy calculation."""
    warps = -(-threads // 32)
    registers = -(-max(used.registers, 1) * 32 // 256) * 256  # a warp's, in units of 256
    by_registers = 16384 // registers * 4 // warps  # each of four schedulers has a quarter of the file
    unit, reserved = (256, 0) if gpu.architecture < 80 else (128, 1024)
    shared = -(-(used.shared_bytes + dynamic_shared) // unit) * unit + reserved
    by_shared = gpu.shared_kb * 1024 // shared if shared else gpu.blocks
    return min(by_registers, by_shared, gpu.warps // warps, gpu.blocks) * warps


def warps_at_grid(gpu: Gpu, by_resources: int, threads: int, blocks: int) -> float:
    """How many are there, on average, in the fullest wave of a grid."""
    return min(by_resources, blocks * -(-threads // 32) / gpu.multiprocessors)


def waves(gpu: Gpu, by_resources: int, threads: int, blocks: int) -> float:
    """How many times the whole GPU is filled by a grid."""
    resident = by_resources // -(-threads // 32) * gpu.multiprocessors
    return blocks / resident if resident else float("inf")


def floors(gpu: Gpu, flops: float, array_bytes: float, sectors: float, wavefronts: float) -> dict[str, float]:
    """The shortest times, in microseconds, that a launch can take by each of four limits: it takes at least the longest.

    arithmetic  at the maker's TFLOP/s
    memory      each array's bytes once, at the maker's GB/s
    sectors     64 bytes a clock go between a multiprocessor and the L2 cache (Z. Jia et al., "Dissecting the NVIDIA Volta
                GPU Architecture via Microbenchmarking", 2018; so too on the later ones)
    wavefronts  one a clock in a multiprocessor (CUDA C++ Programming Guide, "Shared Memory")
    """
    clocks = gpu.multiprocessors * gpu.mhz  # in a microsecond, of all multiprocessors
    return {
        "arithmetic": flops / gpu.tflop_per_s / 1e6,
        "memory": array_bytes / gpu.gb_per_s / 1e3,
        "sectors": sectors * 32 / 64 / clocks,
        "wavefronts": wavefronts / clocks,
    }

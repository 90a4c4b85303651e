"""Every kernel compiles with NVRTC for every architecture, without spills. No GPU is needed."""

import re

import numpy as np
import pytest

from minires.device.cuda import nvrtc_options
from minires.device.source import Signature, expand_include, library_source

nvrtc = pytest.importorskip("cupy.cuda", reason="NVRTC comes with CuPy: pip install cupy-cuda12x").nvrtc

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]


def compile_source(code: str, architecture: int, dtype: np.dtype) -> str:
    """The log of ptxas. The test fails with the compiler's message."""
    program = nvrtc.createProgram(expand_include(code), "kernels.cu", (), ())
    options = (*nvrtc_options(dtype), f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 10_000
    return nvrtc.getProgramLog(program)


KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers[^\n]*?(?:, (\d+) bytes smem|\n|$)",
    re.DOTALL,
)
SHARED_PER_SM = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}  # KB
ONE_WARP = re.compile(r"gemm_.*_\d+x\d+|conv3x3_(weight_)?\d.*")  # the register-blocked kernels: a block is a warp


def resident_warps(architecture: int, registers: int, shared: int, warps: int) -> int:
    """Of a multiprocessor, by the registers and the shared memory of a block: CUDA's occupancy calculation."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = SHARED_PER_SM[architecture] * 1024 // (shared + 1024)  # CUDA keeps 1 KB for itself
    return min(by_registers, by_shared) * warps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(architecture, dtype, current_device):
    if current_device == "cuda":
        pytest.skip("once is enough: this does not depend on the current device")
    found = KERNEL.findall(compile_source(library_source(), architecture, dtype))
    assert len(found) == len(Signature.parse(library_source(), dtype)) > 50
    for name, stores, loads, registers, shared in found:
        blocked = bool(ONE_WARP.fullmatch(name))
        if blocked and dtype == np.float64:
            continue  # double serves gradient checks; twice the registers are not there
        assert (int(stores), int(loads)) == (0, 0), f"{name} spills registers to memory"
        warps = resident_warps(architecture, int(registers), int(shared or 0), 1 if blocked else 8)
        # A register-blocked thread has 128 independent sums: a few warps hide the latency. The others need many.
        planned = 24 if not blocked else 1 if architecture == 75 else 2 if SHARED_PER_SM[architecture] == 100 else 4
        assert warps >= planned, f"{name}: {warps} warps fit a multiprocessor, planned were {planned}"

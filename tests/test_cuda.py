"""Every kernel compiles with NVRTC for every architecture. No GPU is needed."""

import numpy as np
import pytest

from minires.device.cuda import nvrtc_options
from minires.device.source import expand_include, library_source

nvrtc = pytest.importorskip("cupy.cuda", reason="NVRTC comes with CuPy: pip install cupy-cuda12x").nvrtc

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]


def compile_kernels(architecture: int, dtype: np.dtype) -> str:
    """The log of ptxas. Raises NVRTCError with the compiler's message."""
    program = nvrtc.createProgram(expand_include(library_source()), "kernels.cu", (), ())
    options = (*nvrtc_options(dtype), f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 10_000
    return nvrtc.getProgramLog(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(architecture, dtype, current_device):
    if current_device == "cuda":
        pytest.skip("once is enough: this does not depend on the current device")
    log = compile_kernels(architecture, dtype)
    assert log.count("Compiling entry function") >= 40

"""The commands of kernels/README.md to debug a kernel on the CPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GDB, ASAN = re.findall(r"^    (MINIRES_DEVICE=cpu .+)$", (ROOT / "kernels" / "README.md").read_text(), re.MULTILINE)
DEBUGGING = GDB, ASAN
PRINTF = re.search(r"^    (if .+printf.+)$", (ROOT / "kernels" / "README.md").read_text(), re.MULTILINE)[1]

SHIFT = """
import sys
import numpy as np, minires as mr
code = '''
extern "C" __global__ void shift(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    BODY
}
'''
x, y = mr.Tensor(np.arange(100, dtype=np.float32)), mr.Tensor(np.ones(100, np.float32))
mr.RawKernel(code, "shift")((4,), (32,), (x.data, y.data, 100))
"""


@pytest.fixture(autouse=True)
def on_the_cpu(current_device):
    if current_device != "cpu":
        pytest.skip("these are tools of the CPU device")


def bash(command: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment, command = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}, ["bash", "-c", command]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_gdb_stops_in_one_thread():
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    result = bash(f"MINIRES_NUM_THREADS=2 {GDB}")  # gdb says which thread stops where there are several
    assert re.search(r"hit Breakpoint 1, relu_forward\(.*kernels/relu.cu:\d+", result.stdout), result
    assert "i = 773\n" in result.stdout  # 3 * 256 + 5
    assert "$1 = 773" in result.stdout  # x[773] of 0, 1, 2, ...


@pytest.fixture
def asan():
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    if not os.path.isabs(library.stdout.strip()):
        pytest.skip("g++ has no AddressSanitizer here")


def test_address_sanitizer_has_nothing_to_say_of_the_ladder(asan):
    result = bash(ASAN + " --repeats 1")
    assert result.returncode == 0, result.stderr
    assert "gemm_5_vector_loads" in result.stdout and "AddressSanitizer" not in result.stderr


def test_address_sanitizer_finds_a_read_outside(asan, tmp_path):
    program = tmp_path / "shift.py"
    program.write_text(SHIFT.replace("BODY", "if (i < n) y[i] = x[i + 1];"))
    result = bash(ASAN[: ASAN.index("python ")] + f"python {program}")
    assert result.returncode != 0
    assert re.search(r"heap-buffer-overflow.*READ of size 4.*in shift.*RawKernel:4", result.stderr, re.DOTALL)


def test_printf(tmp_path):
    program = tmp_path / "shift.py"
    program.write_text(SHIFT.replace("BODY", PRINTF.replace("\\n", "\\\\n")))
    result = bash(f"MINIRES_DEVICE=cpu python {program}")
    assert result.stdout == "i = 5, x = 5.000000\n", result.stdout + result.stderr

"""The steps of the GEMM ladder against float64 NumPy, and under the sanitizer; its table."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import SOURCE, STEPS, multiply
from test_cuda import compile_everywhere

import minires as mr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(64, 64, 64), (65, 97, 33), (1, 1, 1), (40, 68, 36), (130, 3, 71)], ids=str)
def test_step_of_the_ladder(step, shape, rng):
    m, n, k = shape
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    now = mr.device.current()
    arrays = [now.to_device(a), now.to_device(b), now.empty((m, n), np.float32)]
    multiply(step, *arrays)
    np.testing.assert_allclose(now.to_host(arrays[2]), a.astype(float) @ b, atol=1e-5 * k)
    if now.name == "cpu":
        with mr.sanitize():
            arrays = [now.to_device(a), now.to_device(b), now.empty((m, n), np.float32)]
            multiply(step, *arrays)
            assert np.isfinite(now.to_host(arrays[2])).all()


def test_the_ladder_compiles_without_spills(current_device):
    if current_device != "cpu":
        pytest.skip("once is enough: this does not depend on the current device")
    (everywhere,) = compile_everywhere([(SOURCE.read_text(), list(STEPS))])
    for found in everywhere:
        assert all(used.spill_bytes == 0 for used in found.values())


def test_the_table_of_the_ladder(current_device):
    command = [sys.executable, str(EXAMPLES / "gemm_ladder.py"), "--size", "70", "--repeats", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^\| (gemm_\w+) \| [\d.]+ \|", result.stdout, re.MULTILINE) == list(STEPS)

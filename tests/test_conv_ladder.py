"""The steps of the ladder of convolutions against float64 NumPy, and under the sanitizer; its table."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conv_ladder import SOURCE, STEPS, convolve
from reference import conv2d
from test_cuda import compile_everywhere

import minires as mr
from minires.device.source import find_kernels

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(2, 8, 8, 16, 16), (1, 9, 17, 20, 12), (3, 5, 7, 3, 4)], ids=str)
def test_step_of_the_ladder(step, shape, rng):
    n, h, w, c, o = shape
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((n, h, w, c), (3, 3, c, o)))
    now = mr.device.current()
    arrays = [now.to_device(x), now.to_device(weight), now.empty((n, h, w, o), np.dtype(np.float32))]
    convolve(step, *arrays)
    np.testing.assert_allclose(now.to_host(arrays[2]), conv2d(x, weight, (1, 1), (1, 1)), atol=1e-4)
    if now.name == "cpu":
        with mr.sanitize():
            arrays = [now.to_device(x), now.to_device(weight), now.empty((n, h, w, o), np.dtype(np.float32))]
            convolve(step, *arrays)
            assert np.isfinite(now.to_host(arrays[2])).all()


def test_the_ladder_compiles_without_spills(current_device):
    if current_device != "cpu":
        pytest.skip("once is enough: this does not depend on the current device")
    (everywhere,) = compile_everywhere([(SOURCE.read_text(), list(find_kernels(SOURCE.read_text())))])
    for found in everywhere:
        assert all(used.spill_bytes == 0 for used in found.values())


def test_the_table_of_the_ladder(current_device):
    command = [sys.executable, str(EXAMPLES / "conv_ladder.py"), "--batch", "3", "--channels", "4", "--repeats", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert tuple(re.findall(r"^\| (conv_\w+) \| [\d.]+ \|", result.stdout, re.MULTILINE)) == STEPS

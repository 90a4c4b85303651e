"""The lessons and the GEMM ladder, run as a reader runs them, and each step of the ladder against float64 NumPy."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cuda import ARCHITECTURES, KERNEL, compile_source

import minires as mr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
from gemm_ladder import SOURCE, STEPS, multiply  # noqa: E402

SAYS = {  # lesson: what it prints, in this order
    "lesson1_first_kernel.py": [
        r"axpy on 1000 elements in 4 blocks of 256 threads: as NumPy's: True",
        r"element 999 was computed by thread 231 of block 3",
        r"relu of 1000 elements: as NumPy's: True",
        r"kernel axpy, RawKernel:4, block \(3, 0, 0\), thread \(232, 0, 0\): a read outside the array: y\[1000\]",
    ],
    "lesson2_autograd_by_hand.py": [
        r"gradient of 0.weight  \(64, 2\)  differs from the one by hand by \d.\de-0[678]",
        r"gradient of 2.bias    \(3,\)     differs from the one by hand by \d.\de-0[678]",
        r"step   0  loss 1.\d+  accuracy [23]\d.\d%",
        r"step 500  loss 0.00\d  accuracy 100.0%",
    ],
    "lesson3_check_a_gradient.py": [
        r"silu: the gradient is right, its largest relative error is \d.\de-(09|10|11)",
        r"without the factor x: gradient of input 0\[\d, \d\]: analytic [\d.]+, numerical [\d.]+ ",
        r"a BasicBlock: every gradient is right, the largest relative error is \d.\de-(08|09|10)",
    ],
    "lesson4_find_a_race.py": [
        r"reverse: the result is right\n    the sanitizer finds nothing",
        r"reverse without its barrier.*\n    the sanitizer says: race: kernel reverse, RawKernel:[57]",
        r"shares: the result is right\n    the sanitizer finds nothing",
        r"shares with a barrier in the branch: .*\n    the sanitizer says: sync: kernel shares",
        r"RawKernel:\d+: a barrier that other threads of the block never reach",
    ],
    "lesson5_beside_pytorch.py": [r"   1 +2.\d+ +2.\d+ +\d.\de-0[67]\n   2 .*\n   3 .*e-0[567]"],
}


@pytest.mark.parametrize("lesson", SAYS)
def test_lesson(lesson, tmp_path, current_device):
    if "pytorch" in lesson:
        pytest.importorskip("torch", reason="this lesson compares with PyTorch: pip install torch")
    command = [sys.executable, str(EXAMPLES / lesson)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(".*".join(SAYS[lesson]), result.stdout, re.DOTALL), result.stdout


def test_every_lesson_is_tested_and_short():
    lessons = sorted(EXAMPLES.glob("lesson*.py"))
    assert [path.name for path in lessons] == list(SAYS)
    assert all(len(path.read_text().splitlines()) < 80 for path in lessons)


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ladder_compiles_without_spills(architecture, current_device):
    if current_device == "cuda":
        pytest.skip("once is enough: this does not depend on the current device")
    found = KERNEL.findall(compile_source(SOURCE.read_text(), architecture, np.dtype(np.float32)))
    assert sorted(name for name, *_ in found) == sorted(STEPS)
    assert all((stores, loads) == ("0", "0") for _, stores, loads, *_ in found)


def test_the_table_of_the_ladder(current_device):
    command = [sys.executable, str(EXAMPLES / "gemm_ladder.py"), "--size", "70", "--repeats", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^\| (gemm_\w+) \| [\d.]+ \|", result.stdout, re.MULTILINE) == list(STEPS)

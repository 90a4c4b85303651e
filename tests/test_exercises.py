"""The exercises of kernels/README.md: their answers pass, and unfinished or broken ones do not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from exercises import EXERCISES, FOR_SPEED, check, waste

ROOT = Path(__file__).resolve().parent.parent

STUBS = (ROOT / "examples" / "exercises.cu").read_text()
BODIES = dict(re.findall(r"^(\w+)\n((?:    .*\n)+)", (ROOT / "tests" / "exercise_solutions.txt").read_text(), re.MULTILINE))
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\([^)]*\) \{\n')


def written(bodies: dict[str, str]) -> str:
    """The exercises with their bodies written in."""
    return KERNEL.sub(lambda m: m[0] + bodies[m[1]], STUBS)


SOLUTIONS = written(BODIES)
BARRIER = "    __syncthreads();\n"
BROKEN = {  # name: what is changed, and what the check says
    "leaky_relu": (
        "x[i] > 0 ? x[i] : slope * x[i]",
        "max(x[i], 0.0f) + slope * min(x[i], 0.0f)",
        r"element \(7,\): 0 instead of nan",
    ),
    "add_strided": ("i < n; i += gridDim.x * blockDim.x", "i < n; i += n", r"left c\[64\] of 1000 elements unwritten"),
    "adam_step": ("m[i] / (1 - powf(beta1, step))", "m[i]", "argument 0"),
    "max_pool2x2_backward": ("> window[(best", ">= window[(best", "instead of"),
    "dropout": ("< p ? 0", "< p * 0.9f ? 0", "0 instead of|instead of 0"),
    "im2col_dilated": ("ox + kx * dilation", "ox + kx", "instead of"),
    "block_max": (BARRIER, "", "race"),
    "log_softmax": ("expf(z[n * C + c] - largest)", "expf(z[n * C + c])", "instead of"),
    "layer_norm": ("squares += (row[p] - mean) * (row[p] - mean)", "squares += row[p] * row[p] - mean * mean", "inst"),
    "transpose": ("if (i0 + r < H && j0 + tx < W) ", "", "outside the array"),
    "depthwise3x3": (BARRIER, "", "race"),
}


@pytest.fixture(autouse=True)
def only_once(current_device):
    if current_device != "cpu":
        pytest.skip("the exercises are checked on the CPU device")


@pytest.fixture(scope="module")
def broken():
    """All solutions, each with its fault: one source, since it takes a second or two to compile."""
    assert all(BODIES[name].count(old) == 1 for name, (old, _, _) in BROKEN.items())
    return written({name: BODIES[name].replace(old, new) for name, (old, new, _) in BROKEN.items()})


def test_every_exercise_has_a_stub_and_a_solution():
    assert KERNEL.findall(STUBS) == list(EXERCISES) == list(BROKEN) == list(BODIES)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_is_right_and_a_broken_one_is_not(name, broken):
    assert check(SOLUTIONS, name) is None
    assert re.search(BROKEN[name][2], check(broken, name))


@pytest.mark.parametrize("name", FOR_SPEED)
def test_the_second_verdict(name):
    """A solution touches as little as can be; one that is right, but made for a CPU, is told at which line it does not."""
    assert waste(SOLUTIONS, name) is None
    slow = {
        "block_max": BODIES["block_max"].replace("x[i]", "x[(i * 7) % n]"),
        "transpose": BODIES["transpose"].replace("tile[32][33]", "tile[32][32]"),
        "depthwise3x3": re.sub(
            r"tile(\[.*?\]\[.*?\])\[(32|c)\]", r"tile[\2]\1", BODIES["depthwise3x3"]
        ),  # lanes 30 words apart
    }[name]
    code = written(BODIES | {name: slow})
    assert slow != BODIES[name] and check(code, name) is None
    assert re.search(
        r"\d+ (sectors|wavefronts) where \d+ would do, most of them too many at line \d+: a (load|store)", waste(code, name)
    )


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unwritten_answer_is_not_right(name):
    assert check(STUBS, name) is not None


def test_shared_memory_is_asked_for():
    code = 'extern "C" __global__ void transpose(const float* x, float* y, int H, int W) {\n'
    code += "const int i0 = blockIdx.y * 32, j = blockIdx.x * 32 + threadIdx.x;\n"
    code += "for (int i = i0 + threadIdx.y; i < i0 + 32 && i < H; i += 8) if (j < W) y[j * H + i] = x[i * W + j];\n}\n"
    assert "it was to be computed in shared memory" in check(code, "transpose")


def run(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "exercises.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_as_a_reader_uses_it(tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(STUBS.replace("float slope, int n) {\n", "float slope, int n) {\n    y[0] = oops;\n"))
    result = run(str(mine), "leaky_relu")
    assert result.returncode == 1
    assert "not yet: " in result.stdout and "oops" in result.stdout
    mine.write_text(SOLUTIONS)
    result = run(str(mine), "leaky_relu", "dropout")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("right") == 2
    assert "there is no exercise 'relu'" in run(str(mine), "relu").stderr
    missing = run("missing.cu")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and "Traceback" not in missing.stderr

"""Small kernels, each broken in one way, that the sanitizer must catch and place."""

import subprocess
import sys

import numpy as np
import pytest

import minires as mr
from minires import device

HEAD = 'extern "C" __global__ void k(float* x, float* y) {\n'
TILE = "__shared__ float s[32];\nconst int t = threadIdx.x;\n"
FRESH = "fresh"  # an output of 64 elements that nothing has written

LEFT = (
    r"block \(., 0, 0\), thread \(\d+, 0, 0\): RawKernel:LINE: this thread waits at a barrier that thread \(GONE\) has left "
    r"without; GPUs since Volta go on, but CUDA allows a barrier in conditional code only where the condition is the same"
)

BROKEN = {  # name: (source, threads, blocks, y, kind, what the message says)
    "no barrier after a tile is loaded": (
        HEAD + TILE + "s[t] = x[t];\ny[t] = s[31 - t];\n}",
        (32, 1, None, "race", r"RawKernel:\d, .* with no barrier after the .* shared array s\["),
    ),
    "no barrier before a tile is loaded again": (
        HEAD + TILE + "for (int i = 0; i < 2; ++i) {\ns[t] = x[t + i];\n__syncthreads();\ny[t] = s[31 - t];\n}\n}",
        (32, 1, None, "race", r"shared array s\["),
    ),
    "a barrier in a divergent branch": (
        HEAD + "if (threadIdx.x < 16)\n__syncthreads();\nelse\n__syncthreads();\n}",
        (32, 1, None, "sync", r"RawKernel:(3|5): a barrier that other threads of the block never reach"),
    ),
    "a read one past the end": (
        HEAD + "y[threadIdx.x] = x[threadIdx.x + 1];\n}",
        (64, 1, None, "mem", r"RawKernel:2, block \(0, 0, 0\), thread \(63, 0, 0\): a read outside the array: x\[64\]"),
    ),
    "a write one past the end": (
        HEAD + "y[threadIdx.x + 1] = x[threadIdx.x];\n}",
        (64, 1, None, "mem", r"thread \(63, 0, 0\): a write outside the array: y\[64\], of 64 elements"),
    ),
    "a write one before the beginning": (
        HEAD + "y[int(threadIdx.x) - 1] = 1;\n}",
        (64, 1, None, "mem", r"thread \(0, 0, 0\): a write outside the array: y\[-1\]"),
    ),
    "a negative index": (
        HEAD + "y[threadIdx.x] = x[int(threadIdx.x) - 40];\n}",
        (64, 1, None, "mem", r"a read outside the array: x\[-40\]"),
    ),
    "an index one past a shared array": (
        HEAD + TILE + "s[t] = x[t];\n__syncthreads();\ny[t] = s[t + 1];\n}",
        (32, 1, None, "mem", r"thread \(31, 0, 0\): a read outside the array: shared array s\[32\], of 32 elements"),
    ),
    "a wild pointer": (HEAD + "y[threadIdx.x] = x[1ll << 40];\n}", (1, 1, None, "mem", "a read far outside every array")),
    "a null pointer": (
        HEAD + "float* p = x[0] > 1e30f ? x : nullptr;\ny[0] = p[threadIdx.x];\n}",
        (1, 1, None, "mem", "a read far outside every array"),
    ),
    "an index past the second of two shared arrays": (
        HEAD + "__shared__ float r[8], s[4][8];\nr[threadIdx.x] = x[threadIdx.x];\ny[0] = (&s[0][0])[32 + int(r[0])];\n}",
        (1, 1, None, "mem", r"RawKernel:4, .*a read outside the array: shared array s\[32\], of 32 elements"),
    ),
    "an element changed past the end": (
        HEAD + "y[threadIdx.x] += 1;\n}",
        (65, 1, None, "mem", r"RawKernel:2, .*a read outside the array: y\[64\]"),
    ),
    "an uninitialised read of shared memory": (
        HEAD + TILE + "if (t < 31) s[t] = x[t];\n__syncthreads();\ny[t] = s[t];\n}",
        (32, 1, None, "init", r"RawKernel:6, .* \(31, 0, 0\): a read of an element that nothing wrote: .* s\[31\]"),
    ),
    "an uninitialised read of device memory": (
        HEAD + "x[threadIdx.x] = y[threadIdx.x];\n}",
        (64, 1, FRESH, "init", r"a read of an element that nothing wrote: y\[0\], of 64 elements"),
    ),
    "an output left unwritten": (
        HEAD + "if (threadIdx.x != 5) y[threadIdx.x] = 1;\n}",
        (64, 1, FRESH, "init", r"kernel k left y\[5\] of 64 elements unwritten \(1 in all\)"),
    ),
    "two blocks write one element": (
        HEAD + "y[threadIdx.x] = 1;\n}",
        (64, 2, None, "race", r"block \(1, 0, 0\), thread .* after the write by block \(0, 0, 0\)"),
    ),
    "a block reads what another writes": (
        HEAD + "y[blockIdx.x] = y[1 - blockIdx.x] + 1;\n}",
        (1, 2, None, "race", r"y\[[01]\]"),
    ),
    "two threads write one element": (
        HEAD + "y[threadIdx.x / 2] = threadIdx.x;\n}",
        (64, 1, None, "race", r"a write with no barrier after the write by .*: y\[0\]"),
    ),
    "a sum without an atomic addition": (HEAD + "y[0] += x[threadIdx.x];\n}", (64, 1, None, "race", r"y\[0\]")),
    "an atomic sum that depends on the order": (
        HEAD + "atomicAdd(y, x[threadIdx.x]);\n}",
        (64, 1, None, "race", r"kernel k gives y\[0\] = .* in (reverse|random) order"),
    ),
    "a shuffle with absent lanes": (
        HEAD + "if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1);\n}",
        (32, 1, None, "sync", "RawKernel:2: the mask names lanes that are absent or have ended"),
    ),
    "a shuffle in a block smaller than a warp": (
        HEAD + "y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);\n}",
        (20, 1, None, "sync", "the mask names lanes that are absent"),
    ),
    "a shuffle from a lane outside the mask": (
        HEAD + "if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);\n__syncwarp();\n}",
        (32, 1, None, "sync", "a shuffle from a lane that the mask does not name"),
    ),
    "a lane outside its own mask": (
        HEAD + "__syncwarp(0xffu);\n}",
        (32, 1, None, "sync", "a lane that its own mask does not name"),
    ),
    "a barrier for some of the warps": (
        HEAD + "if (threadIdx.x < 40)\n__syncthreads();\n}",
        (64, 1, None, "sync", LEFT.replace("GONE", r"63, 0, 0").replace("LINE", "3")),
    ),
    "a thread that returns before a barrier": (
        HEAD + "if (threadIdx.x == 5) return;\ny[threadIdx.x] = x[threadIdx.x];\n__syncthreads();\n}",
        (64, 1, None, "sync", LEFT.replace("GONE", r"5, 0, 0").replace("LINE", "4")),
    ),
    "a barrier behind a bounds check": (
        HEAD
        + "const int row = threadIdx.x / 32 + 2 * blockIdx.x;\nif (row < 3) {\ny[row] = 1 + 0 * x[row];\n__syncthreads();\n}\n}",
        (64, 2, None, "sync|race", LEFT.replace("GONE", r"63, 0, 0").replace("LINE", "5") + "|y"),
    ),
    "a loop that one warp runs more often": (
        HEAD + "for (int i = 0; i < 2 + int(threadIdx.x) / 32; ++i)\n__syncthreads();\n}",
        (64, 1, None, "sync", LEFT.replace("GONE", r"31, 0, 0").replace("LINE", "3")),
    ),
    "a loop that one thread leaves for another barrier": (
        HEAD + "for (int i = 0; i < 2 + (threadIdx.x == 7); ++i)\n__syncthreads();\n__syncthreads();\n}",
        (64, 1, None, "sync", "a barrier that other threads of the block never reach|has left without"),
    ),
    "a warp primitive across a barrier": (
        HEAD + "if (threadIdx.x < 16) __syncwarp();\n__syncthreads();\n}",
        (32, 1, None, "sync", "RawKernel:2: a warp primitive that lanes of its mask never reach"),
    ),
    "waiting for a block that need not run": (
        HEAD + "int* flag = reinterpret_cast<int*>(y);\nif (blockIdx.x == 0) atomicExch(flag, 1);\n"
        "else while (atomicAdd(flag, 0) == 0);\n}",
        (1, 2, None, "sync", r"RawKernel:4, block \(1, 0, 0\), .*: this thread has looked at one place 10000000 times"),
    ),
    "waiting for a thread without a barrier": (
        HEAD + "__shared__ volatile int ready;\nif (threadIdx.x == 0) ready = 0;\n__syncthreads();\n"
        "if (threadIdx.x == 1) ready = 1;\nelse while (ready == 0) {}\ny[threadIdx.x] = x[0];\n}",
        (32, 1, None, "sync|race", "RawKernel:6, block .* looked at one place|with no barrier after"),
    ),
    "a lock without a fence": (
        HEAD + "int* lock = reinterpret_cast<int*>(y + 1);\nwhile (atomicCAS(lock, 0, 1) != 0);\n"
        "y[0] = y[0] + 1;\natomicExch(lock, 0);\n}",
        (2, 1, None, "race", r"RawKernel:4, .*y\[0\]"),
    ),
    "an access after the lock is given back": (
        HEAD + "int* lock = reinterpret_cast<int*>(y + 1);\nwhile (atomicCAS(lock, 0, 1) != 0);\n__threadfence();\n"
        "y[0] = y[0] + 1;\n__threadfence();\natomicExch(lock, 0);\ny[0] = 2;\n}",
        (2, 1, None, "race", r"RawKernel:[58], .*y\[0\]"),
    ),
    "a read of what others change atomically": (
        HEAD + "int* n = reinterpret_cast<int*>(y);\natomicAdd(n, 1);\ny[threadIdx.x + 1] = *n;\n}",
        (2, 1, None, "race", r"RawKernel:[34], .*y\[0\]"),
    ),
    "neighbours with a vote between": (
        HEAD + TILE + "s[t] = x[t];\n__any_sync(~0u, 1);\ny[t] = s[t ^ 1];\n}",
        (32, 1, None, "race", r"RawKernel:6, .* a read with no barrier after the write"),
    ),
    "neighbours with a shuffle between": (
        HEAD + TILE + "s[t] = x[t];\nconst float z = __shfl_xor_sync(~0u, x[t], 1);\ny[t] = s[t ^ 1] + z;\n}",
        (32, 1, None, "race", r"RawKernel:6, .* a read with no barrier after the write"),
    ),
    "a match, and a write that another lane has not read": (
        HEAD + TILE + "s[t] = x[t];\n__syncwarp();\ny[t] = s[t ^ 1];\n__match_any_sync(~0u, t);\ns[t] = 0;\n}",
        (32, 1, None, "race", r"RawKernel:[68], .* with no barrier after"),
    ),
    "global memory with a ballot between": (
        HEAD + "const int t = threadIdx.x;\ny[t] = x[t];\nif (__ballot_sync(~0u, t)) y[t + 32] = y[t ^ 1];\n}",
        (32, 1, None, "race", r"RawKernel:4, .*y\[\d+\].* a read with no barrier|RawKernel:4, .* a read with no barrier"),
    ),
    "a negative float to unsigned": (
        HEAD + "y[threadIdx.x] = (unsigned)(x[threadIdx.x] - 100);\n}",
        (32, 1, None, "value", r"RawKernel:2, .*: -\d+\.\d+ does not fit 'unsigned int'; .* a GPU 0$"),
    ),
    "a large float to int": (
        HEAD + "y[threadIdx.x] = int(x[threadIdx.x] * x[threadIdx.x] * 1e20f);\n}",
        (32, 1, None, "value", r"RawKernel:2, .* does not fit 'int'; .* a GPU 2147483647$"),
    ),
    "a double to 16 bits": (
        HEAD + "short s = 70000.0 + x[0];\ny[0] = s;\n}",
        (1, 1, None, "value", r"RawKernel:2, .* does not fit 'short( int)?'"),
    ),
    "a shift by the width": (
        HEAD + "y[threadIdx.x] = 1 << (threadIdx.x + 1);\n}",
        (32, 1, None, "value", r"RawKernel:2, .*thread \(31, 0, 0\): a shift of 1, 'int', by 32; .* a GPU gives 0$"),
    ),
    "a shift of 64 bits, and of a negative number": (
        HEAD + "y[threadIdx.x] = -5ll >> (threadIdx.x + 60);\n}",
        (8, 1, None, "value", r"RawKernel:2, .*thread \(4, 0, 0\): a shift of -5, .* by 64; .* gives 0, to the right -1$"),
    ),
    "a double behind a float": (
        HEAD + "*reinterpret_cast<double*>(y + 2 * threadIdx.x + 1) = 3;\n}",
        (4, 1, None, "mem", r"RawKernel:2, .*: 'double' at an address that 8 does not divide, 4 bytes behind"),
    ),
    "endless recursion": (
        "__device__ __noinline__ float deeper(volatile float* p) {\nvolatile float here[100];\nhere[0] = p[0] + 1;\n"
        "return deeper(here) + here[1];\n}\n" + HEAD + "y[0] = deeper(x);\n}",
        (1, 1, None, "sync", "the thread's stack overflowed"),
    ),
}


def launch(code, threads, blocks, y):
    now = device.current()
    x = now.to_device(np.random.default_rng(0).standard_normal(64).astype(np.float32))
    y = now.empty((64,), np.float32) if y == FRESH else now.to_device(np.zeros(64, np.float32))
    mr.RawKernel(code, "k")((blocks,), (threads,), (x, y))
    return now.to_host(y)


@pytest.fixture(autouse=True)
def only_on_the_cpu(current_device):
    if current_device != "cpu":
        pytest.skip("on a GPU, NVIDIA's compute-sanitizer does this")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(name, seed):
    code, (threads, blocks, y, kind, words) = BROKEN[name]
    with mr.sanitize(seed=seed), pytest.raises(mr.SanitizerError, match=words) as caught:
        launch(code, threads, blocks, y)
    assert caught.value.kind in kind.split("|")
    assert str(caught.value).startswith(f"{caught.value.kind}: kernel k")


CLEAN = {
    "casts and shifts that fit": (
        HEAD + "const int t = threadIdx.x;\nconst float z = fabsf(x[t]) * 50;\n"
        "y[t] = (unsigned char)z + (int)-z + (unsigned)z + __float2uint_rz(-z) + (short)z;\n"
        "y[t + 32] = (1u << t) + (-1 << 3) + (1 << t) + (-5 >> t) + (1ull << (t + 32)) + 2147483648u % 7;\n}",
        (32, 1, FRESH),
    ),
    "vectors where they may lie": (
        HEAD + "const int t = threadIdx.x;\nreinterpret_cast<float4*>(y)[t] = reinterpret_cast<const float4*>(x)[t];\n"
        "struct Three { float a, b, c; };\nThree three = reinterpret_cast<const Three*>(x + 1)[t];\ny[4 * t] = three.b;\n}",
        (16, 1, FRESH),
    ),
    "a tile between two barriers": (
        HEAD + TILE + "for (int i = 0; i < 2; ++i) {\ns[t] = x[t + i];\n__syncthreads();\n"
        "y[t] = s[31 - t];\n__syncthreads();\n}\n}",
        (32, 1, FRESH),
    ),
    "neighbours through a warp barrier": (
        HEAD + TILE + "s[t] = x[t];\n__syncwarp();\ny[t] = s[t ^ 1];\ny[t + 32] = 0;\n}",
        (32, 1, FRESH),
    ),
    "integers added atomically": (HEAD + "atomicAdd(reinterpret_cast<int*>(y), 1);\n}", (64, 3, None)),
    "all threads of a block return together": (
        HEAD + "if (blockIdx.x == 1) return;\n__syncthreads();\ny[threadIdx.x] = x[threadIdx.x];\n}",
        (64, 2, None),
    ),
    "a loop whose trips are the same for the block": (
        HEAD + "for (int i = 0; i <= int(blockIdx.x); ++i) __syncthreads();\nif (blockIdx.x == 0) y[threadIdx.x] = 1;\n}",
        (64, 3, None),
    ),
    "the lanes that come to __activemask": (
        HEAD + "const int t = threadIdx.x;\nif (t % 2) {\nconst unsigned m = __activemask();\n"
        "y[t] = __shfl_sync(m, x[t], __ffs(m) - 1);\n}\n}",
        (64, 1, None),
    ),
    "a loop around atomicCAS": (  # of the CUDA C++ Programming Guide, "Atomic Functions"
        HEAD + "unsigned* at = reinterpret_cast<unsigned*>(y);\nunsigned old = *at, assumed;\n"
        "do {\nassumed = old;\nold = atomicCAS(at, assumed, __float_as_uint(__uint_as_float(assumed) + 1));\n"
        "} while (assumed != old);\n}",
        (40, 2, None),
    ),
    "a lock": (
        HEAD + "int* lock = reinterpret_cast<int*>(y + 1);\nwhile (atomicCAS(lock, 0, 1) != 0);\n__threadfence();\n"
        "y[0] = y[0] + 1;\n__threadfence();\natomicExch(lock, 0);\n}",
        (40, 2, None),
    ),
    "the last block adds up": (  # of the CUDA C++ Programming Guide, "Memory Fence Functions"
        "__shared__ bool is_last;\n" + HEAD + "const int t = threadIdx.x;\nif (t < 4) y[4 * blockIdx.x + t] = 1;\n"
        "__threadfence();\n__syncthreads();\nif (t == 0) is_last = atomicAdd(reinterpret_cast<int*>(y + 63), 1) == 2;\n"
        "__syncthreads();\nif (is_last && t < 12) y[16 + t] = y[11 - t] + 1;\n}",
        (64, 3, None),
    ),
    "half of a warp shuffles": (
        HEAD + "if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 1);\n}",
        (32, 1, None),
    ),
}


@pytest.mark.parametrize("name", CLEAN)
def test_sound_kernels_are_not_reported(name):
    code, (threads, blocks, y) = CLEAN[name]
    if y == FRESH:
        code = code.replace("y[t] = s", "y[t + 32] = 0;\ny[t] = s") if "y[t + 32]" not in code else code
    expected = launch(code, threads, blocks, y)
    for seed in range(20):
        with mr.sanitize(seed=seed):
            np.testing.assert_array_equal(launch(code, threads, blocks, y), expected)


def test_only_the_checks_asked_for():
    code, (threads, blocks, y, _, _) = BROKEN["two threads write one element"]
    for checks in ("mem,init,sync", ["mem"]):
        with mr.sanitize(checks):
            launch(code, threads, blocks, y)
    with mr.sanitize("race"), pytest.raises(mr.SanitizerError):
        launch(code, threads, blocks, y)
    with (
        pytest.raises(ValueError, match="unknown check 'races': choose 'all' or some of race, mem, init, sync"),
        mr.sanitize("races"),
    ):
        pass


def test_the_host_must_not_read_what_no_kernel_wrote():
    with mr.sanitize(), pytest.raises(mr.SanitizerError, match=r"element \[0, 0\] of an array of shape \(3, 5\) was never"):
        device.current().to_host(device.current().empty((3, 5), np.float32))


def test_results_stay_and_the_mode_ends_with_the_context():
    x = mr.Tensor([-1.0, 2.0], requires_grad=True)
    with mr.sanitize():
        y = mr.functional.relu(x)
    np.testing.assert_array_equal(y.numpy(), [0, 2])
    y.backward(np.ones(2, np.float32))
    assert device.current().watcher is None


def test_a_training_step_is_clean():
    mr.manual_seed(0)
    with mr.sanitize():
        net = mr.resnet.ResNet(mr.resnet.BasicBlock, [1, 1, 1], shortcut="B")
        optimizer = mr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        ((x, labels),) = mr.cifar.Loader(mr.cifar.synthetic(2, 10).train, 2, train=True)
        loss = mr.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        assert 0 < mr.functional.cross_entropy(net.eval()(x), labels).item() < 100


def test_a_step_with_every_kernel_of_training_is_clean_for_20_seeds():
    """Each step takes three orders of the threads: a network of few channels, so that it takes seconds."""
    mr.manual_seed(0)
    functional = mr.functional
    for seed in range(20):
        with mr.sanitize("all", seed):
            first, second = mr.nn.Conv2d(3, 4, 3, 1, 1), mr.nn.Conv2d(4, 5, 3, 2, 1)
            norms, fc = [mr.nn.BatchNorm2d(4), mr.nn.BatchNorm2d(5)], mr.nn.Linear(5, 3)
            parameters = [p for m in (first, second, *norms, fc) for p in m.parameters()]
            optimizer = mr.optim.SGD(parameters, lr=0.1, momentum=0.9)
            x = mr.Tensor(np.random.default_rng(seed).standard_normal((2, 8, 8, 3)).astype(np.float32))
            y = norms[0].relu(first(x))
            z = norms[1].relu(second(y), functional.shortcut(y, 5, 2))
            logits = fc(functional.global_avg_pool2d(z))
            functional.cross_entropy(logits, np.arange(2)).backward()
            functional.count_correct(logits, np.arange(2))
            optimizer.step()


def test_for_a_whole_process(monkeypatch):
    code = f"""
import numpy as np, minires as mr
mr.RawKernel({BROKEN["a write one past the end"][0]!r}, "k")((1,), (64,), (np.zeros(64, "f"), np.zeros(64, "f")))
"""
    for setting, returncode in (("1", 1), ("mem", 1), ("race,init", 0)):
        monkeypatch.setenv("MINIRES_SANITIZE", setting)
        monkeypatch.setenv("MINIRES_DEVICE", "cpu")
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == returncode, result.stderr
        assert ("mem: kernel k, RawKernel:2" in result.stderr) == (returncode == 1)

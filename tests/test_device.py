"""The device layer: CUDA's built-ins, launches and their errors, and how kernels are compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import device

HEAD = 'extern "C" __global__ void k'


def run(code, grid, block, *arrays, numbers=()):
    """Launch the kernel `k` of `code`; the arrays' contents afterwards."""
    now = device.current()
    on_device = [now.to_device(np.ascontiguousarray(a)) for a in arrays]
    mr.RawKernel(code, "k")(grid, block, (*on_device, *numbers))
    results = [now.to_host(a) for a in on_device]
    return results[0] if len(results) == 1 else results


def test_indices_of_a_three_dimensional_launch():
    code = (
        HEAD
        + """(int* out) {
        dim3 block(blockDim.x, blockDim.y, blockDim.z);
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int t = threadIdx.x + block.x * (threadIdx.y + block.y * threadIdx.z);
        atomicAdd(&out[b * 24 + t], b * 24 + t + 1);
    }"""
    )
    out = run(code, (2, 3, 2), (4, 3, 2), np.zeros(12 * 24, np.int32))
    np.testing.assert_array_equal(out, np.arange(1, 12 * 24 + 1))


@pytest.mark.parametrize("threads", [1, 2, 31, 33, 256, 1024])
def test_barrier_and_shared_memory(threads):
    """Each round passes every value on to the next thread; without the barriers they would overwrite each other."""
    code = (
        HEAD
        + """(float* x, int rounds) {
        __shared__ float s[1024];
        const int t = threadIdx.x, n = blockDim.x;
        float v = x[blockIdx.x * n + t];
        for (int i = 0; i < rounds; ++i) {
            s[t] = v;
            __syncthreads();
            v = s[(t + 1) % n];
            __syncthreads();
        }
        x[blockIdx.x * n + t] = v;
    }"""
    )
    x = np.arange(5 * threads, dtype=np.float32)
    out = run(code, (5,), (threads,), x, numbers=(7,))
    np.testing.assert_array_equal(out.reshape(5, -1), np.roll(x.reshape(5, -1), -7, axis=1))


def test_threads_may_leave_before_a_barrier():
    code = (
        HEAD
        + """(int* x, int limit) {
        __shared__ int s[64];
        if (threadIdx.x >= limit) return;
        s[threadIdx.x] = threadIdx.x;
        __syncthreads();
        x[threadIdx.x] = s[limit - 1 - threadIdx.x];
    }"""
    )
    out = run(code, (1,), (64,), np.zeros(64, np.int32), numbers=(40,))
    np.testing.assert_array_equal(out, [*range(39, -1, -1), *[0] * 24])


@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(width):
    code = (
        HEAD
        + f"""(int* out) {{
        const int t = threadIdx.x, v = t * 10;
        out[t] = __shfl_sync(0xffffffffu, v, t + 3, {width});
        out[64 + t] = __shfl_up_sync(0xffffffffu, v, 3, {width});
        out[128 + t] = __shfl_down_sync(0xffffffffu, v, 3, {width});
        out[192 + t] = __shfl_xor_sync(0xffffffffu, v, 5, {width});
        out[256 + t] = int(__shfl_down_sync(0xffffffffu, double(v), 1, {width}));
    }}"""
    )
    out = run(code, (1,), (64,), np.zeros(320, np.int32)).reshape(5, 64)
    t = np.arange(64)
    start, lane = t // width * width, t % width
    expected = [
        start + (t + 3) % width,
        np.where(lane >= 3, t - 3, t),
        np.where(lane + 3 < width, t + 3, t),
        start + (lane ^ 5),
        np.where(lane + 1 < width, t + 1, t),
    ]
    np.testing.assert_array_equal(out, np.array(expected) * 10)


def test_shuffles_of_part_of_a_warp_and_in_branches():
    code = (
        HEAD
        + """(int* out) {
        const int t = threadIdx.x;
        int v = t;
        if (t % 32 < 16) for (int d = 8; d; d /= 2) v += __shfl_down_sync(0xffffu, v, d);
        __syncwarp();
        out[t] = v;
    }"""
    )
    out = run(code, (1,), (96,), np.zeros(96, np.int32))
    np.testing.assert_array_equal(out[::32], [sum(range(w, w + 16)) for w in (0, 32, 64)])
    np.testing.assert_array_equal(out.reshape(3, 32)[:, 16:], np.arange(96).reshape(3, 32)[:, 16:])


def test_atomic_additions_from_many_blocks():
    code = (
        HEAD
        + """(int* count, float* sum, double* precise) {
        atomicAdd(count, 1);
        atomicAdd(sum, 1.0f);
        atomicAdd(precise, 0.5);
    }"""
    )
    zeros = np.zeros(1, np.int32), np.zeros(1, np.float32), np.zeros(1)
    count, total, precise = run(code, (100,), (64,), *zeros)
    assert (count[0], total[0], precise[0]) == (6400, 6400, 3200)


def test_vector_types_and_functions():
    code = """
    __constant__ float table[2] = {0.5f, 2.0f};
    extern "C" __global__ void __launch_bounds__(64) k(const float* __restrict__ x, float* __restrict__ y) {
        const int t = threadIdx.x;
        const float4 v = reinterpret_cast<const float4*>(x)[t];
        float2 w = make_float2(v.x + v.y, v.z + v.w);
        y[t] = fmaxf(__ldg(&x[4 * t]), table[t % 2]) + rsqrtf(w.x) + sqrtf(w.y) + __expf(-w.x) + float(max(t, 3));
    }"""
    x = np.random.default_rng(0).uniform(0.5, 2, (64, 4)).astype(np.float32)
    _, y = run(code, (1,), (64,), x, np.zeros(64, np.float32))
    a, b = x[:, 0] + x[:, 1], x[:, 2] + x[:, 3]
    expected = np.maximum(x[:, 0], np.tile([0.5, 2], 32)) + a**-0.5 + b**0.5 + np.exp(-a) + np.maximum(np.arange(64), 3)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_scalar_arguments_are_converted():
    code = HEAD + "(double* out, float f, int i, unsigned char c, bool b, long long l) { *out = f + i + c + b + double(l); }"
    out = run(code, (1,), (1,), np.zeros(1), numbers=(0.5, np.int64(-3), 7, True, 2**40))
    assert out[0] == 0.5 - 3 + 7 + 1 + 2.0**40


DIVERGENT = HEAD + "(int* x) { if (threadIdx.x < 16) __syncthreads(); else __syncwarp(0xffffffffu); }"


def test_a_barrier_that_some_never_reach_is_reported(current_device):
    if current_device != "cpu":
        pytest.skip("a GPU would hang or go on")
    with pytest.raises(mr.DeviceError, match=r"kernel k, block \(0, 0, 0\): some threads wait at a barrier"):
        run(DIVERGENT, (300,), (32,), np.zeros(1, np.int32))
    test_barrier_and_shared_memory(256)  # and the device still works


@pytest.mark.parametrize(
    ("grid", "block", "args", "error", "words"),
    [
        ((1,), (1,), (), TypeError, r"takes 2 arguments \(x, n\), 0 were given"),
        ((1,), (1,), (1.5, 1), TypeError, "'x' of kernel k must be a .* array"),
        ((1,), (1,), (np.zeros(3), 1), TypeError, "must be a float32 array, got float64"),
        ((1,), (1,), (np.zeros((4, 4), np.float32)[:, ::2], 1), ValueError, "must be C-contiguous"),
        ((1,), (1,), (np.zeros(3, np.float32), 1.5), TypeError, "must be a whole number, got 1.5"),
        ((1,), (1,), (np.zeros(3, np.float32), 2**40), ValueError, "does not fit int32"),
        ((1,), (1,), (np.zeros(3, np.float32), "7"), TypeError, "must be a int32 scalar, got str"),
        ((0,), (1,), (None, 1), ValueError, r"grid of kernel k is \(0,\)"),
        ((1, 70000), (1,), (None, 1), ValueError, "grid of kernel k"),
        ((1,), (33, 32), (None, 1), ValueError, "at most 1024 threads"),
        ((1,), 64, (None, 1), TypeError, "block of kernel k must be a tuple"),
        ((1, 1, 1, 1), (1,), (None, 1), TypeError, "one to three integers"),
    ],
    ids=str,
)
def test_bad_launches(grid, block, args, error, words, current_device):
    if current_device == "cuda":
        pytest.skip("the arrays here are NumPy's")
    kernel = mr.RawKernel(HEAD + "(float* x, int n) { if (x) x[0] = n; }", "k")
    with pytest.raises(error, match=words):
        kernel(grid, block, args)


def test_lists_of_arrays():
    code = (
        '#include "common.cuh"\n'
        + HEAD
        + "(Pointers<int> xs, Pointers<const int> ys, int n) "
        + "{ xs.at[blockIdx.x][0] = ys.at[0] ? *ys.at[blockIdx.x] : n; }"
    )
    kernel, now = mr.RawKernel(code, "k"), device.current()
    xs, ys = ([now.to_device(np.array([v, v], np.int32)) for v in values] for values in ((1, 2, 3), (7, 8, 9)))
    kernel((3,), (1,), (xs, ys, 5))
    assert [now.to_host(x).tolist() for x in xs] == [[7, 1], [8, 2], [9, 3]]
    kernel((2,), (1,), (xs, None, 5))
    assert [now.to_host(x).tolist() for x in xs] == [[5, 1], [5, 2], [9, 3]]
    with pytest.raises(TypeError, match="'xs' of kernel k must be a list of at most 64 int32 arrays, got "):
        kernel((1,), (1,), (xs[0], None, 5))
    with pytest.raises(TypeError, match="'xs' of kernel k must be a list of at most 64 int32 arrays, got 65 arrays"):
        kernel((1,), (1,), (xs[:1] * 65, None, 5))
    with pytest.raises(TypeError, match="'xs' of kernel k must be a int32 array, got float32"):
        kernel((1,), (1,), ([now.to_device(np.zeros(3, np.float32))], None, 5))


def test_code_that_does_not_compile_or_has_no_such_kernel():
    with pytest.raises(mr.DeviceError, match="could not compile"):
        mr.RawKernel(HEAD + "(int* x) { x = nonsense; }", "k")
    with pytest.raises(ValueError, match=r"no kernel 'other' .* it has: k"):
        mr.RawKernel(HEAD + "(int* x) { }", "other")


def test_unknown_device():
    with pytest.raises(ValueError, match="unknown device 'tpu': choose 'cuda' or 'cpu'"):
        mr.set_device("tpu")


# ---------------------------------------------------------------------------------------------------------------------
# Processes of their own

ONE_KERNEL = f"""
import numpy as np, minires as mr
x = mr.Tensor(np.zeros(1000)).data
mr.RawKernel('{HEAD}(double* x) {{ x[blockIdx.x] = blockIdx.x; }}', "k")((1000,), (1,), (x,))
assert (x == np.arange(1000)).all()
"""

TRAIN_A_LITTLE = """
import hashlib, minires as mr
mr.manual_seed(0)
net = mr.resnet.resnet(8)
optimizer = mr.optim.SGD(net.parameters(), 0.1, 0.9)
for x, y in mr.cifar.Loader(mr.cifar.synthetic(100, 10).train, 34, train=True):
    loss = mr.functional.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(hashlib.sha256(b"".join(a.tobytes() for a in net.state_dict().values())).hexdigest())
"""


def python(code, **environment) -> subprocess.Popen:
    variables = {k: v for k, v in os.environ.items() if k != "CXX"} | {"MINIRES_DEVICE": "cpu"} | environment
    return subprocess.Popen(
        [sys.executable, "-c", code], env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.no_late
def test_results_do_not_depend_on_the_number_of_threads():
    processes = [python(TRAIN_A_LITTLE, MINIRES_NUM_THREADS=str(n)) for n in (1, 2, 3, 3)]
    outputs = [p.communicate() for p in processes]
    assert all(p.returncode == 0 for p in processes), outputs
    assert len({out for out, _ in outputs}) == 1


@pytest.mark.no_late
def test_two_processes_compile_at_once(tmp_path):
    processes = [python(ONE_KERNEL, XDG_CACHE_HOME=str(tmp_path)) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    # The kernel and the runtime, each in a folder of its own, and nothing that was on the way.
    assert len(list((tmp_path / "minires").rglob("*"))) == 4


def cache_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (folder / "minires").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    assert python(ONE_KERNEL, XDG_CACHE_HOME=str(folder)).wait() == 0
    return folder


@pytest.mark.no_late
@pytest.mark.parametrize("damage", ["cut off", "text", "another bit"])
def test_a_damaged_cache_is_compiled_anew(filled_cache, tmp_path, damage):
    """What a full disk or a killed copy leaves would kill the process that loads it."""
    shutil.copytree(filled_cache, tmp_path, dirs_exist_ok=True)
    whole = cache_of(tmp_path)
    assert len(whole) == 2  # the kernel, and the runtime that kernels share
    for library, data in whole.items():
        middle = len(data) // 2
        bits = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        library.write_bytes({"cut off": data[:4096], "text": b"not a library\n", "another bit": bits}[damage])
    process = python(ONE_KERNEL, XDG_CACHE_HOME=str(tmp_path))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert set(errors.splitlines()) == {f"{library} is damaged and is compiled anew" for library in whole}
    assert cache_of(tmp_path) == whole


@pytest.mark.parametrize("change", ["\r\n", "\ufeff"], ids=["CR LF", "BOM"])
def test_a_source_from_windows(change):
    code = '#include "common.cuh"\n__global__ void k(int* x) {\n    x[threadIdx.x] += sizeof(scalar_t);\n}\n'
    code = code.replace("\n", change) if change == "\r\n" else change + code
    assert run(code, (1,), (4,), np.zeros(4, np.int32)).tolist() == [4] * 4


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PATH": ""}, "no C++ compiler was found"),
        ({"CXX": "no-such-compiler -O2"}, "compiler 'no-such-compiler' that CXX names was not found"),
        ({"MINIRES_DEVICE": "tpu"}, "unknown device 'tpu'"),
        ({"MINIRES_NUM_THREADS": "many"}, "MINIRES_NUM_THREADS is 'many'"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "cannot create /dev/null/minires"),
    ],
    ids=str,
)
def test_an_unusable_environment_is_one_sentence(environment, words):
    process = python(ONE_KERNEL, **environment)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert words in errors.splitlines()[-1]


def test_no_gpu_is_one_sentence():
    if "cuda" in sys.modules["conftest"].DEVICES:
        pytest.skip("there is a GPU")
    plain = {"PYTHONPATH": str(Path(__file__).parent.parent), "LD_LIBRARY_PATH": ""}
    process = python("import minires as mr; mr.set_device('cuda')", **plain)
    _, errors = process.communicate()
    assert "DeviceError: the cuda device cannot be used: no NVIDIA driver (libcuda) was found; use the cpu" in errors


def test_an_old_cupy_is_one_sentence(tmp_path):
    """Before 14 CuPy does not find the NVRTC that pip installs."""
    if "late" not in sys.modules["conftest"].DEVICES:
        pytest.skip("this pretends that there is a driver")
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text('__version__ = "13.6.0"\n')
    late = sys.modules["conftest"].late_gpu_environment(0)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    process = python("import minires as mr; mr.set_device('cuda')", **late | {"PYTHONPATH": path})
    _, errors = process.communicate()
    assert errors.splitlines()[-1].endswith("CuPy 13.6.0 is too old, minires needs 14 or newer; pip install -U cupy-cuda12x")


BARRIER = """
import numpy as np
import minires as mr
code = "__global__ void k(int* x) { __shared__ int s; if (!threadIdx.x) s = 7; __syncthreads(); x[threadIdx.x] = s; }"
kernel, x = mr.RawKernel(code, "k"), mr.device.current().to_device(np.zeros(1024, np.int32))
def launch(threads=1024):
    kernel((1,), (threads,), (x,))
    assert (x[:threads] == 7).all()
"""


@pytest.mark.no_late
def test_stacks_go_back_when_a_thread_ends():
    """Each of a block's threads has one, and a process can have some 30,000."""
    loop = "for _ in range(60):\n    t = threading.Thread(target=launch)\n    t.start()\n    t.join()"
    process = python(f"import threading\n{BARRIER}\n{loop}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and not errors, errors


@pytest.mark.no_late
@pytest.mark.parametrize("sanitize", ["0", "all"])
def test_no_memory_for_stacks_is_one_sentence(sanitize):
    limit = "import resource\nused = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"
    limit += "\nresource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))"
    caught = "try:\n    launch()\nexcept mr.DeviceError as error:\n    print(error)\nlaunch(32)"
    process = python(f"{BARRIER}\nlaunch(32)\n{limit}\n{caught}", MINIRES_SANITIZE=sanitize, MINIRES_NUM_THREADS="1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "kernel k, " in output and "no more stacks for threads: set MINIRES_NUM_THREADS lower" in output


def test_a_forked_process_can_launch():
    child = f"if os.fork() == 0:\n    exec('''{ONE_KERNEL}''')\n    os._exit(0)\nassert os.wait()[1] == 0"
    process = python(f"import os\n{ONE_KERNEL}\n{child}", MINIRES_NUM_THREADS="2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors

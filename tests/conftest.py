"""Every test runs on each device that is usable here, with fresh device memory full of NaN.

The tests of a kernel, those in test_<file of kernels/>.py, run under the sanitizer of the CPU device as well. Where there
is no GPU, the late GPU (late_gpu/) takes its place: the cuda device over a CuPy that puts everything off.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minires as mr
from minires import device

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))
# Workers share the cores: more threads would only wait for one another.
if _workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    for _variable in ("MINIRES_NUM_THREADS", "OMP_NUM_THREADS"):  # ours, PyTorch's
        os.environ.setdefault(_variable, str(max((os.cpu_count() or 1) // int(_workers), 1)))

for _profile, _examples in (("quick", 25), ("long", 250), ("late", 5)):
    settings.register_profile(
        _profile,
        max_examples=_examples,
        deadline=None,  # the first example may compile the kernels
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("quick")  # --hypothesis-profile=long takes another


# Of which the late GPU would show nothing that other tests do not.
SAME_ON_ANY_DEVICE = {
    f"test_{name}"
    for name in (
        "cifar",
        "checkpoint",
        "cuda",
        "debugging",
        "documents",
        "download",
        "exercises",
        "gradcheck",
        "layers",
        "notebook",
    )
} | {"test_counters", "test_inspect_kernel", "test_sanitizer", "test_gemm_ladder", "test_conv_ladder"}
LATE_GPU_PATH = ROOT / "tests" / "late_gpu", ROOT, ROOT / "examples"


def _usable(name: str) -> bool:
    try:
        mr.set_device(name)
    except mr.DeviceError:
        return False
    return True


@functools.cache
def late_gpu_libraries() -> str:
    """A folder with an empty libcuda.so.1: its presence is how minires knows of a driver."""
    folder = tempfile.mkdtemp(prefix="late-gpu-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c++", "/dev/null", "-o", f"{folder}/libcuda.so.1"
    subprocess.run([*shlex.split(os.environ.get("CXX", "g++")), *options], check=True)
    return folder


def late_gpu_environment(seed: int) -> dict[str, str]:
    """What a process needs to find the late GPU."""
    path = os.pathsep.join(filter(None, [*map(str, LATE_GPU_PATH), os.environ.get("PYTHONPATH")]))
    libraries = os.pathsep.join(filter(None, [late_gpu_libraries(), os.environ.get("LD_LIBRARY_PATH")]))
    return {"PYTHONPATH": path, "LD_LIBRARY_PATH": libraries, "LATE_GPU_SEED": str(seed), "MINIRES_DEVICE": "cuda"}


def _install_late_gpu() -> bool:
    """In this process. A library that is loaded is found again by its name."""
    if sys.platform != "linux":
        return False
    sys.path[:0] = map(str, LATE_GPU_PATH)
    ctypes.CDLL(f"{late_gpu_libraries()}/libcuda.so.1")
    return _usable("cuda")


_WANTED = [os.environ["MINIRES_DEVICE"]] if os.environ.get("MINIRES_DEVICE") else ["cpu", "cuda"]
DEVICES = [name for name in _WANTED if _usable(name)]
if DEVICES == ["cpu"] and "cuda" in _WANTED and _install_late_gpu():
    DEVICES.append("late")


def pytest_addoption(parser):
    parser.addoption("--no-sanitize", action="store_true", help="do not run the kernels' tests under the sanitizer too")
    parser.addoption("--sanitize-seed", type=int, default=0, help="decides the random order of the threads")
    parser.addoption("--late-seed", type=int, default=0, help="decides when the late GPU does what")
    parser.addoption("--no-pool", action="store_true", help="on a GPU: memory of its own for each array, as memcheck needs")


def pytest_configure(config):
    config.addinivalue_line("markers", "no_late: not on the late GPU, of which it would show nothing new, slowly")
    if config.getoption("no_pool") and "cuda" in DEVICES:
        import cupy

        cupy.cuda.set_allocator(None)


def pytest_report_header(config):
    if "late" in DEVICES:
        from cupy._kernels import description

        return f"the late GPU: {description()}"
    return None


def pytest_generate_tests(metafunc):
    tests_a_kernel = (device.KERNELS_DIR / f"{metafunc.module.__name__.removeprefix('test_')}.cu").exists()
    sanitize = tests_a_kernel and "cpu" in DEVICES and not metafunc.config.getoption("no_sanitize")
    late = metafunc.module.__name__ not in SAME_ON_ANY_DEVICE
    late = late and not any(mark.name == "no_late" for mark in metafunc.definition.iter_markers())
    devices = [name for name in DEVICES if late or name != "late"]
    metafunc.parametrize("current_device", devices + ["sanitizer"] * sanitize, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Leave out what is done elsewhere: on a GPU the CPU's table of tiles, which none launches and NVRTC takes long to compile,
    on the CPU that of the GPU, where the late one executes it, and double under the sanitizer: PTX, executed, looks at the
    addresses of double's instances, which differ from float's in numbers alone."""

    def is_superfluous(item):
        chosen = item.callspec.params if hasattr(item, "callspec") else {}
        tables = " ".join(str(chosen.get(name)) for name in ("tiling", "sizes", "variant"))
        where, is_double = chosen.get("current_device"), chosen.get("dtype") is np.float64
        elsewhere = {"late": "cpu", "cuda": "cpu"} | ({"cpu": "cuda"} if "late" in DEVICES else {})
        return (where in elsewhere and elsewhere[where] in tables) or (is_double and where == "sanitizer")

    superfluous = {item for item in items if is_superfluous(item)}
    config.hook.pytest_deselected(items=list(superfluous))
    items[:] = [item for item in items if item not in superfluous]


@pytest.fixture(autouse=True)
def current_device(request, monkeypatch):
    """Makes the device current; what a kernel leaves unwritten is then NaN, or -1 in an array of integers."""
    name = {"sanitizer": "cpu", "late": "cuda"}.get(request.param, request.param)
    if request.param == "late":
        seed = zlib.crc32(f"{request.node.nodeid} {request.config.getoption('late_seed')}".encode())
        print(f"the late GPU's seed is {seed}")  # shown where the test fails
        for variable, value in late_gpu_environment(seed).items():
            monkeypatch.setenv(variable, value)
        import cupy

        cupy.late_seed(seed)
        chosen = settings.get_current_profile_name()
        settings.load_profile("late")  # each shape may be other instances, which NVRTC compiles
        request.addfinalizer(lambda: settings.load_profile(chosen))
    mr.set_device(name)
    now = device.current()
    with contextlib.ExitStack() as stack:
        if request.param == "sanitizer":
            stack.enter_context(mr.sanitize(seed=request.config.getoption("sanitize_seed")))
        empty = now.empty

        def poisoned(shape, dtype):
            array = empty(shape, dtype)
            array.reshape(-1).view(np.uint8)[...] = 255
            return array

        monkeypatch.setattr(now, "empty", poisoned)
        yield name
        now.synchronize()


@pytest.fixture(params=[np.float32, np.float64], ids=["float", "double"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cifar_dir() -> Path:
    """The folder that holds the real cifar-10-batches-bin/."""
    folder = os.environ.get("MINIRES_DATA")
    if not folder or not (Path(folder) / mr.cifar.FOLDER).is_dir():
        pytest.skip(f"no real data: MINIRES_DATA is {folder!r}, it must name the folder that holds {mr.cifar.FOLDER}")
    return Path(folder)

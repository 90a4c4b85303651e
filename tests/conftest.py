"""Every test runs on each device that is usable here, with fresh device memory full of NaN.

The tests of a kernel, those in test_<file of kernels/>.py, run under the sanitizer of the CPU device as well.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minires as mr
from minires import device

for _profile, _examples in (("quick", 25), ("long", 250)):
    settings.register_profile(
        _profile,
        max_examples=_examples,
        deadline=None,  # the first example may compile the kernels
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("quick")  # --hypothesis-profile=long takes another


def _usable(name: str) -> bool:
    try:
        mr.set_device(name)
    except mr.DeviceError:
        return False
    return True


_WANTED = [os.environ["MINIRES_DEVICE"]] if os.environ.get("MINIRES_DEVICE") else ["cpu", "cuda"]
DEVICES = [name for name in _WANTED if _usable(name)]


def pytest_addoption(parser):
    parser.addoption("--no-sanitize", action="store_true", help="do not run the kernels' tests under the sanitizer too")
    parser.addoption("--sanitize-seed", type=int, default=0, help="decides the random order of the threads")
    parser.addoption(
        "--no-pool", action="store_true", help="on a GPU: memory of its own for each array, as memcheck needs"
    )


def pytest_configure(config):
    if config.getoption("no_pool") and "cuda" in DEVICES:
        import cupy

        cupy.cuda.set_allocator(None)


def pytest_generate_tests(metafunc):
    tests_a_kernel = (device.KERNELS_DIR / f"{metafunc.module.__name__.removeprefix('test_')}.cu").exists()
    sanitize = tests_a_kernel and "cpu" in DEVICES and not metafunc.config.getoption("no_sanitize")
    metafunc.parametrize("current_device", DEVICES + ["sanitizer"] * sanitize, indirect=True)


@pytest.fixture(autouse=True)
def current_device(request, monkeypatch):
    """Makes the device current; what a kernel leaves unwritten is then NaN, or -1 in an array of integers."""
    name = "cpu" if request.param == "sanitizer" else request.param
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

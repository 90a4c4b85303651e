"""Every test runs on each device that is usable here, with fresh device memory full of NaN."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import device


def _usable(name: str) -> bool:
    try:
        mr.set_device(name)
    except mr.DeviceError:
        return False
    return True


DEVICES = [name for name in ("cpu", "cuda") if _usable(name)]


@pytest.fixture(autouse=True, params=DEVICES)
def current_device(request, monkeypatch):
    """Makes the device current; what a kernel leaves unwritten is then NaN, or -1 in an array of integers."""
    mr.set_device(request.param)
    now = device.current()
    empty = now.empty

    def poisoned(shape, dtype):
        array = empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 255
        return array

    monkeypatch.setattr(now, "empty", poisoned)
    return request.param


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

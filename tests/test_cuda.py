"""Every kernel compiles with NVRTC for every architecture, without spills. No GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from occupancy import SHARED_KB, Gpu, Resources, warps_by_resources

import minires as mr
from minires import device
from minires.device.source import base_name, find_kernels, library_files, read_source

ROOT = Path(__file__).parent.parent
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
COMPILE = """
import dataclasses, json, sys
import numpy as np
from minires.device import DeviceError
from occupancy import resources
sources, dtype, architectures = json.load(sys.stdin)
for code, names in sources:
    try:
        found = [resources(code, tuple(names), a, np.dtype(dtype)) for a in architectures]
    except DeviceError as error:
        sys.exit(f"{names}: {error}")
    print(json.dumps([{name: dataclasses.astuple(r) for name, r in one.items()} for one in found]))
"""


def compile_everywhere(
    sources: list[tuple[str, list[str]]], dtype: str = "float32", architectures: list[int] = ARCHITECTURES
) -> list[list[dict[str, Resources]]]:
    """What ptxas says of each source's kernels for each architecture, by the real CuPy in a process of its own."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("NVRTC comes with CuPy: pip install cupy-cuda12x")
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and "late_gpu" not in p]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT), str(ROOT / "examples")])}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps([sources, dtype, architectures]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [[{n: Resources(*r) for n, r in one.items()} for one in json.loads(line)] for line in result.stdout.splitlines()]


def instances(dtype: np.dtype, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kernels that the cuda device's table names for ResNet-20, and for layers that it does not have; none is run."""
    monkeypatch.setattr(device.current(), "tiling", "cuda")
    names: set[str] = set()
    monkeypatch.setattr(device, "_kernel", lambda now, name, *more: names.add(name) or (lambda *launch: None))
    for shortcut in "AB":
        net = mr.resnet.resnet20(shortcut=shortcut).to(dtype)
        x, labels = mr.Tensor(np.zeros((2, 32, 32, 3), dtype)), np.zeros(2, np.int32)
        mr.functional.cross_entropy(net(x), labels).backward()
        mr.optim.SGD(net.parameters(), 0.1).step()
        mr.functional.count_correct(net(x), labels)
        with mr.no_grad():
            net.eval()(x)
    x = mr.Tensor(np.zeros((2, 7, 9, 20), dtype), requires_grad=True)
    filters, norm = mr.nn.Conv2d(20, 96, 3, bias=True).to(dtype), mr.nn.BatchNorm2d(96).to(dtype)
    mr.functional.relu(norm(filters(x))).backward(np.zeros((2, 5, 7, 96), dtype))
    totals = device.current().to_device(np.zeros(2))
    device.launch("add_to_totals", (1,), (1,), x.data, labels, totals, 1)
    next(iter(mr.cifar.Loader(mr.cifar.synthetic(4, 1).train, 4, train=True, dtype=dtype)))
    return names


@pytest.mark.parametrize("stem", sorted({path.stem for path in library_files().values()}))
def test_compiles(stem, dtype, current_device, monkeypatch):
    if current_device != "cpu":
        pytest.skip("once is enough: this does not depend on the current device")
    path = next(p for p in library_files().values() if p.stem == stem)
    names = {name for name in instances(dtype, monkeypatch) if library_files()[base_name(name)].stem == stem}
    assert {base_name(name) for name in names} == find_kernels(path.read_text()).keys()
    # All instances for the oldest and the newest, and one of each kernel for those between. Double serves gradient checks:
    # it compiles, and may spill, since twice the registers are not there.
    oldest, *between, newest = ARCHITECTURES
    one_of_each = {base_name(name): name for name in sorted(names)}.values()
    asked = [([oldest, newest], names), (between, one_of_each)] if dtype == np.float32 else [([oldest], names)]
    for architectures, wanted in asked:
        (everywhere,) = compile_everywhere([(read_source(path), sorted(wanted))], dtype.name, architectures)
        for architecture, found in zip(architectures, everywhere, strict=True):
            assert found.keys() == set(wanted)
            for name, used in found.items() if dtype == np.float32 else ():
                assert used.spill_bytes == 0, f"{name} spills registers to memory on sm_{architecture}"
                assert used.registers <= (255 if base_name(name) == "gemm_blocked" else 128), f"{name} on sm_{architecture}"


def test_occupancy_by_hand():
    """CUDA's occupancy calculator for a multiprocessor of compute capability 8.0."""
    a100 = Gpu(80, 108, 64, 32, SHARED_KB[80], 1410, 1555, 19.5, "")
    for registers, shared, threads, warps in [
        (32, 0, 256, 64),
        (64, 0, 256, 32),
        (65, 0, 256, 24),  # 72 registers are given
        (255, 0, 32, 8),
        (32, 48 * 1024, 128, 12),  # 3 blocks of 49 KB
        (16, 0, 32, 32),  # no more than 32 blocks
    ]:
        assert warps_by_resources(a100, Resources(registers, 0, shared), threads) == warps

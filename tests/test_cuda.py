"""Every kernel compiles with NVRTC for every architecture, without spills. No GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minires import tiles
from minires.device.source import find_kernels, library_files, read_source
from minires.watch.occupancy import SHARED_KB, Gpu, Resources, warps_by_resources

ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]
COMPILE = """
import dataclasses, json, sys
import numpy as np
from minires.device import DeviceError
from minires.watch.occupancy import resources
sources, dtype, architectures = json.load(sys.stdin)
for code, names in sources:
    try:
        found = [resources(code, tuple(names), a, np.dtype(dtype)) for a in architectures]
    except DeviceError as error:
        sys.exit(f"{names}: {error}")
    print(json.dumps([{name: dataclasses.astuple(r) for name, r in one.items()} for one in found]))
"""


def compile_everywhere(
    sources: list[tuple[str, list[str]]], dtype: str = "float32"
) -> list[list[dict[str, Resources]]]:
    """What ptxas says of each source's kernels for each architecture, by the real CuPy in a process of its own."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("NVRTC comes with CuPy: pip install cupy-cuda12x")
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and "late_gpu" not in p]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, str(Path(__file__).parent.parent)])}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps([sources, dtype, ARCHITECTURES]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [
        [{n: Resources(*r) for n, r in one.items()} for one in json.loads(line)] for line in result.stdout.splitlines()
    ]


def instances() -> dict[str, int]:
    """The instances of templates that the cuda device's table names, and gemm_tiled's, with their threads a block."""
    t = tiles.TABLES["cuda"]
    found = {
        f"conv3x3<{tile.arguments}, {s}, {kind}>": tile.threads
        for s, row in t.conv.items()
        for tile in row
        for kind in ("false, 0", "false, 1", "false, 2", *(["true, 0"] if s == 1 else []))
    }
    for tile in t.strided_gradient:
        found[f"conv3x3_strided_gradient<{tile.arguments.partition(', ')[2]}>"] = tile.threads
    for s, row in t.weight.items():
        found |= {f"conv3x3_weight<{tile.arguments}, {s}>": tile.threads for tile in row}
    found |= {f"conv3x3_weight_sum<{t.sum_run}>": 256, f"sgd_step<{t.sgd[0]}>": t.sgd[1]}
    found |= {f"shortcut_{way}<{stride}>": 256 for way in ("forward", "backward") for stride in (1, 2)}
    found |= {f"gemm_blocked<{g.arguments}, {k}>": g.threads for g in t.gemm for k in tiles.TRANSPOSED.values()}
    found |= {f"gemm_tiled<{k}>": 256 for k in tiles.TRANSPOSED.values()}
    batchnorm = {
        "chunk_statistics": [""],
        "forward": [", false, false", ", true, false", ", true, true"],
        "chunk_sums": [", false, false", ", true, false", ", true, true"],
        "backward": [", false", ", true"],
    }
    for kernel, options in batchnorm.items():
        found |= {f"batchnorm_{kernel}<{t.run}{option}>": t.reduction_threads for option in options}
    return found


@pytest.mark.parametrize("stem", sorted({path.stem for path in library_files().values()}))
def test_compiles(stem, dtype, current_device):
    if current_device != "cpu":
        pytest.skip("once is enough: this does not depend on the current device")
    path = next(p for p in library_files().values() if p.stem == stem)
    text = path.read_text()
    own = {name: n for name, n in instances().items() if library_files()[name.split("<")[0]].stem == stem}
    threads = {k.name: 256 for k in find_kernels(text).values() if k.template is None} | own
    assert {name.split("<")[0] for name in threads} == find_kernels(text).keys()
    (everywhere,) = compile_everywhere([(read_source(path), list(threads))], dtype.name)
    for architecture, found in zip(ARCHITECTURES, everywhere, strict=True):
        assert found.keys() == threads.keys()
        for name, used in found.items():
            if "<" in name and dtype == np.float64:
                continue  # double serves gradient checks; twice the registers are not there
            assert used.spill_bytes == 0, f"{name} spills registers to memory on sm_{architecture}"
            assert used.registers <= (80 if "<" not in name else 255), f"{name} on sm_{architecture}"


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

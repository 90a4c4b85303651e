"""What owners of a GPU are asked to run, in small: nobody should find a mistake in it with a GPU's time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check import METRICS, beside

ROOT = Path(__file__).resolve().parent.parent


def test_the_counters_of_ncu_beside_ours(current_device):
    """A log as `ncu --csv --page raw` writes it: lines of its own first, then names, units and a line a launch."""
    names = ["ID", "Kernel Name", *METRICS]
    values = [["0", "void conv3x3<1, 16, 8>(const float *)", "1,000", "24", "500", "75", "15.5"]]
    values += [["1", "void conv3x3<1, 16, 8>(const float *)", "1,000", "24", "500", "96", "12"]]
    values += [["2", "relu_forward", "8", "8", "0", "16", "40"]]
    lines = [names, ["", "", "sector", "sector", "", "register/thread", "warp"], *values]
    log = "==PROF== Connected\n" + "\n".join(",".join(f'"{v}"' for v in line) for line in lines)
    gpu = {"registers": 90, "warps_at_grid": 15.0}
    launch = {"count": 2, "global": {"sectors": 1020}, "shared": {"wavefronts": 510}, "gpus": {"H100": gpu}}
    ours = {"launches": [launch | {"kernel": "conv3x3<1, 16, 8>"}, launch | {"kernel": "relu_forward", "gpus": {}}]}
    table = beside(ours, log)
    assert "| conv3x3 | 2048 | 2040 | 1000 | 1020 | 96 | 90 | 16 | 15 |" in table
    assert "| relu_forward | 16 | 2040 | 0 | 1020 | 16 | 0 | 40 | 0 |" in table


def test_every_part_that_needs_none_of_nvidias_programs(tmp_path, current_device):
    if current_device != "cuda":
        pytest.skip("this is for a GPU, or the late one")
    command = [sys.executable, str(ROOT / "tests" / "gpu_check.py"), "--rehearse", "--out", str(tmp_path)]
    environment = os.environ | {"MINIRES_DATA": ".", "TORCHDYNAMO_DISABLE": "1"}
    result = subprocess.run([*command, "--skip", "sanitizer"], capture_output=True, text=True, check=False, env=environment)
    report = json.loads((tmp_path / "report.json").read_text())
    statuses = {(part, r["command"].split()[-1]): r["status"] for part, results in report.items() for r in results}
    smi = statuses.pop(("machine", "nvidia-smi"))
    assert smi in ("0", "not started")
    assert set(statuses.values()) == {"0"}, (result.stdout, report)
    assert {"machine", "suite", "counters", "benchmark", "fast", "paper"} == report.keys()
    assert report["fast"][0]["metrics"][0]["dataset"] == "synthetic"
    assert "# minires on a GPU" in (tmp_path / "report.md").read_text()

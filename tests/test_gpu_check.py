"""What owners of a GPU are asked to run, in small: nobody should find a mistake in it with a GPU's time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_part_that_needs_none_of_nvidias_programs(tmp_path, current_device):
    if current_device != "cuda":
        pytest.skip("this is for a GPU, or the late one")
    command = [sys.executable, str(ROOT / "tests" / "gpu_check.py"), "--rehearse", "--out", str(tmp_path)]
    result = subprocess.run(
        [*command, "--skip", "sanitizer"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MINIRES_DATA": "."},
    )
    report = json.loads((tmp_path / "report.json").read_text())
    statuses = {(part, r["command"].split()[-1]): r["status"] for part, results in report.items() for r in results}
    smi = statuses.pop(("machine", "nvidia-smi"))
    assert smi in ("0", "not started")
    assert set(statuses.values()) == {"0"}, (result.stdout, report)
    assert {"machine", "suite", "benchmark", "fast", "paper"} == report.keys()
    assert report["fast"][0]["metrics"][0]["dataset"] == "synthetic"
    assert "# minires on a GPU" in (tmp_path / "report.md").read_text()

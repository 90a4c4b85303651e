import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_works_outside_the_checkout(tmp_path, current_device):
    """Unpacked instead of installed: what it depends on is there already, and no network is needed."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {f"minires/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.cu*")} < set(names)
    assert "minires/device/cuda_on_cpu.h" in names
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
import minires as mr
assert mr.__file__.startswith({str(tmp_path)!r}), mr.__file__
mr.set_device({current_device!r})
print(mr.functional.relu(mr.Tensor([-1.0, 2.0])).numpy())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "[0. 2.]\n", result.stderr

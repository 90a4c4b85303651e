"""Training that is killed, stopped or damaged, and goes on: examples/train_cifar.py as a process."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "train_cifar.py"
OPTIONS = ["--dataset", "synthetic", "--depth", "8", "--epochs", "3", "--batch-size", "4", "--checkpoint-minutes", "0"]
OPTIONS += ["--train-size", "18", "--test-size", "6"]

# Runs the script with its further arguments, and sends itself a signal in the middle of the n-th file that is made
# safe, half of which is lost then, or some milliseconds later; none where n is 0. Without pictures, which take longer to
# draw than all else here.
SIGNALLED = """
import os, runpy, signal, sys, threading
sys.modules["matplotlib"] = None
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in the background would pass on as ignored
number, n, milliseconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
fsync, calls = os.fsync, 0
def counted(descriptor):
    global calls
    calls += 1
    if calls == n and milliseconds:
        threading.Timer(milliseconds / 1e3, os.kill, (os.getpid(), number)).start()
    elif calls == n:
        if number == 9:
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), number)
    fsync(descriptor)
os.fsync = counted
sys.argv = sys.argv[4:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(*arguments, send: tuple = (0, 0, 0), **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", SIGNALLED, *send, SCRIPT, "--device", mr.get_device(), *arguments]
    environment = os.environ | environment
    return subprocess.run(list(map(str, words)), env=environment, text=True, capture_output=True, check=False)


def results(run: Path) -> tuple[dict, list[dict]]:
    """The bits of all arrays that a run leaves, and its metrics but for the time it took."""
    files = {name: mr.checkpoint.load(run / f"{name}.safetensors")[0] for name in ("best", "last", "checkpoint")}
    arrays = {(file, name): a.tobytes() for file, arrays in files.items() for name, a in arrays.items()}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[1:]]
    timings = "seconds", "images_per_second"
    return arrays, [{k: v for k, v in record.items() if k not in timings} for record in records]


@pytest.fixture(scope="module")
def kept_runs(tmp_path_factory):
    """A finished run for each device and number of epochs, made when it is first asked for."""
    runs, folder = {}, tmp_path_factory.mktemp("kept")

    def kept(epochs: int) -> Path:
        key = mr.get_device(), epochs
        if key not in runs:
            runs[key] = folder / f"{key[0]}-{epochs}"
            result = train(*OPTIONS, "--epochs", str(epochs), "--out", runs[key])
            assert result.returncode == 0, result.stderr
        return runs[key]

    return kept


@pytest.fixture
def uninterrupted(kept_runs):
    return results(kept_runs(3))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_killed_ten_times(uninterrupted, tmp_path, threads, current_device):
    if current_device == "cuda" and threads != 2:
        pytest.skip("the number of threads is for the cpu device")
    rng, run = random.Random(threads), tmp_path / "run"
    for number in range(10):
        begin = ["--resume", run] if (run / "checkpoint.safetensors").exists() else [*OPTIONS, "--out", run]
        send = (9, 1, rng.uniform(0, 100)) if number % 2 else (9, rng.randint(1, 4), 0)
        killed = train(*begin, send=send, MINIRES_NUM_THREADS=str(threads))
        assert killed.returncode == -signal.SIGKILL or "nothing is left to train" in killed.stdout, killed.stderr
        assert number >= 5 or killed.returncode  # however fast the machine is
    result = train("--resume", run, MINIRES_NUM_THREADS=str(threads))
    assert result.returncode == 0, result.stderr
    assert results(run) == uninterrupted
    assert not list(run.glob(".*"))  # what the killed writes left is gone
    again = train("--resume", run)
    assert again.returncode == 0 and "nothing is left to train" in again.stdout
    assert results(run) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(uninterrupted, tmp_path, number):
    run = tmp_path / "run"
    result = train(*OPTIONS, "--out", run, send=(int(number), 3, 0))
    assert result.returncode == 128 + number
    assert result.stdout.splitlines()[-1] == f"stopped; to go on:  python {SCRIPT} --resume {run}"
    assert "Traceback" not in result.stderr
    steps = mr.checkpoint.load(run / "checkpoint.safetensors")[1]["progress"]
    assert json.loads(steps)["step"] == 4  # the step after the third checkpoint was finished, and saved
    assert train("--resume", run).returncode == 0
    assert results(run) == uninterrupted


@pytest.fixture
def finished(kept_runs, tmp_path):
    return Path(shutil.copytree(kept_runs(1), tmp_path / "run"))


def test_options_of_a_resumed_run(finished):
    result = train("--resume", finished, "--epochs", "2", "--lr", "0.01")
    assert result.returncode == 0
    assert "changed  --epochs: 1 before, 2 from here on" in result.stdout
    assert "changed  --lr: None before, 0.01 from here on" in result.stdout
    assert [r["epoch"] for r in results(finished)[1]] == [1, 2]
    for options, words in (
        (["--batch-size", "8"], "--batch-size was 4 in this run and cannot become 8: begin a new run"),
        (["--depth", "14"], "--depth was 8 in this run and cannot become 14"),
        (["--out", "elsewhere"], "--out and --resume exclude each other"),
    ):
        refused = train("--resume", finished, *options)
        assert refused.returncode != 0 and words in refused.stderr and "Traceback" not in refused.stderr


def flip_a_bit(data: bytes) -> bytes:
    return data[:-1000] + bytes([data[-1000] ^ 4]) + data[-999:]


@pytest.mark.no_late
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "is damaged: its contents do not have the SHA-256"),
        (lambda data: data[:-1], "is not a whole safetensors file"),
        (lambda data: b"", "is not a whole safetensors file"),
        (lambda data: data.replace(b'"optimizer.velocity.3"', b'"optimizer.velocity.x"'), "is damaged"),
    ],
    ids=["bit", "cut", "empty", "name"],
)
def test_a_damaged_checkpoint_is_refused(finished, damage, words):
    path = finished / "checkpoint.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    result = train("--resume", finished)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and words in result.stderr and str(path) in result.stderr


@pytest.mark.no_late
def test_a_foreign_checkpoint_is_refused(finished, tmp_path):
    path = finished / "checkpoint.safetensors"
    path.write_bytes((finished / "best.safetensors").read_bytes())
    assert "is not a checkpoint of train_cifar.py" in train("--resume", finished).stderr
    arrays, metadata = {"model.conv1.weight": np.zeros((16, 3, 3, 3), np.float32)}, {"progress": '{"mean": {}}'}
    mr.checkpoint.save(path, arrays, metadata | {"options": '{"depth": 8, "dataset": "synthetic"}'})
    assert "does not fit its own options: " in train("--resume", finished).stderr
    result = train("--resume", tmp_path / "nowhere")
    assert result.returncode == 1 and "error: cannot read" in result.stderr


def test_divergence_names_the_last_good_checkpoint(tmp_path):
    result = train(*OPTIONS[:-6], "--train-size", "18", "--test-size", "6", "--lr", "1e9", "--out", tmp_path / "run")
    assert result.returncode == 1
    assert "error: the training has diverged, " in result.stderr
    for words in ("epoch 1, step ", "learning rate ", "there is no checkpoint yet", "try a lower --lr"):
        assert words in result.stderr
    result = train(*OPTIONS, "--lr", "1e4", "--out", tmp_path / "other")
    assert re.search(rf"the last good checkpoint, of epoch 1 after \d steps, is {tmp_path}/other", result.stderr)
    arrays, _ = mr.checkpoint.load(tmp_path / "other" / "checkpoint.safetensors")
    assert all(np.isfinite(a).all() for a in arrays.values())

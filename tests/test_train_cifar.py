"""examples/train_cifar.py, run as a user runs it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minires as mr

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "train_cifar.py"
NO_SERVER = "http://127.0.0.1:9/"
WITHOUT_WAITING = """
import os, runpy, sys
from minires import download
download.BACKOFF = 0.01
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(folder, *options, **environment):
    """The script's run, by default with an address of the data that is refused at once: a server is waited for."""
    variables = {k: v for k, v in os.environ.items() if k != "MINIRES_DATA"}
    variables |= {"MINIRES_CIFAR10_URL": "nowhere://"} | environment
    command = [sys.executable, "-c", WITHOUT_WAITING, str(SCRIPT), "--depth", "8", "--device", mr.get_device(), *options]
    return subprocess.run(command, cwd=folder, env=variables, text=True, capture_output=True, check=False)


def test_auto_falls_back_loudly_and_writes_everything(tmp_path):
    sizes = ["--train-size", "18", "--test-size", "8", "--epochs", "2", "--batch-size", "3"]
    result = train(tmp_path, *sizes, "--profile")
    assert result.returncode == 0, result.stderr
    launches = re.findall(r"^ +(\d+) .* batchnorm_forward<run=\d+, relu=true, add=false>$", result.stdout, re.MULTILINE)
    assert sum(map(int, launches)) == 12  # 4 of them in 3 batches
    assert "CIFAR-10 IS NOT THERE: cannot fetch" in result.stdout
    assert "75,290 parameters" in result.stdout
    out = tmp_path / "runs" / "synthetic-resnet8A-fast-seed0"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()[1:]]
    assert [r["epoch"] for r in records] == [1, 2]
    keys = ["lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second"]
    for record in records:
        assert all(isinstance(record[key], float) for key in keys)
        assert 0 <= record["test_accuracy"] <= 1
        assert record["dataset"] == "synthetic"
    for picture in ("curves", "predictions", "filters"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")

    state, metadata = mr.checkpoint.load(out / "last.safetensors")
    assert metadata == {"depth": "8", "shortcut": "A", "dataset": "synthetic", "epoch": "2"}
    net = mr.resnet.resnet(8)
    net.load_state_dict(state)
    test = mr.cifar.Loader(mr.cifar.synthetic(18, 8).test, 8, train=False)
    with mr.no_grad():
        correct = sum(int(mr.functional.count_correct(net.eval()(x), labels)) for x, labels in test)
    assert correct / 8 == records[-1]["test_accuracy"]

    again = train(tmp_path, *sizes, "--dataset", "synthetic", "--recipe", "paper", "--out", str(out))
    assert again.returncode == 1 and "holds a run already" in again.stderr


@pytest.mark.no_late
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "cifar10"], f"cannot fetch {NO_SERVER}: no connection, 4 times in a row; give the folder"),
        (["--dataset", "synthetic", "--depth", "9"], "depth must be 6 n + 2"),
        (["--dataset", "synthetic", "--lr", "nan"], "lr must be finite and at least 0, got nan"),
        (["--dataset", "synthetic", "--lr", "1e30", "--train-size", "300"], "the loss is "),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--recipe", "slow"], "invalid choice: 'slow'"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_sentence(tmp_path, options, words):
    result = train(tmp_path, *options, MINIRES_CIFAR10_URL=NO_SERVER)
    assert result.returncode != 0
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.no_late
def test_a_folder_that_was_named_must_hold_the_data(tmp_path):
    """Synthetic images are for those who named nothing and have no network."""
    folder = tmp_path / "mine" / mr.cifar.FOLDER
    folder.mkdir(parents=True)
    for name in mr.cifar.TRAIN_FILES:
        (folder / name).write_bytes(b"too short")
    partly = train(tmp_path, "--data-dir", "mine", "--epochs", "1")
    assert partly.returncode == 1 and f"error: {folder} lacks test_batch.bin: add" in partly.stderr
    (folder / mr.cifar.TEST_FILES[0]).write_bytes(b"too short")
    for named in ({"MINIRES_DATA": "mine"}, {}):
        options = [] if named else ["--data-dir", "mine"]
        damaged = train(tmp_path, *options, "--epochs", "1", **named)
        assert damaged.returncode == 1 and "data_batch_1.bin has 9 bytes instead of 30730000" in damaged.stderr
        assert "SYNTHETIC" not in damaged.stdout and "Traceback" not in damaged.stderr
    nothing = train(tmp_path, "--data-dir", "elsewhere", "--epochs", "1")
    assert nothing.returncode == 1 and "cannot fetch" in nothing.stderr


def test_a_log_file_gets_lines_and_no_bar(tmp_path):
    result = train(tmp_path, "--dataset", "synthetic", "--train-size", "10", "--test-size", "4", "--epochs", "2")
    assert result.returncode == 0
    assert "\r" not in result.stderr and "step/s" not in result.stderr, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("epoch")] == ["1/2", "2/2"]


@pytest.mark.no_late
def test_two_runs_into_one_folder(tmp_path):
    """The second ends at once; what a killed one leaves is in nobody's way."""
    options = ["--dataset", "synthetic", "--train-size", "500", "--test-size", "20", "--epochs", "99", "--out", "run"]
    variables = os.environ | {"MINIRES_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--depth", "8", "--device", mr.get_device(), "--checkpoint-minutes", "0"]
    first = subprocess.Popen([*command, *options], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "run" / "checkpoint.safetensors").exists():
            assert first.poll() is None
            time.sleep(0.05)
        (tmp_path / "run" / "checkpoint.safetensors").rename(tmp_path / "kept")  # as before the first checkpoint
        second = train(tmp_path, *options)
        assert second.returncode == 1
        assert "another run is writing to run" in second.stderr or "holds a run already" in second.stderr
        while not (tmp_path / "run" / "checkpoint.safetensors").exists():
            time.sleep(0.05)
        resumed = train(tmp_path, "--resume", "run")
        assert resumed.returncode == 1 and "another run is writing to run: wait for its end" in resumed.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    after = train(tmp_path, "--resume", "run", "--epochs", "1")
    assert after.returncode == 0, after.stderr


@pytest.mark.no_late
def test_real_data(cifar_dir, tmp_path):
    sizes = ["--train-size", "1000", "--test-size", "400", "--epochs", "3", "--batch-size", "25"]
    result = train(tmp_path, "--data-dir", str(cifar_dir.resolve()), *sizes, "--out", "run")
    assert result.returncode == 0, result.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dataset"] == "cifar10"
    assert last["test_accuracy"] > 0.25  # chance is 0.1

"""examples/evaluate.py, classify.py, pictures.py: networks and pictures of all kinds, and what is wrong with some."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
import evaluate  # noqa: E402
import pictures  # noqa: E402
from classify import read_picture, softmax  # noqa: E402

RED = np.zeros((40, 60, 3), np.uint8) + np.array([200, 30, 10], np.uint8)


def run(script: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    variables = os.environ | {"MINIRES_CIFAR10_URL": "http://127.0.0.1:9/", "MINIRES_DATA": "no-data"} | environment
    command = [sys.executable, str(EXAMPLES / script), "--device", mr.get_device(), *arguments]
    return subprocess.run(command, cwd=folder, env=variables, text=True, capture_output=True, check=False)


@pytest.fixture
def weights(tmp_path):
    """Of a small network that was not trained."""
    mr.manual_seed(0)
    path = tmp_path / "net.safetensors"
    mr.checkpoint.save(path, mr.resnet.resnet(8, shortcut="B").state_dict(), {"dataset": "synthetic"})
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures in


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
def test_every_kind_of_picture_is_read(mode, kind, tmp_path):
    path = tmp_path / f"picture.{kind}"
    try:
        Image.fromarray(RED).convert(mode).save(path)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow does not write {mode} as {kind}")
    pixels = read_picture(str(path))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    if mode == "RGB" and kind != "gif":
        assert abs(pixels.astype(int).mean((0, 1)) - RED[0, 0]).max() < 3


def of(array: np.ndarray, tmp_path: Path, name: str = "p.png", **options) -> np.ndarray:
    """What classify.py sees of a picture with these values."""
    Image.fromarray(array).save(tmp_path / name, **options)
    return read_picture(str(tmp_path / name))


GREY = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)


def test_more_than_8_bits_are_scaled(tmp_path):
    expected = of(GREY, tmp_path)
    np.testing.assert_array_equal(of(GREY.astype(np.uint16) * 257, tmp_path), expected)
    np.testing.assert_array_equal(of(GREY.astype(np.int32) * 257, tmp_path, "p.tiff"), expected)
    np.testing.assert_array_equal(of((GREY / 255).astype(np.float32), tmp_path, "p.tiff"), expected)
    np.testing.assert_array_equal(of(GREY.astype(np.float32), tmp_path, "p.tiff"), expected)
    for bad in (np.float32(-1), np.float32(300), np.float32(np.nan), np.int32(70000), np.int32(-5)):
        with pytest.raises(ValueError, match=r"p.tiff: its values, .* do not lie in 0 .. (255|65535)"):
            of(np.full((32, 32), bad), tmp_path, "p.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_behind_what_is_transparent_stands_white(mode, tmp_path):
    if mode in ("P", "L", "RGB"):  # one colour is transparent
        Image.fromarray(np.zeros((32, 32), np.uint8)).convert(mode).save(
            tmp_path / "p.png", transparency=(0, 0, 0) if mode == "RGB" else 0
        )
        assert (read_picture(str(tmp_path / "p.png")) == 255).all()
        return
    half = Image.fromarray(np.zeros((32, 32, 4), np.uint8))
    half.paste((0, 0, 0, 255), (0, 0, 16, 32))
    kind = "tiff" if mode == "PA" else "png"
    try:
        half.convert(mode).save(tmp_path / f"p.{kind}")
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow does not write {mode}")
    seen = read_picture(str(tmp_path / f"p.{kind}"))
    assert (seen[:, 1:15] == 0).all() and (seen[:, 17:] == 255).all()


def test_the_middle_square_is_taken_upright(tmp_path):
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255  # the middle square is white
    wide[:32, 64:128, 1:] = 0  # and its upper half red
    image = Image.fromarray(wide)
    image.save(tmp_path / "wide.png")
    pixels = read_picture(str(tmp_path / "wide.png"))
    red, white = pixels[:14, 4:-4].astype(int), pixels[18:, 4:-4].astype(int)  # edges overshoot a little
    assert abs(red - [255, 0, 0]).max() < 10 and (white > 245).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned by 180 degrees
    image.rotate(180).save(tmp_path / "turned.png", exif=exif)
    assert (read_picture(str(tmp_path / "turned.png")) == pixels).all()


@pytest.mark.no_late
def test_broken_pictures_end_in_one_sentence(tmp_path, weights, monkeypatch):
    Image.fromarray(RED).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png", "missing.png", "."):
        result = run("classify.py", "--weights", weights, "whole.png", name, folder=tmp_path)
        assert result.returncode == 1 and result.stdout == ""
        assert result.stderr.startswith(f"error: cannot read the picture {name}: ") and result.stderr.count("\n") == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot read the picture .*whole.png: Image size \(2400 pixels\) exceeds"):
        read_picture(str(tmp_path / "whole.png"))


def test_three_classes_each(tmp_path, weights):
    for i in range(3):
        Image.fromarray(RED // (i + 1)).save(tmp_path / f"{i}.png")
    result = run("classify.py", "--weights", weights, "0.png", "1.png", "2.png", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.png", "1.png", "2.png"]
    for line in lines:
        shares = [float(share) for share in re.findall(r"([\d.]+)%", line)]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) < 100.2
        assert all(name in mr.cifar.SYNTHETIC_CLASSES for name in re.findall(r"(\w+) [\d.]+%", line))


def test_softmax():
    logits = np.array([[1000.0, 1001.0, 999.0], [0.0, 0.0, 0.0]])
    assert np.allclose(softmax(logits), [[0.244728, 0.665241, 0.090031], [1 / 3] * 3], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@pytest.mark.no_late
def test_evaluation_counts_what_it_says(tmp_path, weights):
    result = run("evaluate.py", weights, "--picture", "matrix.png", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    test = mr.cifar.synthetic().test
    predicted = evaluate.logits_of(mr.resnet.from_state_dict(mr.checkpoint.load(weights)[0]), test).argmax(1)
    assert f"accuracy {(predicted == test.labels).mean():.2%}\n" in result.stdout
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    rows = re.findall(r"^(\w+) +100 +([\d.]+)% +([\d.]+)% ", result.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == list(mr.cifar.SYNTHETIC_CLASSES)
    for label, (_, recall, precision) in enumerate(rows):
        right = ((predicted == label) & (test.labels == label)).sum()
        assert abs(float(recall) - 100 * right / 100) < 0.06
        assert abs(float(precision) - 100 * right / max((predicted == label).sum(), 1)) < 0.06


def test_the_table():
    matrix = evaluate.confusion_matrix(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1, 1]), 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 2, 0], [0, 1, 0]]
    lines = evaluate.table(matrix, ("a", "b", "c")).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["a", "3", "33.3%", "100.0%", "b", "(2)"],
        ["b", "2", "100.0%", "40.0%", "nothing", "else"],
        ["c", "1", "0.0%", "0.0%", "b", "(1)"],
    ]


@pytest.mark.no_late
def test_mistakes_end_in_one_sentence(tmp_path, weights):
    other = str(tmp_path / "other.safetensors")
    mr.checkpoint.save(other, {"x": np.zeros(3, np.float32)})
    of_cifar10 = str(tmp_path / "cifar.safetensors")
    mr.checkpoint.save(of_cifar10, mr.resnet.resnet(8).state_dict())
    for name in mr.cifar.TRAIN_FILES + mr.cifar.TEST_FILES:
        (tmp_path / mr.cifar.FOLDER).mkdir(exist_ok=True)
        (tmp_path / mr.cifar.FOLDER / name).write_bytes(b"cut")
    for arguments, words in (
        ([other], "these are not the weights of a ResNet of BasicBlocks"),
        (["missing.safetensors"], "cannot read missing.safetensors"),
        ([of_cifar10, "--data-dir", "."], "data_batch_1.bin has 3 bytes instead of 30730000"),
        ([weights, "--picture", "no/such/folder.png"], "No such file or directory"),
    ):
        result = run("evaluate.py", *arguments, folder=tmp_path)
        assert result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr, result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Pictures out


@pytest.mark.parametrize(("right", "wrong"), [(40, 10), (3, 20), (0, 5), (5, 0)])
def test_the_grid_shows_right_and_wrong(right, wrong, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    split = mr.cifar.synthetic(right + wrong, 1).train
    predicted = np.where(np.arange(right + wrong) < right, split.labels, (split.labels + 1) % 10)
    pictures.predictions(split.images, split.labels, predicted, mr.cifar.SYNTHETIC_CLASSES, Path("grid.png"))
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_images()]
    assert sum("not" in title for title in titles) == min(wrong, 16)
    assert sum("not" not in title for title in titles) == min(right, 16)
    assert drawn[0].get_suptitle() == f"{right} of {right + wrong} test images are classified right"


# ---------------------------------------------------------------------------------------------------------------------
# The network that comes with minires


def test_the_shipped_network_is_what_its_metrics_say():
    state, metadata = mr.checkpoint.load(evaluate.WEIGHTS)
    assert metadata["dataset"] == "cifar10" and int(metadata["epoch"]) >= 16
    net = mr.resnet.from_state_dict(state)
    assert sum(p.data.size for p in net.parameters()) == 269_722
    assert evaluate.WEIGHTS.stat().st_size < 1.2e6


@pytest.mark.no_late
def test_the_shipped_network_on_real_images(cifar_dir, tmp_path, monkeypatch, capsys):
    """The command without a name, on a tenth of the images."""
    load = mr.cifar.load
    monkeypatch.setattr(mr.cifar, "load", lambda folder: load(folder, download=False).first(None, 1000))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--data-dir", str(cifar_dir), "--picture", str(tmp_path / "p.png")])
    evaluate.main()
    found = re.search(r"the 1,000 test images of cifar10\naccuracy ([\d.]+)%", capsys.readouterr().out)
    assert abs(float(found[1]) - 92.4) < 2


def test_the_shipped_network_knows_the_cat(tmp_path):
    result = run("classify.py", str(EXAMPLES / "results" / "cat.jpg"), folder=tmp_path)
    assert re.search(r"cat.jpg:  cat [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%$", result.stdout), result.stdout + result.stderr

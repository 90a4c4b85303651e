"""CIFAR-10: download, verify, load; a built-in data set in the same format; batches made on the device."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from . import device
from .download import DownloadError, download
from .tensor import Tensor

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_BYTES = 170_052_171
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
FILE_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
PYTHON_FOLDER = "cifar-10-batches-py"
PYTHON_MD5 = {  # published with the Python version
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SYNTHETIC_CLASSES = ("rows", "columns", "checks", "disc", "ring", "square", "frame", "plus", "cross", "triangle")
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images' channels, in 0 .. 1
STD = (0.2470, 0.2435, 0.2616)
RECORD_BYTES = 1 + 3 * 32 * 32
FILE_RECORDS = 10_000


class DataError(RuntimeError):
    """A data set is not there, could not be fetched, or is damaged."""


class DamagedError(DataError):
    """Files of a data set are there, but damaged, or not all of them."""


@dataclass(frozen=True)
class Split:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int32, on the host."""

    images: np.ndarray
    labels: np.ndarray

    def first(self, n: int | None) -> Split:
        """The first n examples; all where n is None. Raises ValueError where there are fewer, or n is below 1."""
        if n is not None and not 1 <= n <= len(self.labels):
            raise ValueError(f"asked for {n} examples of {len(self.labels)}")
        return self if n is None else Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class Dataset:
    """Images to train on and to test with, and the names of their classes; `name` is "cifar10" or "synthetic"."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    def first(self, train_size: int | None, test_size: int | None) -> Dataset:
        """The first examples of each split; all of them where a size is None. Raises ValueError as Split.first."""
        return replace(self, train=self.train.first(train_size), test=self.test.first(test_size))


# Loading


def load(data_dir: str | Path, download: bool = True, verify: bool = False) -> Dataset:
    """CIFAR-10 from what of it lies in `data_dir`, fetched first where nothing does.

    That is `cifar-10-batches-bin/`, or else `cifar-10-batches-py/`, or one of the archives `cifar-10-binary.tar.gz` and
    `cifar-10-python.tar.gz`. Sizes and labels are checked always, the SHA-256 of the binary files with `verify`, the
    published MD5 of the Python version's files always, before they are opened. Raises DamagedError where a file is
    unreadable, truncated, missing among others, or another than the official one; DataError where none is there and
    none can be fetched.
    """
    root, folder = Path(data_dir), Path(data_dir) / FOLDER
    if missing := _missing(folder):
        if len(missing) < len(FILE_SHA256):
            words = "add what is missing, or delete the rest to fetch it again"
            raise DamagedError(f"{folder} lacks {', '.join(missing)}: {words}")
        if python := _python_version(root):
            return _load_python(python)
        if (archive := root / "cifar-10-binary.tar.gz").exists():
            _unpack(archive, root)
        elif not download:
            raise DataError(f"CIFAR-10 is not in {folder}")
        else:
            fetch(root)
    train, test = (_read_split([folder / name for name in names], verify) for names in (TRAIN_FILES, TEST_FILES))
    return Dataset("cifar10", train, test, CLASSES)


def _missing(folder: Path, names: Iterable[str] = FILE_SHA256) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def _unpack(archive: Path, root: Path) -> None:
    """The user's own archive, checked and left as it is."""
    if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        raise DamagedError(f"{archive} has the SHA-256 {digest} instead of {SHA256}: it is not the official one")
    with FileLock(root / ".cifar-10.lock"):
        if _missing(root / FOLDER):
            _put_in_place(archive, root)


# The Python version: the same images in pickles, which can run any code, and are opened only when they are the published ones


def _python_version(root: Path) -> dict[str, bytes] | None:
    """The files of the Python version, from their folder or archive; None where neither is there."""
    folder, archive = root / PYTHON_FOLDER, root / "cifar-10-python.tar.gz"
    if folder.is_dir():
        if missing := _missing(folder, PYTHON_MD5):
            raise DamagedError(f"{folder} lacks {', '.join(missing)}: add what is missing, or delete the rest")
        return {str(folder / name): (folder / name).read_bytes() for name in PYTHON_MD5}
    if not archive.exists():
        return None
    try:
        with tarfile.open(archive, "r:gz") as tar:
            return {f"{archive}: {name}": _open(tar, f"{PYTHON_FOLDER}/{name}").read() for name in PYTHON_MD5}
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, KeyError) as error:
        raise DamagedError(f"{archive} is not the official archive of CIFAR-10: {error}") from None


def _load_python(files: dict[str, bytes]) -> Dataset:
    splits = []
    for (path, data), (name, expected) in zip(files.items(), PYTHON_MD5.items(), strict=True):
        if (digest := hashlib.md5(data, usedforsecurity=False).hexdigest()) != expected:
            raise DamagedError(f"{path} has the MD5 {digest} instead of {expected}: {name} is not the official one")
        content = pickle.loads(data, encoding="bytes")
        records = np.column_stack([np.array(content[b"labels"], np.uint8), content[b"data"]])
        splits.append(parse(records.tobytes(), path))
    train = Split(*(np.concatenate([getattr(s, part) for s in splits[:-1]]) for part in ("images", "labels")))
    return Dataset("cifar10", train, splits[-1], CLASSES)


def _read_split(paths: list[Path], verify: bool) -> Split:
    n = len(paths) * FILE_RECORDS
    whole = Split(np.empty((n, 32, 32, 3), np.uint8), np.empty(n, np.int32))
    for path, begin in zip(paths, range(0, n, FILE_RECORDS), strict=True):  # one file after another: the data are there once
        part = parse(_read_file(path, verify), str(path))
        whole.images[begin : begin + FILE_RECORDS], whole.labels[begin : begin + FILE_RECORDS] = part.images, part.labels
    return whole


def _read_file(path: Path, verify: bool) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror}") from None
    if len(data) != FILE_RECORDS * RECORD_BYTES:
        raise DamagedError(
            f"{path} has {len(data)} bytes instead of {FILE_RECORDS * RECORD_BYTES}: delete it to fetch it again"
        )
    if verify and (digest := hashlib.sha256(data).hexdigest()) != FILE_SHA256[path.name]:
        raise DamagedError(f"{path} has the SHA-256 {digest} instead of {FILE_SHA256[path.name]}: delete it to fetch it again")
    return data


def parse(data: bytes, source: str = "data") -> Split:
    """The examples in records of the binary version: 1 label byte and 3,072 pixel bytes, red, green, blue.

    Raises DataError for a length that is no multiple of a record, or a label over 9.
    """
    if len(data) == 0 or len(data) % RECORD_BYTES:
        raise DamagedError(f"{source} has {len(data)} bytes, not a positive multiple of {RECORD_BYTES}: it is truncated")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        index = int(np.argmax(labels > 9))
        raise DamagedError(f"{source} has the label {labels[index]} in record {index}, but labels are 0 .. 9: it is damaged")
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return Split(np.stack([planes[:, c] for c in range(3)], axis=3), labels)  # three times as fast as to transpose


# Fetching


def fetch(data_dir: Path) -> None:
    """Download the archive, check its size and SHA-256, and put the files into `<data_dir>/cifar-10-batches-bin/`.

    The address is MINIRES_CIFAR10_URL, or the data set's home. A download that was interrupted goes on; of two
    processes one waits for the other. Each file is put in place whole. Raises DataError, naming the reason.
    """
    url = os.environ.get("MINIRES_CIFAR10_URL") or URL
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        archive = data_dir / ".cifar-10-binary.tar.gz.part"
        with FileLock(data_dir / ".cifar-10.lock"):
            if not _missing(data_dir / FOLDER):
                return
            download(url, archive, ARCHIVE_BYTES, SHA256)
            _put_in_place(archive, data_dir)
            archive.unlink()
    except DownloadError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"cannot store CIFAR-10 in {data_dir}: {error}") from None


def _put_in_place(archive: Path, data_dir: Path) -> None:
    """The files that are looked for, each whole, out of an archive whose SHA-256 is right."""
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".extract-") as temporary, tarfile.open(archive, "r:gz") as tar:
        for name in TRAIN_FILES + TEST_FILES:
            (Path(temporary) / name).write_bytes(_open(tar, f"{FOLDER}/{name}").read())
        (data_dir / FOLDER).mkdir(exist_ok=True)
        for name in TRAIN_FILES + TEST_FILES:
            os.replace(Path(temporary) / name, data_dir / FOLDER / name)


def _open(tar: tarfile.TarFile, member: str) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise KeyError(f"{member} is not a file")
    return file


# The built-in data set


def synthetic(train_size: int = 5000, test_size: int = 1000, seed: int = 0) -> Dataset:
    """Ten classes of drawn shapes in random places, sizes and colours, under noise; the same for the same seed.

    The classes look the same when an image is flipped from left to right.
    """
    records = synthetic_records(train_size + test_size, seed)
    whole = parse(records)
    test = Split(whole.images[train_size:], whole.labels[train_size:])
    return Dataset("synthetic", whole.first(train_size), test, SYNTHETIC_CLASSES)


def synthetic_records(n: int, seed: int = 0) -> bytes:
    """n examples of the built-in set as records of the CIFAR-10 binary version, the classes in turn."""
    rng = np.random.default_rng(seed)
    return b"".join(bytes([i % 10]) + _draw(i % 10, rng).tobytes() for i in range(n))


def _draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """An image (3, 32, 32) of uint8."""
    y, x = np.mgrid[:32, :32] - rng.uniform(12, 19, (2, 1, 1))
    size, period, phase = rng.uniform(6, 11), rng.uniform(5, 9), rng.uniform(0, 9, 2)
    square, radius = np.maximum(abs(x), abs(y)), np.hypot(x, y)
    rows, columns = (y + phase[0]) % period < period / 2, (x + phase[1]) % period < period / 2
    width = size / 3
    shape = (
        rows,
        columns,
        rows ^ columns,
        radius < size,
        abs(radius - size) < width / 1.5,
        square < size * 0.9,
        abs(square - size * 0.9) < width / 1.5,
        (np.minimum(abs(x), abs(y)) < width / 1.5) & (square < size),
        (abs(abs(x) - abs(y)) < width) & (square < size),
        (abs(x) < (y + size) / 2) & (y < size),
    )[label]
    colours = rng.uniform(0, 255, (2, 3, 1, 1))
    while abs(colours[0] - colours[1]).max() < 90:
        colours = rng.uniform(0, 255, (2, 3, 1, 1))
    image = np.where(shape, colours[0], colours[1]) + rng.normal(0, 20, (3, 32, 32))
    return np.clip(image, 0, 255).astype(np.uint8)


# Batches


class Loader:
    """Batches of a split, made on the device by the kernel `augment`: its images stay there as uint8.

    Iterating gives (x, labels): a Tensor (batch, 32, 32, 3) and an int32 device array (batch,), the last batch
    smaller. With `train`, epoch `epoch` shuffles, pads by 4, crops and flips, all decided by (seed, epoch) alone.
    """

    def __init__(self, split: Split, batch_size: int, train: bool, seed: int = 0, dtype: np.dtype | type = np.float32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        now = device.current()
        self.size, self.batch_size, self.train, self.seed, self.epoch = len(split.labels), batch_size, train, seed, 0
        self.dtype = np.dtype(dtype)
        self._images, self._host_labels = now.constant(split.images), split.labels
        self._mean, self._std = (now.to_device(np.array(v, self.dtype)) for v in (MEAN, STD))

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        order = np.arange(self.size, dtype=np.int32)
        if self.train:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        now = device.current()
        indices, labels = now.to_device(order), now.to_device(self._host_labels[order])
        for batch, begin in enumerate(range(0, self.size, self.batch_size)):
            chosen = slice(begin, begin + self.batch_size)
            yield self._images_of(indices[chosen], batch), labels[chosen]

    def _images_of(self, indices: Any, batch: int) -> Tensor:
        _, h, w, c = self._images.shape
        x = device.current().empty((len(indices), h, w, c), self.dtype)
        pad, flip, seed = (4, 1, hash_seed(self.seed, self.epoch, batch)) if self.train else (0, 0, 0)
        arrays = self._images, indices, self._mean, self._std, x
        threads = min(w * c, 256)
        grid = len(indices) * h, -(-w * c // threads)
        device.launch("augment", grid, (threads,), *arrays, h, w, c, pad, flip, seed, scalar=self.dtype)
        return Tensor.wrap(x)


def hash_seed(*numbers: int) -> int:
    """64 bits that depend on all of `numbers`: the seed of a batch's augmentation."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

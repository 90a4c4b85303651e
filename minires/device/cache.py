"""What compilers have made, kept in files from one process to the next."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from .source import DeviceError


def cached(parts: list[str], make: Callable[[Path], None]) -> Path:
    """The file that `parts` decide on, from the cache or written now by `make(path)`, whole or not at all."""
    folder = _folder(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32])
    if (file := _find(folder)) is None:
        with FileLock(folder / ".lock"):  # of several processes one compiles, the others wait for it
            file = _find(folder) or _make(folder, make)
        (folder / ".lock").unlink(missing_ok=True)
    return file


def _folder(key: str) -> Path:
    """One for each key: to look for a file takes as long as its folder is large."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minires" / key
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot create {path} for compiled kernels ({error}): set XDG_CACHE_HOME") from None
    return path


def _make(folder: Path, make: Callable[[Path], None]) -> Path:
    try:
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".compile-")
    except OSError as error:
        raise DeviceError(f"cannot write to {folder} ({error}): set XDG_CACHE_HOME") from None
    with temporary as name:
        made = Path(name) / "made"
        make(made)
        file = folder / _digest(made)
        os.replace(made, file)
    return file


def _find(folder: Path) -> Path | None:
    """The folder's file, whose name is its checksum: a damaged library would kill the process that loads it."""
    for path in folder.glob("[!.]*"):
        if _digest(path) == path.name:
            return path
        print(f"{path} is damaged and is compiled anew", file=sys.stderr)
        path.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

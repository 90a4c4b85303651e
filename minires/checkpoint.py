"""Weights and other arrays in safetensors files, which hold no code, written so that a crash leaves no half file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written."""


def save(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays by name, such as `Module.state_dict()`, and strings by name to a safetensors file.

    The metadata get a `sha256` of the contents, which load() checks. The file appears, or replaces the one before,
    whole or not at all. Raises CheckpointError where it cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    metadata = dict(metadata or {})
    write_atomically(Path(path), to_bytes(arrays, metadata | {"sha256": _digest(arrays, metadata)}))


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, sync, and rename. Raises CheckpointError where that fails; nothing is left behind."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file, from minires, PyTorch or elsewhere.

    Raises CheckpointError where it cannot be read, is cut off, or is not what save() wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    digest = metadata.pop("sha256", None)
    if digest is not None and digest != _digest(arrays, metadata):
        raise CheckpointError(f"{path} is damaged: its contents do not have the SHA-256 that it states")
    return arrays, metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()

"""Weights and other arrays in safetensors files, which hold no code, written so that a crash leaves no half file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written."""


def save(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays by name, such as `Module.state_dict()`, and strings by name to a safetensors file.

    The file appears, or replaces the one before, whole or not at all: it is written beside, synced and renamed.
    Raises CheckpointError where it cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    data = to_bytes({name: np.ascontiguousarray(a) for name, a in arrays.items()}, dict(metadata or {}))
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. Raises CheckpointError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None

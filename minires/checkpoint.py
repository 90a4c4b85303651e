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


def channels_first(filters: np.ndarray) -> np.ndarray:
    """Filters KH x KW x C x O as PyTorch and all files have them, O x C x KH x KW; an array of other rank as it is."""
    return np.ascontiguousarray(filters.transpose(3, 2, 0, 1)) if filters.ndim == 4 else filters


def channels_last(filters: np.ndarray) -> np.ndarray:
    """The inverse of channels_first."""
    return np.ascontiguousarray(filters.transpose(2, 3, 1, 0)) if filters.ndim == 4 else filters


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
    """The arrays and the metadata of a safetensors file, from minires, PyTorch or elsewhere; bfloat16 becomes float32.

    Raises CheckpointError where it cannot be read, is cut off, is a pickle, or is not what save() wrote.
    """
    from safetensors import SafetensorError, deserialize

    try:
        data = Path(path).read_bytes()
        if data[:2] in _PICKLE:
            raise CheckpointError(
                f"{path} is a pickle, which can run any code when it is read; convert it once, where PyTorch is: python -c "
                f"\"import torch, safetensors.torch as s; d = torch.load('{path}', weights_only=True); "
                f"s.save_file(d.get('state_dict', d), '{Path(path).with_suffix('.safetensors')}')\""
            )
        arrays = {name: _array(**tensor) for name, tensor in deserialize(data)}
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    digest = metadata.pop("sha256", None)
    if digest is not None and digest != _digest(arrays, metadata):
        raise CheckpointError(f"{path} is damaged: its contents do not have the SHA-256 that it states")
    return arrays, metadata


_PICKLE = b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"  # what PyTorch and Python write
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "BOOL": "?", "I8": "i1", "U8": "u1", "I16": "i2"}
_DTYPES |= {"U16": "u2", "I32": "i4", "U32": "u4", "I64": "i8", "U64": "u8"}


def _array(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    if dtype not in _DTYPES:
        raise CheckpointError(f"its arrays are of the type {dtype}, which NumPy has not")
    array = np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()

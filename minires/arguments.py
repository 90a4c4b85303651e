"""What a user can get wrong in a call: each check ends in one sentence with the operation, the argument and its value."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import device
from .tensor import Tensor, note_used


def check_range(where: str, name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ValueError where a number is NaN, infinite or outside of least .. most."""
    if not (least <= value <= most and math.isfinite(value)):
        words = f"lie in {least:g} .. {most:g}" if math.isfinite(most) else f"be finite and at least {least:g}"
        raise ValueError(f"{where}: {name} must {words}, got {value}")


def check_counts(where: str, **counts: int) -> None:
    """Raise ValueError where one of them is no integer of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{where}: {name} must be an integer of at least 1, got {count!r}")


def check_tensors(operation: str, **tensors: Tensor | None) -> None:
    """Raise TypeError where one is no tensor, or of another device or dtype than the first, ValueError where one is empty."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first, *_ = given.items()
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operation}: {name} must be a minires.Tensor, got {type(tensor).__name__}")
        if not isinstance(tensor.data, device.current().array_type):
            raise TypeError(f"{operation}: {name} is not on the current device, {device.get_device()}")
        if tensor.dtype != first[1].dtype:
            raise TypeError(f"{operation}: {first[0]} is {first[1].dtype} but {name} is {tensor.dtype}")
        if 0 in tensor.shape:
            raise ValueError(f"{operation}: {name} is empty, its shape is {tensor.shape}")
    note_used(*given.values())


def check_rank(operation: str, name: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError where a tensor does not have these axes, "N, H, W, C"."""
    if len(tensor.shape) != len(axes.split(", ")):
        raise ValueError(f"{operation}: {name} must have the shape ({axes}), got {tensor.shape}")


def check_shape(operation: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], why: str) -> None:
    """Raise ValueError where a tensor has another shape."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{operation}: {name} must have the shape {shape} {why}, got {tensor.shape}")


def check_channels(operation: str, x: Tensor, weight: Tensor) -> None:
    """Raise ValueError where images and filters do not have the same channels; it says so where they come first."""
    (*_, c), (*_, wanted, _) = x.shape, weight.shape
    if c == wanted:
        return
    hint = ""
    if x.shape[1] == wanted:
        hint = ": x looks like N x C x H x W, and minires has N x H x W x C: transpose it by (0, 2, 3, 1)"
    elif weight.shape[1] == c:
        hint = ": weight looks like O x C x KH x KW, and minires has KH x KW x C x O: transpose it by (2, 3, 1, 0)"
    raise ValueError(f"{operation}: x has {c} channels but weight takes {wanted}: shapes {x.shape} and {weight.shape}{hint}")


Pair = int | tuple[int, int]  # of both axes, or (vertical, horizontal)


def pair_of(operation: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """`value`, an integer or a pair of them, as a pair. Raises TypeError, or ValueError where one is below `least`."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{operation}: {name} must be an integer or a pair of integers, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value}")
    return int(pair[0]), int(pair[1])


def out_size(operation: str, image: tuple, kernel: tuple, stride: tuple, padding: tuple) -> tuple[int, int]:
    """Height and width of what a window gives. Raises ValueError where it is larger than the padded image."""
    padded = tuple(i + 2 * p for i, p in zip(image, padding, strict=True))
    if kernel[0] > padded[0] or kernel[1] > padded[1]:
        raise ValueError(f"{operation}: the kernel {kernel} is larger than the padded image {padded}")
    return tuple((i - k) // s + 1 for i, k, s in zip(padded, kernel, stride, strict=True))


# Labels


def labels_of(operation: str, logits: Tensor, target: Any) -> Any:
    """`target` as int32 on the device; what is there already is checked by a kernel, of which a GPU tells when it is read."""
    target = np.asarray(target) if isinstance(target, (list, tuple)) else target
    if not hasattr(target, "dtype") or target.dtype.kind not in "iu":
        raise TypeError(f"{operation}: target must be an integer array, got {getattr(target, 'dtype', type(target).__name__)}")
    n, c = logits.shape
    if target.shape != (n,):
        raise ValueError(f"{operation}: target must have the shape ({n},) for logits {logits.shape}, got {target.shape}")
    now = device.current()
    if not isinstance(target, (now.array_type, np.ndarray)):
        raise TypeError(f"{operation}: target is not on the current device, {now.name}")
    if isinstance(target, np.ndarray) and (now.array_type is not np.ndarray or target.dtype != np.int32):  # the host's
        for index in np.flatnonzero((target < 0) | (target >= c))[:1]:
            raise _bad_label_error(operation, int(index), int(target[index]), c)
    labels = target if target.dtype == np.int32 else _to_int32(target, c)
    labels = labels if isinstance(labels, now.array_type) and labels.flags.c_contiguous else now.to_device(labels)
    if not now.is_recording:  # the calls before have checked them
        device.launch("find_bad_label", (1,), (1,), labels, _bad_label(operation, now, now.watcher), n, c, scalar=logits.dtype)
        now.when_read(_check_label_of(operation))
    return labels


@functools.lru_cache(maxsize=16)
def _bad_label(operation: str, now: Any, watcher: Any) -> Any:
    """Index, value and number of classes of the first bad label, on the device; -1 while there is none."""
    return now.to_device(np.full(3, -1, np.int32))


@functools.cache
def _check_label_of(operation: str) -> Callable[[], None]:
    def check() -> None:
        now = device.current()
        found = _bad_label(operation, now, now.watcher)
        index, value, classes = now.to_host(found)
        if index >= 0:
            now.assign(found, np.full(3, -1, np.int32))
            raise _bad_label_error(operation, index, value, classes)

    return check


def _bad_label_error(operation: str, index: int, value: int, classes: int) -> ValueError:
    return ValueError(f"{operation}: target[{index}] is {value}, but with {classes} classes labels lie in 0 .. {classes - 1}")


def _to_int32(labels: Any, classes: int) -> Any:
    """Labels out of range stay out of range: an int64 must not wrap into it."""
    limits = np.iinfo(labels.dtype)
    return labels.clip(max(-1, limits.min), min(classes, limits.max)).astype(np.int32)

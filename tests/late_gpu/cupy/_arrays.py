"""Arrays in the memory of the late GPU: what is done to them is queued, what the host reads is waited for."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _memory, _queues


class ndarray:  # noqa: N801
    def __init__(self, shape: Any, dtype: Any = float, memptr: _memory.MemoryPointer | None = None) -> None:
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.data = memptr or _memory.malloc(nbytes)
        self._view = self.data.bytes_of(nbytes).view(dtype).reshape(shape)

    @classmethod
    def _over(cls, base: ndarray, view: np.ndarray) -> ndarray:
        array = cls.__new__(cls)
        array._view = view
        array.data = _memory.MemoryPointer(base.data.mem, view.__array_interface__["data"][0] - base.data.mem.block.ptr)
        return array

    shape = property(lambda self: self._view.shape)
    dtype = property(lambda self: self._view.dtype)
    size = property(lambda self: self._view.size)
    ndim = property(lambda self: self._view.ndim)
    nbytes = property(lambda self: self._view.nbytes)
    itemsize = property(lambda self: self._view.itemsize)
    strides = property(lambda self: self._view.strides)
    flags = property(lambda self: self._view.flags)

    def __len__(self) -> int:
        return len(self._view)

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        view = self._view.reshape(*shape)
        return ndarray._over(self, view) if np.shares_memory(view, self._view) or not view.size else self._new(view)

    def view(self, dtype: Any = None) -> ndarray:
        return ndarray._over(self, self._view.view(dtype))

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray._over(self, self._view[key][...] if isinstance(key, slice) else self._view[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        target, source = self._view, value._view if isinstance(value, ndarray) else value
        _queues.current[-1].put(lambda: target.__setitem__(key, source))

    def fill(self, value: Any) -> None:
        self[...] = value

    def _new(self, like: np.ndarray, compute: Any = None) -> ndarray:
        result, source = ndarray(like.shape, like.dtype), self._view
        compute = compute or (lambda: source.reshape(like.shape))
        target = result._view  # not the array: what is queued keeps no block
        _queues.current[-1].put(lambda: target.__setitem__(..., compute()))
        return result

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> ndarray:
        source = self._view
        return self._new(np.empty(self.shape, dtype), lambda: source.astype(dtype))

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:  # noqa: A002
        source = self._view
        return self._new(source, lambda: source.clip(min, max))

    def copy(self, order: str = "C") -> ndarray:
        source = self._view
        return self._new(source, lambda: source)

    def __matmul__(self, other: ndarray) -> ndarray:
        a, b = self._view, other._view
        return self._new(np.empty((a.shape[0], b.shape[1]), a.dtype), lambda: a @ b)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        stream = stream or _queues.current[-1]
        stream.forbid_while_recording("copy to the host")
        stream.synchronize()
        return np.array(self._view, order="C")

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """From pageable memory: CUDA takes the bytes now and copies them in the stream's order, at once or later."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        stream = stream or _queues.current[-1]
        stream.forbid_while_recording("copy from the host")
        target, staged = self._view, arr.copy()
        stream.put(lambda: target.__setitem__(..., staged))
        if _queues.rng.random() < 0.5:
            stream.synchronize()

    def item(self) -> Any:
        return self.get().item()

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __eq__(self, other: Any) -> Any:
        """CuPy computes this on the device; that whoever asks will look at it, and wait, is taken for granted here."""
        return self.get() == (other.get() if isinstance(other, ndarray) else other)

    __hash__ = None

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct one.")

    def __repr__(self) -> str:
        return f"late array of shape {self.shape}, {self.dtype}"


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype)


def empty_like(prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return ndarray(prototype.shape, dtype or prototype.dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    array = ndarray(shape, dtype)
    array[...] = fill_value
    return array


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> ndarray:
    if isinstance(obj, ndarray):
        return obj.copy()
    host = np.ascontiguousarray(obj, dtype).reshape(np.shape(obj))
    result = ndarray(host.shape, host.dtype)
    result.set(host)
    return result


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if not isinstance(src, ndarray):
        raise TypeError("Unsupported type")
    dst[...] = src


def asnumpy(a: ndarray, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream)

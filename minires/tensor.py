"""Tensor, the graph that operations record, and its backward pass."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import device

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_grad_enabled = True


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within this context operations record no graph, so their inputs are not kept for a backward pass."""
    global _grad_enabled
    before, _grad_enabled = _grad_enabled, False
    try:
        yield
    finally:
        _grad_enabled = before


_used: list[weakref.ref[Tensor]] | None = None


@contextlib.contextmanager
def used_tensors() -> Iterator[list[weakref.ref[Tensor]]]:
    """Within this context the tensors that operations and optimisers are given are written down."""
    global _used
    before, _used = _used, []
    try:
        yield _used
    finally:
        _used = before


def note_used(*tensors: Tensor | None) -> None:
    """For used_tensors(): an operation reads these."""
    if _used is not None:
        _used.extend(weakref.ref(tensor) for tensor in tensors if tensor is not None)


def is_grad_enabled() -> bool:
    """Whether operations record a graph: not within no_grad."""
    return _grad_enabled


class Node:
    """An operation in the graph: its inputs, and how a gradient of its output becomes gradients of the inputs."""

    def __init__(self, name: str, inputs: tuple[Tensor, ...], backward: Callable[..., tuple], adds: bool) -> None:
        self.name = name
        self.inputs = inputs
        self.backward: Callable[..., tuple] | None = backward
        self.adds = adds


class Tensor:
    """A float32 or float64 array on the current device that can take part in automatic differentiation.

    `data` is a NumPy array, an array of the current device, a Tensor, or a float or nested lists of floats (float32);
    it is copied. `.data` is the device's array, `.grad` None or a Tensor of the same shape and dtype, to which
    backward() adds.

    Raises TypeError where the dtype is not float32 or float64, or the array belongs to the other device.
    """

    __add__: Callable[[Tensor, Tensor], Tensor]  # functional.py sets it: the graph knows of no operation

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        self._set(_copy_to_device(data), requires_grad)

    @classmethod
    def wrap(cls, array: Any) -> Tensor:
        """A tensor over a contiguous array of the current device, without a copy."""
        tensor = cls.__new__(cls)
        tensor._set(array, False)
        return tensor

    def _set(self, data: Any, requires_grad: bool) -> None:
        self.data = data
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.node: Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64."""
        return self.data.dtype

    def __repr__(self) -> str:
        numbers = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        return f"Tensor({numbers}, shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return device.current().to_host(self.data)

    def item(self) -> float:
        """The value of a tensor with one element. Raises ValueError where it has more or none."""
        if self.data.size != 1:
            raise ValueError(f"item() needs a tensor with one element, this one has the shape {self.shape}")
        return float(self.numpy().reshape(()))

    def detach(self) -> Tensor:
        """A tensor that shares this one's data, without its graph."""
        return Tensor.wrap(self.data)

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        """The same elements in another shape, one size of which may be -1. Raises ValueError where they do not fit."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        before = self.shape
        try:
            data = self.data.reshape(shape)
        except ValueError:
            raise ValueError(f"cannot reshape a tensor of shape {before} to {tuple(shape)}") from None
        return record("reshape", data, (self,), lambda dy: (dy.reshape(before),))

    def backward(self, gradient: Tensor | np.ndarray | None = None) -> None:
        """Add the gradient of this tensor with respect to each leaf that requires one to that leaf's `.grad`.

        `gradient`, of this tensor's shape and dtype, is what flows in; for a tensor with one element it is 1 when
        left out. The graph is freed on the way, node by node.

        Raises ValueError without a gradient for a tensor of several elements, or with one of the wrong shape;
        TypeError for one of the wrong dtype; RuntimeError where no graph was recorded, or it was used before.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a tensor that does not require a gradient: no input of it does, or no_grad")
        gradients = {id(self): self._seed(gradient)}
        order = _topological_order(self)
        while order:
            tensor = order.pop()
            dy = gradients.pop(id(tensor), None)
            if dy is None:
                continue
            if tensor.node is None:
                tensor.grad = Tensor.wrap(dy if tensor.grad is None else add_arrays(tensor.grad.data, dy))
                continue
            inputs, tensor.node.inputs = tensor.node.inputs, ()
            first = [gradients.pop(id(inputs[0]), None)] if tensor.node.adds and inputs else []
            for source, dx in zip(inputs, _run_backward(tensor.node, dy, *first), strict=True):
                if source.requires_grad:
                    known = gradients.get(id(source))
                    gradients[id(source)] = dx if known is None else add_arrays(known, dx)

    def _seed(self, gradient: Tensor | np.ndarray | None) -> Any:
        if gradient is None:
            if self.data.size != 1:
                raise ValueError(f"backward() of a tensor of shape {self.shape} needs a gradient of that shape")
            return device.current().filled(self.shape, self.dtype, 1)
        gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
        if gradient.shape != self.shape:
            raise ValueError(f"the gradient has the shape {gradient.shape}, the tensor {self.shape}")
        if gradient.dtype != self.dtype:
            raise TypeError(f"the gradient is {gradient.dtype}, the tensor {self.dtype}")
        return gradient.data


def record(name: str, data: Any, inputs: tuple[Tensor, ...], backward: Callable[..., tuple], adds: bool = False) -> Tensor:
    """The result of an operation: a tensor that remembers, where an input requires a gradient, how to pass one back.

    `backward` takes the gradient of `data`, an array, and returns one array (or None) for each input. With `adds` it also
    takes what is known of the first input's gradient, an array or None, and adds that to its own: a pass over memory less.
    """
    result = Tensor.wrap(data)
    if _grad_enabled and any(t.requires_grad for t in inputs):
        result.requires_grad = True
        result.node = Node(name, inputs, backward, adds)
    return result


def add_arrays(a: Any, b: Any) -> Any:
    """a + b of two device arrays of one shape and dtype, in a new one."""
    c = device.current().empty(a.shape, a.dtype)
    n = math.prod(a.shape)
    device.launch("add_forward", (-(-n // 256),), (256,), a, b, c, n)
    return c


def _run_backward(node: Node, dy: Any, *known: Any) -> tuple:
    if node.backward is None:
        raise RuntimeError(f"backward() a second time through {node.name}: its graph was freed by the first; run forward again")
    backward, node.backward = node.backward, None
    return backward(dy, *known)


def _topological_order(root: Tensor) -> list[Tensor]:
    """All tensors that `root` depends on and that require a gradient, each after those it was made from.

    Depth first with a stack of its own: a deep network does not run into Python's recursion limit.
    """
    order, visited, stack = [], set(), [(root, False)]
    while stack:
        tensor, done = stack.pop()
        if done:
            order.append(tensor)
        elif id(tensor) not in visited and tensor.requires_grad:
            visited.add(id(tensor))
            stack.append((tensor, True))
            stack.extend((source, False) for source in (tensor.node.inputs if tensor.node else ()))
    return order


def _copy_to_device(data: Any) -> Any:
    target = device.current()
    if isinstance(data, Tensor):
        data = data.data
    if isinstance(data, (float, list, tuple)):
        data = np.asarray(data, np.float32)
    if not isinstance(data, (np.ndarray, target.array_type)):
        raise TypeError(
            f"a Tensor on the {target.name} device needs a NumPy array or one of that device, got "
            f"{type(data).__module__}.{type(data).__name__}"
        )
    if data.dtype not in FLOAT_DTYPES:
        raise TypeError(f"a Tensor holds float32 or float64, got {data.dtype}")
    return target.to_device(data)

"""mr.graph(): a step recorded once as a CUDA graph and replayed, so that its launches cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import device
from .tensor import Tensor


def graph(function: Callable) -> Callable:
    """`function`, which takes and returns Tensors and device arrays, as one that replays what it launches.

    On a GPU the first two calls with inputs of some shapes run as they are, the third is recorded as a CUDA graph, and
    from then on a call copies its inputs to where the recorded launches read them and launches the graph: without
    Python, and without a gap between kernels. What is returned lies in the same arrays each time: read it before the
    next call. On the CPU every call just runs.

    The function must launch the same kernels on the same arrays each time. It must not bring data from or to the host,
    nor depend on Python values that change; SGD's learning rate may change. Labels are checked in the first two calls.
    """
    recorded: dict[tuple, Callable] = {}

    def replay(*inputs: Any) -> Any:
        is_tensor = [isinstance(value, Tensor) for value in inputs]
        arrays = [value.data if tensor else value for value, tensor in zip(inputs, is_tensor, strict=True)]

        def run(*fixed: Any) -> Any:
            return function(*(Tensor.wrap(a) if tensor else a for a, tensor in zip(fixed, is_tensor, strict=True)))

        key = (device.get_device(), *((a.shape, a.dtype) for a in arrays))
        if key not in recorded:
            recorded[key] = device.current().recording(run)
        return recorded[key](arrays)

    return replay

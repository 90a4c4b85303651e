"""mr.graph(): a step recorded once, as a CUDA graph on a GPU, and replayed, so that its launches cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import device
from .tensor import Tensor, used_tensors


def graph(function: Callable) -> Callable:
    """`function`, which takes and returns Tensors and device arrays, as one that replays what it launches.

    The first two calls with inputs of some shapes run as they are, the third is recorded, and from then on a call copies
    its inputs to where the recorded launches read them and does these: without Python, and on a GPU, where they are a CUDA
    graph, without a gap between kernels. What is returned lies in the same arrays each time: read it before the next call.
    While launches are watched, by mr.profile() or the sanitizer, every call just runs.

    The function must launch the same kernels on the same arrays each time. It must not bring data from or to the host,
    nor depend on Python values that change; SGD's learning rate may change. Labels are checked in the first two calls.
    What it reads besides its inputs must stay where it is: change a parameter in place, as load_state_dict does. A
    parameter or buffer whose array was replaced, by `net.to(...)` or `p.data = ...`, is a RuntimeError at the next
    call: make a new graph then.
    """
    recorded: dict[tuple, _Replay] = {}
    pools: dict[str, Any] = {}  # of each device: recordings of other shapes run at other times

    def replay(*inputs: Any) -> Any:
        if device.is_watched():
            return function(*inputs)
        is_tensor = [isinstance(value, Tensor) for value in inputs]
        arrays = [value.data if tensor else value for value, tensor in zip(inputs, is_tensor, strict=True)]
        name = device.get_device()
        key = (name, *((a.shape, a.dtype) for a in arrays))
        if key not in recorded:
            recorded[key] = _Replay(function, is_tensor, pools.get(name))
            pools[name] = recorded[key].recording.pool
        return recorded[key](arrays)

    return replay


class _Replay:
    """A recording, and the tensors that it reads besides its inputs, with the arrays that they had.

    Two calls before it fill the recording's memory, so that it finds every size it asks for.
    """

    def __init__(self, function: Callable, is_tensor: list[bool], pool: Any) -> None:
        self._function, self._is_tensor = function, is_tensor
        self._read: dict[int, tuple[Tensor, Any]] = {}
        self.recording, self._calls = device.current().recording(pool), 0
        self._inputs: list[Any] = []
        self._outputs: Any = None

    def __call__(self, arrays: list) -> Any:
        for tensor, data in self._read.values():
            if tensor.data is not data:
                raise RuntimeError(
                    f"graph: a tensor of shape {data.shape} that the recorded function reads has another array now, "
                    f"of shape {tensor.data.shape}: change tensors in place, or make a new graph"
                )
        now = device.current()
        self._inputs = self._inputs or [now.empty(array.shape, array.dtype) for array in arrays]
        for fixed, given in zip(self._inputs, arrays, strict=True):
            now.assign(fixed, given)
        if self._calls < 2:
            with self.recording.memory():
                outputs = self._run()
            self._calls += 1
            return outputs
        if self._calls == 2:
            with self.recording.record():
                self._outputs = self._run()
            self._calls += 1
        self.recording.replay()
        return self._outputs

    def _run(self) -> Any:
        inputs = [Tensor.wrap(a) if tensor else a for a, tensor in zip(self._inputs, self._is_tensor, strict=True)]
        if self._read:  # it reads the same tensors each time
            return self._function(*inputs)
        with used_tensors() as used:
            outputs = self._function(*inputs)
        # What the function made itself is gone by now, or an output.
        own = {id(value) for value in (*inputs, *(outputs if isinstance(outputs, (tuple, list)) else (outputs,)))}
        alive = [tensor for tensor in (ref() for ref in used) if tensor is not None]
        self._read = {id(t): (t, t.data) for t in alive if id(t) not in own}
        return outputs

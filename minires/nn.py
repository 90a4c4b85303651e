"""Layers: functions with parameters. Names and initialisation are PyTorch's unless a docstring says otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import device, functional
from .arguments import Pair, check_counts, check_range, pair_of
from .checkpoint import channels_first, channels_last
from .tensor import Tensor

_rng = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Seed the generator that initial weights are drawn from."""
    global _rng
    _rng = np.random.default_rng(seed)


class Parameter(Tensor):
    """A tensor that a module owns and an optimiser trains; float32 unless `data` is float64."""

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Module:
    """A layer or a network. Parameters, buffers (plain tensors) and modules set as attributes are found by name."""

    training = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """The result for x, with x's dtype; calling the module calls this."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, with their names."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def _named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
        for name, child in self.children():
            yield from child._named_tensors(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names, in the order of definition."""
        return ((name, t) for name, t in self._named_tensors() if isinstance(t, Parameter))

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of definition."""
        return [parameter for _, parameter in self.named_parameters()]

    def train(self, mode: bool = True) -> Module:
        """Training mode (batch statistics in BatchNorm2d), or evaluation where `mode` is False."""
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Module:
        """Evaluation mode (running statistics in BatchNorm2d)."""
        return self.train(False)

    def to(self, dtype: np.dtype | type) -> Module:
        """Convert every parameter and buffer, in place, to float32 or float64; gradients are dropped."""
        for _, tensor in self._named_tensors():
            tensor.data, tensor.grad = Tensor(tensor.numpy().astype(dtype)).data, None
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies on the host of all parameters and buffers, by name; filters are O x C x KH x KW, as PyTorch has them."""
        return {name: channels_first(tensor.numpy()) for name, tensor in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all parameters and buffers, as state_dict() gives them, by name, in place: a recorded step goes on with them.

        `num_batches_tracked` of a PyTorch BatchNorm, which minires has no use for, is passed over. Raises KeyError
        for a missing or unknown name, ValueError for a wrong shape; nothing is changed then.
        """
        own = dict(self._named_tensors())
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise KeyError(f"the state does not fit this network: missing {missing or 'none'}, unknown {unknown or 'none'}")
        arrays = {k: v.numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in state.items()}
        for name, tensor in own.items():
            shape = channels_first(np.empty(tensor.shape)).shape
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has the shape {shape}, the state's {arrays[name].shape}")
        for name, tensor in own.items():
            device.current().assign(tensor.data, np.ascontiguousarray(channels_last(arrays[name]), tensor.dtype))


class Conv2d(Module):
    """functional.conv2d with a weight of (*kernel_size, in_channels, out_channels), without a bias unless asked.

    The weight is drawn from He's normal distribution with fan out: standard deviation sqrt(2 / (O KH KW)); the bias
    begins at zero. Raises ValueError where a size is below 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, bias: bool = False
    ) -> None:
        kernel = pair_of("Conv2d", "kernel_size", kernel_size, 1)
        check_counts("Conv2d", in_channels=in_channels, out_channels=out_channels)
        self.stride = pair_of("Conv2d", "stride", stride, 1)
        self.padding = pair_of("Conv2d", "padding", padding, 0)
        deviation = math.sqrt(2 / (out_channels * math.prod(kernel)))
        filters = _rng.normal(0, deviation, (out_channels, in_channels, *kernel)).astype(np.float32)
        self.weight = Parameter(channels_last(filters))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class BatchNorm2d(Module):
    """functional.batch_norm of (N, H, W, num_features), in training mode by the batch's own statistics.

    To begin with, weight is 1, bias 0, the running mean 0 and the running variance 1. Raises ValueError where
    num_features is below 1, momentum outside of 0 .. 1, or eps negative or not finite.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        check_counts("BatchNorm2d", num_features=num_features)
        check_range("BatchNorm2d", "eps", eps, 0)
        check_range("BatchNorm2d", "momentum", momentum, 0, 1)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Tensor(np.zeros(num_features, np.float32))
        self.running_var = Tensor(np.ones(num_features, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        return functional.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps)

    def relu(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The fused relu(self(x)) or relu(self(x) + residual): functional.batch_norm_relu."""
        arrays = self.running_mean, self.running_var, self.weight, self.bias, residual
        return functional.batch_norm_relu(x, *arrays, self.training, self.momentum, self.eps)


class ReLU(Module):
    """functional.relu, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)


class AvgPool2d(Module):
    """functional.avg_pool2d of (N, H, W, C); the stride is the kernel's size unless given."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class Linear(Module):
    """functional.linear: (N, in_features) to (N, out_features).

    Weight and bias are drawn uniformly from +-1 / sqrt(in_features), as in PyTorch. Raises ValueError where a size is
    below 1.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        check_counts("Linear", in_features=in_features, out_features=out_features)
        bound = 1 / math.sqrt(in_features)
        self.weight = Parameter(_rng.uniform(-bound, bound, (out_features, in_features)).astype(np.float32))
        self.bias = Parameter(_rng.uniform(-bound, bound, out_features).astype(np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Sequential(Module):
    """Modules one after another, named 0, 1, ..."""

    def __init__(self, *modules: Module) -> None:
        vars(self).update({str(i): module for i, module in enumerate(modules)})

    def forward(self, x: Tensor) -> Tensor:
        for _, module in self.children():
            x = module(x)
        return x

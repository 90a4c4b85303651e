"""Stochastic gradient descent and the schedules of its learning rate. Formulas are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import device, tiles
from .arguments import check_counts, check_range
from .checkpoint import channels_first, channels_last
from .tensor import Tensor, note_used


class SGD:
    """Gradient descent with momentum and weight decay: g += weight_decay w; v = momentum v + g; w -= lr v.

    With `nesterov`, w -= lr (g + momentum v). `params` are tensors that require gradients; those whose `.grad` is
    None are left alone by step(). `lr` may be set at any time. Formula: torch.optim.SGD.
    Raises ValueError for no parameters, or a rate, momentum or decay that is negative, NaN or infinite.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
    ) -> None:
        self.params = list(params)
        if not self.params:
            raise ValueError("SGD: params is empty")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            check_range("SGD", name, value, 0)
        if nesterov and momentum == 0:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self._rates: dict[np.dtype, Any] = {}  # the rate on the device
        self.lr = lr
        zeros = device.current().filled
        self.velocities = [zeros(p.shape, p.dtype, 0) if momentum else None for p in self.params]

    @property
    def lr(self) -> float:
        """The learning rate of the next step. Raises ValueError where it is set to what is negative or not finite."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        check_range("SGD", "lr", value, 0)
        self._lr = value
        for rate in self._rates.values():
            device.current().fill(rate, value)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies on the host of the velocities, `velocity.<index of the parameter>`, as Module.state_dict() has parameters."""
        to_host = device.current().to_host
        return {f"velocity.{i}": channels_first(to_host(v)) for i, v in enumerate(self.velocities) if v is not None}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Set the velocities from what state_dict gave. Raises ValueError where names or shapes differ."""
        shapes = {name: v.shape for name, v in self.state_dict().items()}
        if (given := {name: np.shape(v) for name, v in state.items()}) != shapes:
            different = sorted(k for k in shapes.keys() | given.keys() if shapes.get(k) != given.get(k))
            raise ValueError(f"SGD: the state does not fit these parameters, at {', '.join(different)}")
        for i in range(len(shapes)):
            v = np.ascontiguousarray(channels_last(state[f"velocity.{i}"]), self.params[i].dtype)
            device.current().assign(self.velocities[i], v)  # in place: a recorded step reads it there

    def step(self) -> None:
        """Update every parameter from its gradient, in place, in one launch for each dtype and 64 parameters."""
        with_gradient = [i for i, p in enumerate(self.params) if p.grad is not None]
        for dtype in dict.fromkeys(self.params[i].dtype for i in with_gradient):
            chosen = [i for i in with_gradient if self.params[i].dtype == dtype]
            if dtype not in self._rates:
                self._rates[dtype] = device.current().to_device(np.full(1, self._lr, dtype))
            for begin in range(0, len(chosen), device.MAX_POINTERS):
                self._update(chosen[begin : begin + device.MAX_POINTERS], self._rates[dtype])

    def _update(self, chosen: list[int], rate: Any) -> None:
        parameters = [self.params[i] for i in chosen]
        note_used(*parameters)
        weights, gradients = [p.data for p in parameters], [p.grad.data for p in parameters if p.grad is not None]
        velocities = [self.velocities[i] for i in chosen] if self.momentum else None
        counts, sizes = [math.prod(w.shape) for w in weights], np.zeros((), [("at", np.int64, device.MAX_POINTERS)])
        sizes["at"][: len(counts)] = counts
        name, grid, block = tiles.sgd(len(chosen), max(counts))
        arrays = weights, gradients, velocities, sizes[()], rate
        device.launch(name, grid, block, *arrays, self.momentum, self.weight_decay, self.nesterov)


class Schedule:
    """What schedules share: the optimiser's rate is set for step 0 when one is made, for the next at each step()."""

    def __init__(self, optimizer: SGD) -> None:
        self.optimizer, self.base_lr, self.last_step = optimizer, optimizer.lr, 0
        optimizer.lr = self.rate(0)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        raise NotImplementedError

    def step(self) -> None:
        """Go on to the next step."""
        self.go_to(self.last_step + 1)

    def go_to(self, step: int) -> None:
        """Set the rate of a step, from which step() goes on: for a run that is resumed."""
        self.last_step = step
        self.optimizer.lr = self.rate(step)


class MultiStepLR(Schedule):
    """The rate times `gamma`, at least 0, for each of the `milestones`, step numbers, that has been reached."""

    def __init__(self, optimizer: SGD, milestones: Sequence[int], gamma: float = 0.1) -> None:
        check_range("MultiStepLR", "gamma", gamma, 0)
        self.milestones, self.gamma = list(milestones), gamma
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.base_lr * self.gamma ** len([m for m in self.milestones if m <= step])


class StepLR(Schedule):
    """The rate times `gamma`, at least 0, after every `step_size` steps. Raises ValueError where that is below 1."""

    def __init__(self, optimizer: SGD, step_size: int, gamma: float = 0.1) -> None:
        check_counts("StepLR", step_size=step_size)
        check_range("StepLR", "gamma", gamma, 0)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.base_lr * self.gamma ** (step // self.step_size)


class CosineAnnealingLR(Schedule):
    """From the rate down to `eta_min` along half a cosine in `T_max` steps. Raises ValueError where that is below 1."""

    def __init__(self, optimizer: SGD, T_max: int, eta_min: float = 0.0) -> None:
        check_counts("CosineAnnealingLR", T_max=T_max)
        check_range("CosineAnnealingLR", "eta_min", eta_min, 0)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return _cosine(self.base_lr, self.eta_min, step / self.T_max)


class OneCycleLR(Schedule):
    """From max_lr / div_factor up to max_lr in the share `pct_start` of total_steps, then down to nearly nothing.

    pct_start lies in 0 .. 1, the factors are at least 1. Both ways along half a cosine; the end is
    max_lr / div_factor / final_div_factor. The momentum is left alone
    (PyTorch's cycle_momentum=False). step() raises ValueError past total_steps.
    """

    def __init__(
        self,
        optimizer: SGD,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        check_counts("OneCycleLR", total_steps=total_steps)
        check_range("OneCycleLR", "max_lr", max_lr, 0)
        check_range("OneCycleLR", "pct_start", pct_start, 0, 1)
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            check_range("OneCycleLR", name, value, 1)
        self.max_lr, self.total_steps, self.pct_start = max_lr, total_steps, pct_start
        self.initial_lr = max_lr / div_factor
        self.final_lr = self.initial_lr / final_div_factor
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        if step > self.total_steps:
            raise ValueError(f"OneCycleLR: step {step} of {self.total_steps}")
        peak, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if step <= peak:
            return _cosine(self.initial_lr, self.max_lr, step / peak if peak > 0 else 1.0)
        return _cosine(self.max_lr, self.final_lr, min((step - peak) / max(last - peak, 1e-9), 1.0))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

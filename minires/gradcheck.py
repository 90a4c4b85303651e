"""Central differences in float64 against the gradients that backward() computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .arguments import check_range
from .tensor import Tensor, no_grad


class GradcheckError(AssertionError):
    """An analytic gradient differs from the numerical one."""


def gradcheck(
    f: Callable[..., Tensor],
    inputs: Sequence[Tensor] | Mapping[str, Tensor],
    eps: float = 1e-6,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> float:
    """Compare the gradient of every element of every input with (f(x + eps) - f(x - eps)) / (2 eps).

    `inputs` are float64 tensors, a sequence passed to `f` in order, or a mapping of names to tensors, which may hold
    a module's parameters too; then `f` is called without arguments and uses the tensors itself. Where `f` returns more
    than one element, their sum with fixed random weights is differentiated. An element passes where
    |analytic - numerical| <= atol + rtol * (the largest |numerical| of its tensor).

    Returns the largest error relative to its tensor's largest gradient. Raises GradcheckError with the worst element's
    name, index and both values; TypeError where an input is not float64; ValueError where there are no inputs,
    or eps or atol is not above 0.
    """
    check_range("gradcheck", "eps", eps, np.finfo(float).tiny)
    check_range("gradcheck", "rtol", rtol, 0)
    check_range("gradcheck", "atol", atol, np.finfo(float).tiny)
    named = dict(inputs) if isinstance(inputs, Mapping) else {f"input {i}": t for i, t in enumerate(inputs)}
    if not named:
        raise ValueError("gradcheck: inputs is empty: there is no gradient to check")
    arguments = () if isinstance(inputs, Mapping) else tuple(inputs)
    for name, tensor in named.items():
        if tensor.dtype != np.float64:
            raise TypeError(f"gradcheck: {name} must be float64, got {tensor.dtype}")
        tensor.requires_grad, tensor.grad = True, None
    output = f(*arguments)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, output.shape)
    output.backward(weights)

    def weighted_sum() -> float:
        with no_grad():
            return float(np.sum(f(*arguments).numpy() * weights, dtype=np.longdouble))

    worst: tuple = (-1.0,)
    relative = 0.0
    for name, tensor in named.items():
        analytic = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        numerical = _central_differences(weighted_sum, tensor, eps)
        error, scale = np.abs(analytic - numerical), np.abs(numerical).max()
        error[np.isnan(error)] = np.inf
        index = tuple(map(int, np.unravel_index(np.argmax(error), error.shape)))
        excess = error[index] / (atol + rtol * scale)
        relative = max(relative, float(error[index] / max(scale, atol / rtol)))
        if not excess <= worst[0]:
            worst = excess, name, index, analytic[index], numerical[index]
    if not worst[0] <= 1:
        _, name, index, analytic_value, numerical_value = worst
        raise GradcheckError(
            f"gradient of {name}{list(index)}: analytic {analytic_value:.12g}, numerical {numerical_value:.12g} "
            f"({worst[0]:.3g} times the tolerance)"
        )
    return relative


def _central_differences(function: Callable[[], float], tensor: Tensor, eps: float) -> np.ndarray:
    original, array = tensor.data, tensor.numpy()
    result = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        values = []
        for step in (eps, -eps):
            moved = array.copy()
            moved[index] += step
            tensor.data = Tensor(moved).data
            values.append(function())
        result[index] = (values[0] - values[1]) / (2 * eps)
    tensor.data = original
    return result

"""Check your answers to the exercises of kernels/README.md: the results, and what the sanitizer says of them; of those that
are about speed, also whether a GPU would have to fetch more than it needs.

    cp examples/exercises.cu mine.cu                          a copy to write into
    python examples/exercises.py mine.cu                      all exercises
    python examples/exercises.py mine.cu leaky_relu           some

Runs on the CPU device. Ends with 0 where all that were asked for are right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import minires as mr

Shape = tuple[int, ...]


@dataclass
class Case:
    """A launch, and what each array that the kernel writes must hold then, by its place among the arguments.

    An argument that is a tuple is the shape of an array that nothing was written to yet.
    """

    grid: Shape
    block: Shape
    args: tuple
    expected: dict[int, np.ndarray]
    atol: float = 1e-5


def leaky_relu(rng: np.random.Generator) -> Case:
    x = rng.standard_normal(1000)
    x[7] = np.nan
    return Case((4,), (256,), (x, x.shape, 0.1, 1000), {1: np.where(x > 0, x, 0.1 * x)})


def add_strided(rng: np.random.Generator) -> Case:
    a, b = rng.standard_normal((2, 1000))
    return Case((2,), (32,), (a, b, a.shape, 1000), {2: a + b})


def adam_step(rng: np.random.Generator) -> Case:
    w, g, m = rng.standard_normal((3, 300))
    v, lr, beta1, beta2, eps, step = rng.random(300), 0.1, 0.9, 0.99, 1e-8, 3
    m2, v2 = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    w2 = w - lr * (m2 / (1 - beta1**step)) / (np.sqrt(v2 / (1 - beta2**step)) + eps)
    return Case((3,), (128,), (w, g, m, v, lr, beta1, beta2, eps, step, 300), {0: w2, 2: m2, 3: v2})


def max_pool2x2_backward(rng: np.random.Generator) -> Case:
    n, h, w, c = 2, 8, 10, 3
    x, dy = (rng.integers(0, 4, (n, h, w, c)).astype(float), rng.standard_normal((n, h // 2, w // 2, c)))  # many are equal
    split = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    chosen = np.eye(4)[split.reshape(*dy.shape, 4).argmax(-1)] * dy[..., None]
    dx = chosen.reshape(split.shape).transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)
    return Case((4,), (128,), (x, dy, x.shape, n, h, w, c), {2: dx})


def dropout(rng: np.random.Generator) -> Case:
    x, p, seed = rng.standard_normal(1000), 0.25, 12345

    def splitmix64(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    dice = np.array([(splitmix64((splitmix64(seed) + i) % 2**64) >> 40) / 2**24 for i in range(1000)])
    return Case((4,), (256,), (x, x.shape, p, seed, 1000), {1: np.where(dice < p, 0, x / (1 - p))})


def im2col_dilated(rng: np.random.Generator) -> Case:
    c, h, w, k, dilation = 5, 13, 17, 3, 2
    x, oh, ow = rng.standard_normal((h, w, c)), h - (k - 1) * dilation, w - (k - 1) * dilation
    shifts = [(i * dilation, j * dilation) for i in range(k) for j in range(k)]
    columns = np.stack([x[i : i + oh, j : j + ow] for i, j in shifts], axis=2).reshape(oh * ow, k * k * c)
    return Case((oh * ow,), (32,), (x, columns.shape, w, c, k, ow, dilation), {1: columns})


def block_max(rng: np.random.Generator) -> Case:
    x = rng.standard_normal(1000) - 10
    return Case((1,), (256,), (x, (1,), 1000), {1: x.max(keepdims=True)})


def log_softmax(rng: np.random.Generator) -> Case:
    z = rng.standard_normal((100, 7)) + rng.uniform(-1e4, 1e4, (100, 1))
    z = z.astype(np.float32).astype(float)
    y = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    return Case((4,), (32,), (z, z.shape, 100, 7), {1: y}, atol=1e-3)  # a logit near 10,000 is rounded to 1e-3


def layer_norm(rng: np.random.Generator) -> Case:
    x = (1000 + rng.standard_normal((5, 500))).astype(np.float32).astype(float)
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return Case((5,), (128,), (x, x.shape, 500, 1e-5), {1: y}, atol=1e-3)  # the mean is rounded to 1e-4


def transpose(rng: np.random.Generator, h: int = 37, w: int = 50) -> Case:
    x = rng.standard_normal((h, w))
    return Case((-(-w // 32), -(-h // 32)), (32, 8), (x, (w, h), h, w), {1: x.T})


def depthwise3x3(rng: np.random.Generator, h: int = 11, w: int = 21) -> Case:
    x, weight = rng.standard_normal((h, w, 32)), rng.standard_normal((3, 3, 32))
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = sum(weight[i, j] * padded[i : i + h, j : j + w] for i in range(3) for j in range(3))
    return Case((-(-w // 8), h), (32, 8), (x, weight, x.shape, h, w), {2: y})


EXERCISES: dict[str, Callable[..., Case]] = {
    exercise.__name__: exercise
    for exercise in (
        leaky_relu,
        add_strided,
        adam_step,
        max_pool2x2_backward,
        dropout,
        im2col_dilated,
        block_max,
        log_softmax,
        layer_norm,
        transpose,
        depthwise3x3,
    )
}
IN_SHARED_MEMORY = "block_max", "layer_norm", "transpose", "depthwise3x3"
# Their accesses are counted too, where rows begin at multiples of a sector.
FOR_SPEED = {"block_max": {}, "transpose": {"h": 64, "w": 64}, "depthwise3x3": {"h": 16, "w": 32}}
ENOUGH, FEW = 1.1, ", and as few accesses as can be"  # times the least


def check(code: str, name: str) -> str | None:
    """What is wrong with the kernel `name` of `code`, in words, or None."""
    case, now = EXERCISES[name](np.random.default_rng(0)), mr.device.current()
    try:
        with mr.sanitize():
            kernel = mr.RawKernel(code, name)
            args = [_to_device(now, a) for a in case.args]
            kernel(case.grid, case.block, tuple(args))
            results = {i: now.to_host(args[i]) for i in case.expected}
    except (mr.DeviceError, mr.SanitizerError, TypeError, ValueError) as error:
        return str(error)
    for i, expected in case.expected.items():
        wrong = ~np.isclose(results[i], expected, rtol=1e-5, atol=case.atol, equal_nan=True)
        if wrong.any():
            index = tuple(map(int, np.argwhere(wrong)[0]))
            return f"argument {i}, element {index}: {results[i][index]:.6g} instead of {expected[index]:.6g}"
    if name in IN_SHARED_MEMORY and "__shared__" not in code:
        return "the result is right, but it was to be computed in shared memory"
    return None


def waste(code: str, name: str) -> str | None:
    """Where a kernel that is right touches more sectors or wavefronts than a tenth above the least; None: nowhere."""
    case, now = EXERCISES[name](np.random.default_rng(0), **FOR_SPEED[name]), mr.device.current()
    with mr.counters(None) as counted:
        mr.RawKernel(code, name)(case.grid, case.block, tuple(_to_device(now, a) for a in case.args))
    (launch,) = counted.launches
    for space in ("global", "shared"):
        total = launch.total(space)
        if total.cost > ENOUGH * total.cost_least:
            of_space = [a for a in launch.accesses if a.space == space]
            worst = max(of_space, key=lambda a: a.cost - a.cost_least)
            return (
                f"{total.cost} {total.unit} where {total.cost_least} would do, most of them too many at line "
                f"{worst.line}: a {worst.kind}"
            )
    return None


def verdict(code: str, name: str) -> str:
    """What check() and waste() find, in words that begin with "right" or with "not yet"."""
    mr.set_device("cpu")
    if (wrong := check(code, name)) is not None:
        return f"not yet: {wrong}"
    much = waste(code, name) if name in FOR_SPEED else None
    return f"right, but on a GPU slow: {much}" if much else f"right{FEW * (name in FOR_SPEED)}"


def _to_device(now, argument):
    if isinstance(argument, tuple):
        return now.empty(argument, np.float32)
    return now.to_device(argument.astype(np.float32)) if isinstance(argument, np.ndarray) else argument


def main() -> None:
    parser = argparse.ArgumentParser(description="Check your answers to the exercises.")
    parser.add_argument("file", help="your copy of examples/exercises.cu")
    parser.add_argument("names", nargs="*", metavar="EXERCISE", help=f"of {', '.join(EXERCISES)} (default: all)")
    arguments = parser.parse_args()
    names = arguments.names or list(EXERCISES)
    if unknown := [name for name in names if name not in EXERCISES]:
        parser.error(f"there is no exercise {unknown[0]!r}; there are {', '.join(EXERCISES)}")
    code = Path(arguments.file).read_text(encoding="utf-8-sig")
    verdicts = {name: verdict(code, name) for name in names}
    for name, words in verdicts.items():
        print(f"{name:22}{words}")
    sys.exit(not all(words.startswith("right") for words in verdicts.values()))


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, OSError, UnicodeDecodeError) as e:
        sys.exit(f"error: {e}")

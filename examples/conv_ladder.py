"""The steps of conv_ladder.cu and the kernel that trains, checked and timed beside PyTorch's where it is installed.

python examples/conv_ladder.py
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ladder import climb, counts

import minires as mr

SOURCE = Path(__file__).with_suffix(".cu")
STEPS = ("conv_1_direct", "conv_2_im2col_and_product", "conv_3_shared_tile", "conv_4_register_sums", "conv_5_as_trained")


def convolve(name: str, x: Any, w: Any, y: Any) -> None:
    """y = the convolution of images x, N x H x W x C, with filters w, 3 x 3 x C x O, by one step of the ladder."""
    (n, h, width, c), o = x.shape, w.shape[3]
    tiles, pixels = n * -(-h // 8) * -(-width // 8), n * h * width
    if name == "conv_5_as_trained":
        kernel, grid, block = mr.tiles.conv(n, c, o, (h, width), 1, x.dtype, False, False)
        mr.device.launch(kernel, grid, block, x, w, y, h, width, h, width, 1, 1, *[None] * 5, 0.0)
        return
    if name == "conv_2_im2col_and_product":
        columns = mr.device.current().empty((pixels, 9 * c), x.dtype)
        unfold, product = (mr.RawKernel(SOURCE.read_text(), f"conv_2_{part}") for part in ("im2col", "product"))
        unfold((pixels,), (32,), (x, columns, h, width, c))
        product((-(-o // 16), -(-pixels // 16)), (16, 16), (columns, w, y, pixels, o, 9 * c))
        return
    grid, block = {
        "conv_1_direct": ((-(-o // 32), -(-pixels // 8)), (32, 8)),
        "conv_3_shared_tile": ((-(-o // 4), tiles), (4, 64)),
        "conv_4_register_sums": ((-(-o // 16), tiles), (4, 8)),
    }[name]
    mr.RawKernel(SOURCE.read_text(), name)(grid, block, (x, w, y, n, h, width, c, o))


def reference(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, w, optimize=True)


def peer(x: np.ndarray, w: np.ndarray) -> tuple[str, Callable[[], object]]:
    """PyTorch's channels-last convolution on as many threads, or NumPy's product of the columns."""
    if mr.get_device() == "cpu" and importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(mr.device.current().threads)
        images = torch.from_numpy(x).permute(0, 3, 1, 2)
        filters = torch.from_numpy(w).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        return "PyTorch's conv2d", lambda: torch.nn.functional.conv2d(images, filters, padding=1)
    columns = np.zeros((x.size // x.shape[3], w[..., 0].size), np.float32)
    return "NumPy's columns @ w", lambda: columns @ w.reshape(-1, w.shape[3])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the steps from a direct convolution to the one that trains.")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--channels", type=int, default=32, help="in and out; 4 to 64, a multiple of 4")
    parser.add_argument("--size", type=int, default=16, help="rows and columns of an image")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    parser.add_argument("--no-counts", action="store_true", help="only the times")
    arguments = parser.parse_args()
    rng, now, c = np.random.default_rng(0), mr.device.current(), arguments.channels
    images = rng.standard_normal((arguments.batch, arguments.size, arguments.size, c)).astype(np.float32)
    filters = (rng.standard_normal((3, 3, c, c)) / (3 * c**0.5)).astype(np.float32)
    x, w, expected = now.to_device(images), now.to_device(filters), reference(images[:2], filters)
    y = now.empty(images.shape, np.dtype(np.float32))

    def count(name: str) -> str:
        few = now.to_device(images[: min(len(images), 8)])
        return counts(lambda: convolve(name, few, w, now.empty(few.shape, few.dtype)), 9 * c * few.size)

    print(f"{arguments.batch} images of {arguments.size} x {arguments.size} x {c}, {c} filters of 3 x 3, ", end="")
    climb(
        {name: lambda name=name: convolve(name, x, w, y) for name in STEPS},
        peer(images, filters),
        9 * c * images.size,
        lambda: abs(now.to_host(y)[:2] - expected).max(),
        arguments.repeats,
        count if now.name == "cpu" and not arguments.no_counts else None,
    )


if __name__ == "__main__":
    main()

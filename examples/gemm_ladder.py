"""The steps of gemm_ladder.cu, checked and timed beside the library of the device: NumPy's, or CuPy's on a GPU.

python examples/gemm_ladder.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ladder import climb, counts

import minires as mr

SOURCE = Path(__file__).with_suffix(".cu")
STEPS = {  # name: (rows and columns of C a block, threads of a block, whether rows run along x)
    "gemm_1_naive": ((16, 16), (16, 16), True),
    "gemm_2_coalesced": ((16, 16), (16, 16), False),
    "gemm_3_shared_tile": ((16, 16), (16, 16), False),
    "gemm_4_register_blocks": ((64, 64), (32,), False),
    "gemm_5_vector_loads": ((64, 64), (32,), False),
}


def multiply(name: str, a: Any, b: Any, c: Any) -> None:
    """c = a b by one step of the ladder, for device arrays of float32."""
    (rows, columns), block, rows_along_x = STEPS[name]
    (m, k), n = a.shape, b.shape[1]
    grid = -(-n // columns), -(-m // rows)
    kernel = mr.RawKernel(SOURCE.read_text(), name)
    kernel(grid[::-1] if rows_along_x else grid, block, (a, b, c, m, n, k))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the steps from a naive matrix product to a fast one.")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of all matrices")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    parser.add_argument(
        "--no-counts", action="store_true", help="only the times: NVRTC and AddressSanitizer do not go together"
    )
    arguments = parser.parse_args()
    rng, size, now = np.random.default_rng(0), arguments.size, mr.device.current()
    a, b, c = (now.to_device(rng.standard_normal((size, size)).astype(np.float32)) for _ in range(3))
    expected = now.to_host(a).astype(np.float64) @ now.to_host(b)

    def count(name: str) -> str:
        few = min(size, 256)
        ones = (now.to_device(np.ones((few, few), np.float32)) for _ in range(3))
        return counts(lambda: multiply(name, *ones), few**3)

    print(f"{size} x {size} matrices, ", end="")
    climb(
        {name: lambda name=name: multiply(name, a, b, c) for name in STEPS},
        ("NumPy's a @ b" if now.name == "cpu" else "CuPy's a @ b", lambda: a @ b),
        size**3,
        lambda: abs(now.to_host(c) - expected).max() / size,
        arguments.repeats,
        count if now.name == "cpu" and not arguments.no_counts else None,
    )


if __name__ == "__main__":
    main()

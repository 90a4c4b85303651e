"""The steps of gemm_ladder.cu, checked and timed beside the library of the device: NumPy's, or CuPy's on a GPU.

python examples/gemm_ladder.py
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import minires as mr
from minires.watch import occupancy

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


def counts(name: str, size: int) -> str:
    """What a GPU would do: accesses of a warp for 32 multiply-adds of it, sectors and wavefronts for them, resident warps."""
    now = mr.device.current()
    a, b, c = (now.to_device(np.ones((size, size), np.float32)) for _ in range(3))
    with mr.counters() as counted:
        multiply(name, a, b, c)
    (launch,) = counted.launches
    work = size**3 / 32 * launch.blocks_counted / launch.blocks
    of_global, of_shared = launch.total("global"), launch.total("shared")
    cells = [(of_global.requests + of_shared.requests) / work, of_global.sectors / work, of_shared.wavefronts / work]
    text = "".join(f" {value:.2f} |" for value in cells)
    if occupancy.has_nvrtc():
        gpu = occupancy.GPUS["H100"]
        used = occupancy.resources(launch.code, (name,), gpu.architecture, np.dtype(np.float32))[name]
        return f"{text} {occupancy.warps_by_resources(gpu, used, launch.threads)} |"
    return f"{text} |"


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

    runs = {name: lambda name=name: multiply(name, a, b, c) for name in STEPS}
    library = "NumPy" if now.name == "cpu" else "CuPy"
    runs[f"{library}'s a @ b"] = lambda: (a @ b) is None
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats + 1):  # the first run of each compiles, and does not count
        for name, run in runs.items():
            times[name].append(now.time(run))
            error = abs(now.to_host(c) - expected).max()
            if name in STEPS and not error < 1e-5 * size:
                raise SystemExit(f"error: {name} is wrong by {error}")

    print(f"{size} x {size} matrices, {mr.describe_device()}; medians of {arguments.repeats} runs\n")
    head = f"| step | GFLOP/s | times the step before | of {library}'s |"
    counted = now.name == "cpu" and not arguments.no_counts
    if counted:
        head += " accesses | sectors | wavefronts | warps |"
    print(f"{head}\n{'| --- ' * (head.count('|') - 1)}|")
    speeds = {name: 2 * size**3 / statistics.median(values[1:]) / 1e9 for name, values in times.items()}
    before = None
    for name, speed in speeds.items():
        gain = f"{speed / before:.2f}" if before and name in STEPS else ""
        row = f"| {name} | {speed:.2f} | {gain} | {speed / [*speeds.values()][-1]:.1%} |"
        print(row + (counts(name, min(size, 256)) if counted and name in STEPS else ""))
        before = speed
    if counted:
        print(
            "\nThe last four are of a GPU, by counting and not by measurement: accesses of a warp, sectors of global memory"
        )
        print("and wavefronts of shared memory for 32 multiply-adds; and how many warps fit an H100's multiprocessor.")


if __name__ == "__main__":
    main()

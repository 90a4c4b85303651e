"""What the two ladders share: their steps timed in turn beside a library, with a GPU's counters for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import occupancy

import minires as mr


def counts(run: Callable[[], None], multiply_adds: int) -> str:
    """What a GPU would do: accesses of a warp for 32 multiply-adds of it, sectors and wavefronts for them, resident warps."""
    with mr.counters() as counted:
        run()
    sums = np.zeros(3)
    for launch in counted.launches:
        of_global, of_shared = launch.total("global"), launch.total("shared")
        share = launch.blocks / launch.blocks_counted
        found = of_global.requests + of_shared.requests, of_global.sectors, of_shared.wavefronts
        sums += np.array(found) * share / (multiply_adds / 32)
    text = "".join(f" {value:.2f} |" for value in sums)
    if not occupancy.has_nvrtc():
        return f"{text} |"
    gpu, last = occupancy.GPUS["H100"], counted.launches[-1]
    used = occupancy.resources(last.code, (last.kernel,), gpu.architecture, np.dtype(np.float32))[last.kernel]
    return f"{text} {occupancy.warps_by_resources(gpu, used, last.threads)} |"


def climb(
    steps: dict[str, Callable[[], None]],
    library: tuple[str, Callable[[], object]],
    multiply_adds: int,
    error: Callable[[], float],
    repeats: int,
    count: Callable[[str], str] | None,
) -> None:
    """Print the table of the ladder. `error()` is what the last step has wrong; `count(name)` gives a step's counters."""
    now, runs = mr.device.current(), {**steps, library[0]: library[1]}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):  # the first run of each compiles, and does not count
        for name, run in runs.items():
            run()  # uncounted: the threads of the one before still look out for work on our cores
            times[name].append(now.time(run))
            if name in steps and not error() < 1e-4:
                raise SystemExit(f"error: {name} is wrong by {error()}")
    print(f"{mr.describe_device()}; medians of {repeats} runs\n")
    head = f"| step | GFLOP/s | times the step before | of {library[0]} |"
    head += " accesses | sectors | wavefronts | warps |" if count else ""
    print(f"{head}\n{'| --- ' * (head.count('|') - 1)}|")
    speeds = {name: 2 * multiply_adds / statistics.median(values[1:]) / 1e9 for name, values in times.items()}
    before = None
    for name, speed in speeds.items():
        gain = f"{speed / before:.2f}" if before and name in steps else ""
        row = f"| {name} | {speed:.2f} | {gain} | {speed / speeds[library[0]]:.1%} |"
        print(row + (count(name) if count and name in steps else ""))
        before = speed
    if count:
        print("\nThe last four are of a GPU, by counting and not by measurement: accesses of a warp, sectors of global memory")
        print("and wavefronts of shared memory for 32 multiply-adds; and how many warps fit an H100's multiprocessor.")

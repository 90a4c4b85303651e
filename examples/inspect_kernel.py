"""What a GPU would do with a kernel, without a GPU: its source with counts beside each line that touches memory.

    python examples/inspect_kernel.py conv3x3 --layer 2              a kernel, at the shapes of a stage of ResNet-20
    python examples/inspect_kernel.py conv3x3 --html page.html       as a page that shows lanes, sectors and banks
    python examples/inspect_kernel.py --step --batch 128             every launch of a training step
    python examples/inspect_kernel.py --file mine.cu "scale<float>" --grid 4 --block 128 --arg x=arange:512:float32 ...

Counts are of requests, lanes, sectors and wavefronts, as Nsight Compute has them (see mr.counters). With NVRTC installed,
also registers, spills and resident warps on four GPUs. Times are floors from published figures: at least so long.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import occupancy
from instructions import Loop, executed_loop, machine_loop, nvdisasm
from run_kernel import add_launch_options, launch_of, read_kernels

import minires as mr
from minires.device.source import named
from minires.table import Table
from minires.watch import display
from minires.watch.accesses import Launch

STAGES = {0: (3, 16, 32, 1), 1: (16, 16, 32, 1), 2: (16, 32, 32, 2), 3: (32, 64, 16, 2)}  # channels in, out; size; stride


def training_step(batch: int) -> Callable[[], None]:
    """One step of ResNet-20, from the images of a loader to the optimiser's update."""
    net, data = mr.resnet.resnet20(), mr.cifar.synthetic(batch, 10).train
    optimizer = mr.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    loader = mr.cifar.Loader(data, batch, train=True)

    def step() -> None:
        for x, labels in loader:
            logits = net(x)
            mr.functional.cross_entropy(logits, labels).backward()
            mr.functional.count_correct(logits, labels)
            optimizer.step()

    return step


def stage_step(stage: int, batch: int) -> Callable[[], None]:
    """Forward and backward of the blocks that a stage of ResNet-20 is made of; stage 0 is the first convolution."""
    c, o, size, stride = STAGES[stage]
    x = mr.Tensor(np.random.default_rng(0).standard_normal((batch, size, size, c)).astype(np.float32), requires_grad=True)
    if stage == 0:
        blocks = [mr.nn.Conv2d(c, o, 3, padding=1), mr.nn.BatchNorm2d(o)]
    else:
        blocks = [mr.resnet.BasicBlock(c, o, stride), mr.resnet.BasicBlock(o, o)]

    def step() -> None:
        y = mr.nn.Sequential(*blocks)(x)
        y.backward(np.ones(y.shape, np.float32))

    return step


def flops(launch: Launch) -> int:
    """Of arithmetic that a launch of a kernel of kernels/ does; a rough count a value where that hardly matters."""
    a, base = launch.arguments, launch.kernel.split("<")[0]
    if base in ("conv3x3", "conv3x3_weight", "conv3x3_strided_gradient"):  # nine taps a pair of channels and pixel of y
        filters = a["w"] if base == "conv3x3" else a["parts"][1:] if base == "conv3x3_weight" else a["turned"]
        pixels = a["y"] if base == "conv3x3" else a["dy"]
        return 2 * int(np.prod(filters)) * int(np.prod(pixels[:3]))
    if base.startswith("gemm"):
        return 2 * a["M"] * a["N"] * a["K"]
    largest = max((int(np.prod(v)) for v in a.values() if isinstance(v, tuple)), default=0)
    return largest * (10 if base.startswith("batchnorm") else 2)


def scaled(launch: Launch, space: str) -> dict[str, int]:
    """The sums of the blocks that were counted, for all blocks."""
    total, share = launch.total(space), launch.blocks / launch.blocks_counted
    names = "requests", "lanes", total.unit, f"{total.unit}_least"
    return {name: round(getattr(total, name) * share) for name in names}


def on_gpus(launch: Launch, beside: tuple[str, ...] = ()) -> dict[str, dict]:
    """What NVRTC says of the kernel for each GPU, how many of its warps fit, and the floors of its time.

    `beside` are all kernels of its source that will be asked for: they are then compiled together.
    """
    if not occupancy.has_nvrtc():
        return {}
    found, counted = {}, {space: scaled(launch, space) for space in ("global", "shared")}
    names, scalar = beside or (launch.kernel,), np.dtype(launch.scalar)
    for name, gpu in occupancy.GPUS.items():
        used = occupancy.resources(launch.code, names, gpu.architecture, scalar)[launch.kernel]
        warps = occupancy.warps_by_resources(gpu, used, launch.threads, launch.shared_mem)
        floors = occupancy.floors(
            gpu, flops(launch), launch.array_bytes, counted["global"]["sectors"], counted["shared"]["wavefronts"]
        )
        found[name] = dataclasses.asdict(used) | {
            "warps_by_resources": warps,
            "warps_at_grid": occupancy.warps_at_grid(gpu, warps, launch.threads, launch.blocks),
            "waves": occupancy.waves(gpu, warps, launch.threads, launch.blocks),
            "floor_us": max(floors.values()),
            "floors_us": floors,
        }
    return found


# ---------------------------------------------------------------------------------------------------------------------
# A training step


def step_report(batch: int) -> dict:
    """The launches of a training step, those of one kernel, geometry and shapes as one with their count."""
    step = training_step(batch)
    with mr.counters() as counted:
        step()
    groups: dict[tuple, list[Launch]] = {}
    kernels: dict[str, set[str]] = {}  # of each source
    for launch in counted.launches:
        kernels.setdefault(launch.code, set()).add(launch.kernel)
        shapes = tuple(v for v in launch.arguments.values() if isinstance(v, tuple))
        groups.setdefault((launch.kernel, launch.grid, launch.block, shapes), []).append(launch)
    rows = []
    for (kernel, grid, block, _), launches in groups.items():
        one = launches[0]
        counts = {space: scaled(one, space) for space in ("global", "shared")}
        geometry = {"kernel": kernel, "grid": grid, "block": block, "count": len(launches)}
        gpus = on_gpus(one, tuple(sorted(kernels[one.code])))
        geometry["words"] = (
            sum(a.lanes * a.bytes // 4 for a in one.accesses if a.kind == "load") * one.blocks // one.blocks_counted
        )
        rows.append(geometry | {"flops": flops(one), "blocks_counted": one.blocks_counted} | counts | {"gpus": gpus})
    return {"batch": batch, "launches": rows}


def ratio(counts: dict[str, int], over: str, under: str) -> str:
    return f"{counts[over] / counts[under]:.2f}" if counts.get(under) else ""


def step_table(report: dict) -> str:
    head = f"{'grid':>16}{'block':>10}{'count':>6}{'lanes':>6}{'sectors':>8}{'wavefr.':>8}{'MFLOP':>8}"
    gpus = list(report["launches"][0]["gpus"])
    head += "".join(f"{name + ' regs, warps, >= us':>28}" for name in gpus) + "  kernel"
    lines = [head]
    for row in report["launches"]:
        requests = row["global"]["requests"] + row["shared"]["requests"]
        lanes = (row["global"]["lanes"] + row["shared"]["lanes"]) / max(requests, 1)
        line = f"{'x'.join(map(str, row['grid'])):>16}{'x'.join(map(str, row['block'])):>10}"
        line += f"{row['count']:6}{lanes:6.1f}{ratio(row['global'], 'sectors', 'sectors_least'):>8}"
        line += f"{ratio(row['shared'], 'wavefronts', 'wavefronts_least'):>8}{row['flops'] / 1e6:8.1f}"
        for gpu in row["gpus"].values():
            line += f"{gpu['registers']:12} {gpu['warps_at_grid']:7.1f} {gpu['floor_us']:7.1f}"
        lines.append(f"{line}  {named(row['kernel'])}")
    launches = sum(row["count"] for row in report["launches"])
    total = sum(row["count"] * row["flops"] for row in report["launches"])
    lines.append(f"{launches} launches, {total / 1e9:.2f} GFLOP")
    for name in gpus:
        floor = sum(row["count"] * row["gpus"][name]["floor_us"] for row in report["launches"])
        lines.append(f"{name}: at least {floor / 1e3:.2f} ms, by published figures and not by measurement")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# A kernel's source


def busiest_loops(launch: Launch, run: Callable[[], None], gpu: str) -> list[Loop]:
    """Of the kernel's PTX, executed, and of a GPU's machine code, as far as NVIDIA's programs are installed."""
    if not occupancy.has_nvrtc():
        return []
    architecture = occupancy.GPUS[gpu].architecture
    loops = [executed_loop(run, launch.kernel, architecture)]
    if nvdisasm():
        loops.append(machine_loop(launch.code, launch.kernel, architecture, np.dtype(launch.scalar)))
    return [loop for loop in loops if loop]


@dataclass
class Inspection:
    """A launch, what NVRTC says of it for each GPU, and its busiest loops. str() is a listing; a notebook shows the page."""

    launch: Launch
    gpus: dict[str, dict]
    loops: list[Loop]

    def __repr__(self) -> str:
        launch = self.launch
        lines = [
            f"{named(launch.kernel, launch.code)}, grid {launch.grid}, block {launch.block}: "
            f"{launch.blocks_counted} blocks of {launch.blocks} counted"
        ]
        shown = None
        for file, number, text, accesses in display.shown_lines(launch):
            lines += [f"\n{file}"] * (file != shown)
            notes, shown = [display.words(a) for a in accesses], file
            lines.append(f"{number:5} {text[:92]:92}  {notes[0] if notes else ''}".rstrip())
            lines += [f"{'':100}{note}" for note in notes[1:]]
        for name, gpu in self.gpus.items():
            lines.append(
                f"{name}: {gpu['registers']} registers, {gpu['spill_bytes']} bytes spilled, {gpu['warps_by_resources']} warps "
                f"a multiprocessor by resources, {gpu['warps_at_grid']:.1f} at this grid; at least {gpu['floor_us']:.1f} us"
            )
        return "\n".join([*lines, *map(str, self.loops)])

    def _repr_html_(self) -> str:
        launch, totals = self.launch, [self.launch.total("global"), self.launch.total("shared")]
        sums = [
            [f"{t.requests}", f"{t.lanes / t.requests:.1f}", f"{t.cost}", f"{t.cost_least}", f"{t.unit} ({t.space} memory)"]
            for t in totals
            if t.requests
        ]
        gpus = [
            [f"{g['registers']}", f"{g['spill_bytes']}", f"{g['shared_bytes']}", f"{g['warps_by_resources']}",
             f"{g['warps_at_grid']:.1f}", f"{g['waves']:.2f}", f"{g['floor_us']:.1f} \N{MICRO SIGN}s", name]
            for name, g in self.gpus.items()
        ]  # fmt: skip
        head = ["registers", "spilled bytes", "shared bytes", "warps by resources", "warps at this grid", "waves"]
        tables = Table(["requests", "lanes of 32", "cost", "least", "in"], sums)._repr_html_()
        tables += Table([*head, "at least, by published figures", "GPU"], gpus)._repr_html_() if gpus else ""
        loops = escape("\n".join(map(str, self.loops)))
        return f"{display.STYLE}{tables}{display.launch_html(launch, requests=4)}<pre>{loops}</pre>"

    def page(self) -> str:
        """A page of its own, which needs no network."""
        template = string.Template((Path(__file__).parent / "inspect_kernel.html").read_text())
        return template.substitute(title=display.heading(self.launch), body=self._repr_html_())


def inspect(kernel: str, run: Callable[[], None], blocks: int = 4, gpu: str = "H100") -> Inspection:
    """Of the launches of `kernel` in run() the one with the most arithmetic. A notebook shows it as the page does.

    `blocks` of it are counted; `gpu`, of occupancy.GPUS, is whose instructions are shown. Raises ValueError where run() does
    not launch it.
    """
    with mr.counters(blocks) as counted:
        run()
    found = [launch for launch in counted.launches if kernel in (launch.kernel, launch.kernel.split("<")[0])]
    if not found:
        names = ", ".join(dict.fromkeys(launch.kernel for launch in counted.launches))
        raise ValueError(f"{kernel!r} is not launched there; launched are {names}")
    launch = max(found, key=flops)
    return Inspection(launch, on_gpus(launch), busiest_loops(launch, run, gpu))


def main() -> None:
    parser = argparse.ArgumentParser(description="Show what a GPU would do with a kernel, without a GPU.")
    parser.add_argument("kernel", nargs="?", help="of kernels/, or of --file")
    parser.add_argument("--layer", type=int, choices=STAGES, default=1, help="stage of ResNet-20; 0 is the first convolution")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4, help="how many blocks of a launch are counted")
    parser.add_argument("--gpu", choices=occupancy.GPUS, default="H100", help="whose instructions are shown")
    parser.add_argument("--step", action="store_true", help="every launch of a training step")
    parser.add_argument("--json", help="write the step's launches to this file")
    parser.add_argument("--html", help="write the page to this file")
    parser.add_argument("--file", help="a CUDA file of yours; then --grid, --block and --arg as in run_kernel.py")
    add_launch_options(parser, required=False)
    arguments = parser.parse_args()
    if not arguments.step and not arguments.kernel:
        parser.error("name a kernel, or give --step")
    if arguments.file and not (arguments.grid and arguments.block):
        parser.error("--file needs --grid and --block")
    mr.set_device("cpu")
    if arguments.step:
        report = step_report(arguments.batch)
        print(step_table(report))
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(report, indent=1))
        return
    if arguments.file:
        run = launch_of(read_kernels(arguments.file), arguments.kernel, arguments)[0]
    else:
        run = stage_step(arguments.layer, arguments.batch)
    inspection = inspect(arguments.kernel, run, arguments.blocks, arguments.gpu)
    if arguments.html:
        Path(arguments.html).write_text(inspection.page(), encoding="utf-8")
        print(f"written: {arguments.html}")
    else:
        print(inspection)


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, OSError, UnicodeDecodeError, ValueError, TypeError) as e:
        sys.exit(f"error: {e}")

"""Everything that only a GPU can tell, in one command, for whoever has one:

    python tests/gpu_check.py --data-dir DIR --out DIR                 in 9 minutes; more with --minutes
    python tests/gpu_check.py --only sanitizer --out DIR               NVIDIA's compute-sanitizer alone
    python tests/gpu_check.py --rehearse --out DIR                     every part in small, to see that all of it runs

In order, each part under a time limit of its own: the machine; the whole test suite on the GPU; compute-sanitizer
(memcheck, racecheck, initcheck, synccheck) over the kernels' tests; ncu over a training step, its counters beside ours
(counters.md); the benchmark beside PyTorch, and the GEMM ladder;
the `fast` recipe on real CIFAR-10 from DIR; and the `paper` recipe, with one seed after another while time is left.
Writes report.md and report.json to --out after every part, so that a run that is cut off keeps what it had.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import limited  # noqa: E402

import minires as mr  # noqa: E402

TESTS = ROOT / "tests"
KERNEL_TESTS = [str(TESTS / f"test_{p.stem}.py") for p in sorted((ROOT / "kernels").glob("*.cu"))]
LIMITS = {
    "machine": 20,
    "suite": 150,
    "sanitizer": 40,
    "counters": 60,
    "benchmark": 90,
    "fast": 120,
    "paper": 540,
}  # seconds, a command
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def run(command: list[str], limit: float, **environment: str) -> dict:
    """The command's exit status ("timeout" past `limit` seconds), seconds and the end of what it printed."""
    began = time.perf_counter()
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    status, output = limited.run(command, limit, {"PYTHONPATH": path, "MINIRES_DEVICE": "cuda", **environment})
    return {
        "command": " ".join(command),
        "status": status,
        "seconds": round(time.perf_counter() - began, 1),
        "output": output[-3000:],
    }


def machine(arguments: argparse.Namespace) -> list[dict]:
    code = (
        "import cupy, minires as mr; mr.set_device('cuda'); print(mr.describe_device()); "
        "print('driver', cupy.cuda.runtime.driverGetVersion(), 'runtime', cupy.cuda.runtime.runtimeGetVersion())"
    )
    print(f"Python {platform.python_version()}, {platform.platform()}")
    return [run([sys.executable, "-c", code], arguments.limit()), run(["nvidia-smi"], arguments.limit())]


def suite(arguments: argparse.Namespace) -> list[dict]:
    tests = str(TESTS / "test_relu.py") if arguments.rehearse else str(TESTS)
    return [run([*PYTEST, "-n", "0", tests], arguments.limit(), MINIRES_DATA=arguments.data_dir)]


def sanitizer(arguments: argparse.Namespace) -> list[dict]:
    """The float tests in one process: every launch is slow here."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    tests = [*PYTEST, "-n", "0", "--no-pool", "-k", "float", *KERNEL_TESTS]
    return [run([program, "--tool", tool, "--error-exitcode", "9", *tests], arguments.limit()) for tool in TOOLS]


METRICS = {  # of Nsight Compute, and what we call them
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum": "sectors",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum": "sectors",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "wavefronts",
    "launch__registers_per_thread": "registers",
    "sm__warps_active.avg.per_cycle_active": "warps",
}


def counters(arguments: argparse.Namespace) -> list[dict]:
    """What ncu counts in a training step, beside what is counted without a GPU."""
    batch, out, examples = "1" if arguments.rehearse else "128", Path(arguments.out), str(ROOT / "examples")
    ours = [sys.executable, f"{examples}/inspect_kernel.py", "--step", "--batch", batch, "--json", str(out / "ours.json")]
    results = [run(ours, arguments.limit())]
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    code = f"import sys; sys.path.insert(0, {examples!r}); import inspect_kernel as i; i.training_step({batch})()"
    options = ["--csv", "--page", "raw", "--log-file", str(out / "ncu.csv"), "--metrics", ",".join(METRICS)]
    if Path(program).exists():
        results.append(run([program, *options, sys.executable, "-c", code], arguments.limit()))
        (out / "counters.md").write_text(beside(json.loads((out / "ours.json").read_text()), (out / "ncu.csv").read_text()))
    return results


def beside(ours: dict, log: str) -> str:
    """A table, a row a kernel: sectors and wavefronts of all its launches, registers and resident warps; theirs, ours."""
    rows = list(csv.DictReader(line for line in log.splitlines() if line.startswith('"')))
    theirs: dict[str, dict[str, float]] = {}
    for row in (row for row in rows if row["ID"]):  # the second line has the units
        name = re.match(r"(?:void )?(\w+)", row["Kernel Name"])[1]
        sums = theirs.setdefault(name, dict.fromkeys(METRICS.values(), 0.0))
        for metric, what in METRICS.items():
            value = float(row[metric].replace(",", ""))
            sums[what] = sums[what] + value if what in ("sectors", "wavefronts") else max(sums[what], value)
    lines = ["| kernel | sectors | ours | wavefronts | ours | registers | ours | warps | ours |", "|---" * 9 + "|"]
    for name, sums in theirs.items():
        of_kernel = [r for r in ours["launches"] if r["kernel"].split("<")[0] == name]
        h100 = [r["gpus"]["H100"] for r in of_kernel if "H100" in r["gpus"]]
        own = {
            "sectors": sum(r["count"] * r["global"]["sectors"] for r in of_kernel),
            "wavefronts": sum(r["count"] * r["shared"]["wavefronts"] for r in of_kernel),
            "registers": max((g["registers"] for g in h100), default=0),
            "warps": max((g["warps_at_grid"] for g in h100), default=0),
        }
        lines.append(f"| {name} | " + " | ".join(f"{sums[k]:.0f} | {own[k]:.0f}" for k in own) + " |")
    return "\n".join(lines) + "\n"


def benchmark(arguments: argparse.Namespace) -> list[dict]:
    examples, out = ROOT / "examples", str(Path(arguments.out) / "benchmark")
    steps = [sys.executable, str(examples / "benchmark.py"), "--device", "cuda", "--out", out]
    ladder = [sys.executable, str(examples / "gemm_ladder.py"), "--size", "64" if arguments.rehearse else "4096"]
    if arguments.rehearse:
        steps += ["--batch-sizes", "1", "--repeats", "1"]
    return [run(steps, arguments.limit()), run(ladder, arguments.limit())]


def train(arguments: argparse.Namespace, recipe: str, seed: int = 0) -> dict:
    script = str(ROOT / "examples" / "train_cifar.py")
    data = ["--device", "cuda", "--dataset", "cifar10", "--data-dir", arguments.data_dir, "--seed", str(seed)]
    if arguments.rehearse:
        data[data.index("cifar10")] = "synthetic"
        data += ["--epochs", "1", "--train-size", "6", "--test-size", "2", "--batch-size", "2"]
    out = Path(arguments.out) / f"{recipe}-seed{seed}"
    result = run([sys.executable, script, *data, "--recipe", recipe, "--out", str(out)], arguments.limit())
    metrics = out / "metrics.jsonl"
    if metrics.exists():
        result["metrics"] = [json.loads(line) for line in metrics.read_text().splitlines()[1:]]  # after the command
    return result


def paper(arguments: argparse.Namespace) -> list[dict]:
    results = [train(arguments, "paper")]
    while results[-1]["status"] == "0" and arguments.limit() > results[-1]["seconds"] and not arguments.rehearse:
        results.append(train(arguments, "paper", len(results)))
    return results


PARTS = {
    "machine": machine,
    "suite": suite,
    "sanitizer": sanitizer,
    "counters": counters,
    "benchmark": benchmark,
    "fast": lambda arguments: [train(arguments, "fast")],
    "paper": paper,
}


def write(report: dict, out: Path) -> None:
    (out / "report.json").write_text(json.dumps(report, indent=1))
    lines = ["# minires on a GPU\n"]
    for part, results in report.items():
        lines.append(f"## {part}\n")
        for result in results:
            lines.append(f"`{result['command']}`: exit status {result['status']}, {result['seconds']} s\n")
            if "metrics" in result:
                last = result["metrics"][-1]
                best = max(r["test_accuracy"] for r in result["metrics"])
                lines.append(
                    f"epoch {last['epoch']}: test accuracy {last['test_accuracy']:.2%}, best {best:.2%}, "
                    f"{last['images_per_second']:.0f} images/s\n"
                )
            lines.append("```\n" + "\n".join(result["output"].strip().splitlines()[-25:]) + "\n```\n")
    (out / "report.md").write_text("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description="Check minires on a GPU and write a report.")
    parser.add_argument("--data-dir", default=os.environ.get("MINIRES_DATA", "data"), help="holds cifar-10-batches-bin/")
    parser.add_argument("--out", required=True, help="a folder for the report")
    parser.add_argument("--rehearse", action="store_true", help="a few images, the smallest sizes")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together; their limits grow with it")
    arguments = parser.parse_args()
    arguments.data_dir = str(Path(arguments.data_dir).resolve())
    try:
        mr.set_device("cuda")
    except mr.DeviceError as error:
        sys.exit(f"error: {error}")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    report: dict[str, list[dict]] = {}
    for name in [n for n in PARTS if n in arguments.only and n not in arguments.skip]:
        own = LIMITS[name] * arguments.minutes / 9
        arguments.limit = lambda own=own: max(min(own, end - time.monotonic()), 1)
        report[name] = PARTS[name](arguments)
        write(report, out)
        print(f"{name}: " + ", ".join(f"{r['status']} ({r['seconds']} s)" for r in report[name]), flush=True)
    return 0 if all(r["status"] == "0" for results in report.values() for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How fast: each kernel at ResNet-20's shapes, and whole training steps beside PyTorch.

    python examples/benchmark.py                      on the current device, beside PyTorch where it is installed
    python examples/benchmark.py --out results/mine   also writes report.md, report.json, kernels.png and roofline.png

Times are medians of runs that take turns, so that a change of the machine's speed meets all alike. The roofline, a copy
for GB/s and multiply-adds for GFLOP/s, is measured in the same run, by kernels: on a CPU it is what its compiler makes
of CUDA C++, and below what the cores can do.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minires as mr

ROOFLINE = """
extern "C" __global__ void copy(const float* __restrict__ x, float* __restrict__ y, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
extern "C" __global__ void multiply_add(float* __restrict__ x, int rounds) {
    constexpr int CHAINS = 16, LANES = 16;  // independent sums, that the latency of one does not count
    float sum[CHAINS][LANES];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    for (int c = 0; c < CHAINS; ++c)
        for (int j = 0; j < LANES; ++j) sum[c][j] = x[i] + c * LANES + j;
    for (int r = 0; r < rounds; ++r)
#pragma unroll
        for (int c = 0; c < CHAINS; ++c)
            for (int j = 0; j < LANES; ++j) sum[c][j] = sum[c][j] * 0.999f + 0.001f;
    float totals[LANES] = {}, total = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; ++c)
        for (int j = 0; j < LANES; ++j) totals[j] += sum[c][j];
    for (int j = 0; j < LANES; ++j) total += totals[j];
    x[i] = total;
}
"""
CONVOLUTIONS = ((3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2), (32, 32, 16, 1), (32, 64, 16, 2), (64, 64, 8, 1))


def seconds(run: Callable[[], None]) -> float:
    return mr.device.current().time(run)


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def roofline(repeats: int) -> dict[str, float]:
    """GB/s of a copy of 256 MB, of 8 MB where it is done only once, and GFLOP/s of multiply-adds in registers."""
    n, threads, rounds = 2**25 if repeats > 1 else 2**20, 2**16, 500
    x, y = mr.Tensor(np.zeros(n, np.float32)).data, mr.device.current().empty((n,), np.float32)
    copy, multiply_add = (mr.RawKernel(ROOFLINE, name) for name in ("copy", "multiply_add"))
    copying = [seconds(lambda: copy((n // 256,), (256,), (x, y, n))) for _ in range(repeats)]
    adding = [seconds(lambda: multiply_add((threads // 64,), (64,), (x, rounds))) for _ in range(repeats)]
    return {"gb_per_s": 8 * n / min(copying) / 1e9, "gflop_per_s": 2 * 256 * threads * rounds / min(adding) / 1e9}


def forward_and_backward(x: mr.Tensor, w: mr.Tensor, dy: mr.Tensor, stride: int, algorithm: str) -> None:
    mr.functional.conv2d(x, w, None, stride, 1, algorithm).backward(dy)


def convolution_kernels(batch: int, repeats: int) -> list[dict]:
    """Forward and both gradients of ResNet-20's convolutions, by the readable and the fast kernels."""
    rows = []
    for c, o, size, stride in CONVOLUTIONS:
        rng = np.random.default_rng(0)
        x = mr.Tensor(rng.standard_normal((batch, size, size, c)).astype(np.float32), requires_grad=True)
        w = mr.Tensor(rng.standard_normal((3, 3, c, o)).astype(np.float32), requires_grad=True)
        dy = mr.Tensor(rng.standard_normal((batch, size // stride, size // stride, o)).astype(np.float32))
        flops = 3 * 2 * batch * o * c * 9 * (size // stride) ** 2
        times: dict[str, list[float]] = {"im2col": [], "auto": []}
        for algorithm in [*times] * (repeats + 1):
            x.grad = w.grad = None

            run = functools.partial(forward_and_backward, x, w, dy, stride, algorithm)
            times[algorithm].append(seconds(run))
        readable, fast = (median(t[1:]) for t in times.values())
        rows.append(
            {
                "layer": f"{c} to {o} channels, {size} x {size}, stride {stride}",
                "readable_ms": readable * 1e3,
                "fast_ms": fast * 1e3,
                "fast_gflop_per_s": flops / fast / 1e9,
                "gain": readable / fast,
            }
        )
    return rows


def other_kernels(batch: int) -> list[dict]:
    """All kernels of three training steps of ResNet-20, by time."""
    step = minires_step(batch, wrap=lambda function: function)  # a recorded step would launch nothing one by one
    step()
    with mr.profile() as profile:
        for _ in range(3):
            step()
    rows = [
        {"kernel": name, "launches": k.launches // 3, "ms": k.seconds / 3 * 1e3, "gb_per_s": k.bytes / k.seconds / 1e9}
        for name, k in profile.kernels.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def kernels_of_the_tour(batch: int) -> tuple[list[Callable[[], None]], dict[str, int]]:
    """Runs of the kernels that kernels/README.md presents, at sizes of ResNet-20, and their FLOPs a launch."""
    rng, functional = np.random.default_rng(0), mr.functional

    def tensor(*shape: int, grad: bool = True) -> mr.Tensor:
        return mr.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=grad)

    x, w, dy = tensor(batch, 32, 32, 16), tensor(3, 3, 16, 16), tensor(batch, 32, 32, 16, grad=False)
    last, norm, logits = tensor(batch, 8, 8, 64), mr.nn.BatchNorm2d(16), tensor(batch, 10)
    pooled_dy, labels = tensor(batch, 1, 1, 64, grad=False), rng.integers(0, 10, batch)
    parameters = mr.resnet.resnet20().parameters()
    for p in parameters:
        p.grad = p.detach()
    optimizer = mr.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-4)
    images = mr.cifar.synthetic(batch, 1).train
    m, k, o = 1024 * batch, 144, 16  # columns times filters
    runs = [
        lambda: functional.relu(x).backward(dy),
        lambda: functional.add(x, x).backward(dy),
        optimizer.step,
        lambda: functional.avg_pool2d(last, 8).backward(pooled_dy),
        lambda: next(iter(mr.cifar.Loader(images, batch, train=True))),
        lambda: norm(x).backward(dy),
        lambda: norm.relu(x).backward(dy),
        lambda: functional.cross_entropy(logits, labels).backward(),
        lambda: functional.conv2d(x, w, None, 1, 1, "im2col").backward(dy),
        lambda: functional.conv2d(x, w, None, 1, 1).backward(dy),
    ]
    n, convolution = batch * 16 * 32 * 32, 2 * batch * 16 * 16 * 9 * 32 * 32
    run = mr.tiles.run(16, np.dtype(np.float32))
    element = {"relu_forward": 1, "relu_backward": 1, "add_forward": 1, f"im2col<{run}>": 0, f"col2im<{run}>": 9}

    def columns(kernel: str, *options: bool) -> str:
        return mr.tiles.columns(batch * 1024, 16, f"batchnorm_{kernel}", *options)[0]

    element |= {columns("chunk_statistics"): 4, columns("forward", False, False): 3, columns("forward", True, False): 4}
    element |= {columns("chunk_sums", True, False): 5, columns("backward", True): 6}
    flops = {name: k * n for name, k in element.items()}
    pooled = f"avgpool_{{}}<{mr.tiles.run(64, np.dtype(np.float32))}>"
    flops |= {
        mr.tiles.sgd(59, 36_864)[0]: 6 * 269_722,
        pooled.format("forward"): batch * 64 * 64,
        pooled.format("backward"): batch * 64 * 64,
    }
    flops |= {"augment": 3 * batch * 3 * 32 * 32, "cross_entropy_forward": 6 * 10 * batch}
    products = [mr.tiles.gemm(m, o, k, False)[0], mr.tiles.gemm(m, k, o, False)[0]]
    products += [mr.tiles.gemm(k, o, m, True)[0]]
    shape = batch, 16, 16, (32, 32), 1, np.dtype(np.float32)
    products += [mr.tiles.conv(*shape, False, False)[0], mr.tiles.weight(*shape)[0]]
    return runs, flops | dict.fromkeys(products, convolution)


def places_on_the_roofline(batch: int, repeats: int, peak: dict[str, float]) -> list[dict]:
    """Where each kernel stands: the time that its bytes or FLOPs need at the least, against the time that it took."""
    runs, flops = kernels_of_the_tour(batch)
    for run in runs:
        run()
    with mr.profile() as profile:
        for run in runs * repeats:
            run()
    rows = []
    for name, count in flops.items():
        k = profile.kernels[name]
        seconds_each, bytes_each = k.seconds / k.launches, k.bytes / k.launches
        memory, arithmetic = bytes_each / peak["gb_per_s"] / 1e9, count / peak["gflop_per_s"] / 1e9
        rows.append(
            {
                "kernel": name,
                "ms": seconds_each * 1e3,
                "flop_per_byte": count / bytes_each,
                "gb_per_s": bytes_each / seconds_each / 1e9,
                "gflop_per_s": count / seconds_each / 1e9,
                "limit": "memory" if memory > arithmetic else "arithmetic",
                "of_roof": f"{max(memory, arithmetic) / seconds_each:.0%}",
            }
        )
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps: functions that train, or evaluate, on one batch


def batch_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, size)


def minires_step(batch: int, train: bool = True, wrap: Callable = mr.graph) -> Callable[[], None]:
    images, labels = batch_of(batch)
    net, x = mr.resnet.resnet20().train(train), mr.Tensor(images)
    labels = mr.device.current().to_device(labels.astype(np.int32))
    optimizer = mr.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def train_on(x: mr.Tensor, labels: Any) -> mr.Tensor:
        loss = mr.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def evaluate(x: mr.Tensor, labels: Any) -> mr.Tensor:
        with mr.no_grad():
            return net(x)

    run = wrap(train_on if train else evaluate)

    def step() -> None:
        run(x, labels)
        mr.device.current().synchronize()

    return step


def torch_steps(batch: int, train: bool = True) -> dict[str, Callable[[], None]]:
    """The same in PyTorch: eager and compiled, channels first and last, and on a GPU in bfloat16 too."""
    import torch

    device = mr.get_device()
    if device == "cpu":
        torch.set_num_threads(mr.device.current().threads)
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    variants = ["eager", "channels-last", "compiled", "compiled channels-last"] + (["bfloat16"] if device == "cuda" else [])
    return {name: _torch_step(torch, device, name, batch, train) for name in variants}


def _torch_step(torch, device: str, variant: str, batch: int, train: bool) -> Callable[[], None]:
    from pytorch_weights import TorchResNet

    layout = torch.contiguous_format if variant in ("eager", "compiled") else torch.channels_last
    net = TorchResNet().train(train).to(device, memory_format=layout)
    images, labels = (torch.from_numpy(a).to(device) for a in batch_of(batch))
    x = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    forward = (
        torch.compile(net, mode="reduce-overhead" if device == "cuda" else None) if variant.startswith("compiled") else net
    )

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=variant == "bfloat16"), torch.set_grad_enabled(train):
            logits = forward(x)
            loss = torch.nn.functional.cross_entropy(logits, labels) if train else None
        if train:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def torch_is_usable() -> bool:
    """Whether PyTorch is there, and on a GPU one that was built for it."""
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return mr.get_device() == "cpu" or torch.cuda.is_available()


def compare(batch: int, train: bool, repeats: int) -> list[dict]:
    """Images per second of minires and of PyTorch's variants, a run of each in turn."""
    steps = {"minires": minires_step(batch, train)}
    if torch_is_usable():
        steps |= {f"PyTorch {name}": step for name, step in torch_steps(batch, train).items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 3):  # three runs that are not counted: what is compiled or recorded is done then
        for name, step in steps.items():
            step()  # uncounted: the threads of the one before still look out for work on our cores
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    rows = []
    for name, values in times.items():
        ratios = [other / own for own, other in zip(times["minires"][3:], values[3:], strict=True)]
        rows.append(
            {
                "what": f"{'training' if train else 'evaluation'}, batch {batch}",
                "who": name,
                "images_per_s": batch / median(values[3:]),
                "minires_is_faster_by": median(ratios),
                "spread": spread(ratios),
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    def cell(value: object) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    return "\n".join(f"| {line} |" for line in lines + [" | ".join(map(cell, row.values())) for row in rows])


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_convolutions(report: dict, path: Path) -> None:
    rows = report["convolutions"]
    figure, axes = pyplot().subplots(figsize=(9, 3.5), layout="constrained")
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [r["readable_ms"] for r in rows], 0.4, label="readable: im2col and GEMM")
    axes.barh(places + 0.2, [r["fast_ms"] for r in rows], 0.4, label="fast: without the columns")
    axes.set(yticks=places, yticklabels=[r["layer"] for r in rows], xlabel="ms, forward and both gradients")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_roofline(report: dict, path: Path) -> None:
    figure, axes = pyplot().subplots(figsize=(9, 6), layout="constrained")
    peak, rows = report["roofline"], [row for row in report["places"] if row["flop_per_byte"]]
    intensity = np.geomspace(0.02, 200, 200)
    axes.loglog(intensity, np.minimum(intensity * peak["gb_per_s"], peak["gflop_per_s"]), color="black")
    for row in rows:
        axes.plot(row["flop_per_byte"], row["gflop_per_s"], "o", color="tab:blue")
        place = row["flop_per_byte"], row["gflop_per_s"]
        axes.annotate(row["kernel"], place, xytext=(5, -3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="FLOP a byte", ylabel="GFLOP/s", title=f"Roofline, {report['device']}")
    figure.savefig(path, dpi=120)


def versions() -> str:
    names = [f"Python {platform.python_version()}", f"NumPy {np.__version__}", f"minires {mr.__version__}"]
    if importlib.util.find_spec("torch"):
        import torch

        names.append(f"PyTorch {torch.__version__}")
    return ", ".join(names)


def peak_memory_gb() -> float | None:
    """Of this process, so far; None where the system does not tell."""
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the kernels, and training beside PyTorch.")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="a folder for report.md, report.json and kernels.png")
    arguments = parser.parse_args()
    if arguments.device != "auto":
        mr.set_device(arguments.device)
    first = arguments.batch_sizes[0]
    report: dict = {"device": mr.describe_device(), "cores": os.cpu_count()}
    report["kernels"] = other_kernels(first)
    report["peak_memory_gb"] = peak_memory_gb()
    report["versions"] = versions()  # imports PyTorch
    report["roofline"] = roofline(arguments.repeats)
    report["convolutions"] = convolution_kernels(first, arguments.repeats)
    report["places"] = places_on_the_roofline(first, arguments.repeats, report["roofline"])
    report["steps"] = [
        row for batch in arguments.batch_sizes for train in (True, False) for row in compare(batch, train, arguments.repeats)
    ]
    peak = report["roofline"]
    for row in report["convolutions"]:
        row["of_roofline"] = f"{row['fast_gflop_per_s'] / peak['gflop_per_s']:.0%}"
    for row in report["kernels"]:
        row["of_copy"] = f"{row['gb_per_s'] / peak['gb_per_s']:.0%}"
    memory = f"{report['peak_memory_gb']:.2f} GB" if report["peak_memory_gb"] else "unknown"
    text = f"""# {report["device"]}

{report["versions"]}, {report["cores"]} cores. Roofline: a copy {peak["gb_per_s"]:.1f} GB/s, multiply-adds
{peak["gflop_per_s"]:.0f} GFLOP/s. Peak memory of a process that trains at batch {first}, Python and NumPy included: {memory}.

## Steps of ResNet-20, medians of {arguments.repeats} runs

{table(report["steps"])}

## Convolutions at batch {first}, forward and both gradients

{table(report["convolutions"])}

## Places on the roofline at batch {first}

Bytes are those of the arrays that a kernel is given, each counted once.

{table(report["places"])}

## Kernels of one training step at batch {first}

{table(report["kernels"])}
"""
    print(text)
    if arguments.out:
        out = Path(arguments.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text)
        (out / "report.json").write_text(json.dumps(report, indent=1))
        if importlib.util.find_spec("matplotlib"):
            plot_convolutions(report, out / "kernels.png")
            plot_roofline(report, out / "roofline.png")


if __name__ == "__main__":
    main()

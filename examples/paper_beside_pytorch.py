"""The first steps of `--recipe paper` in minires and in PyTorch, loss by loss: the same weights, images and order.

    python examples/paper_beside_pytorch.py --data-dir DIR --out DIR      2,000 steps; needs PyTorch and matplotlib

There is no augmentation, so that both see the same numbers. Rounding differs, and a network in training doubles a small
difference every few steps. How fast is shown by a third run, PyTorch beside itself with the first weights moved by one
rounding: where two such runs are apart, two libraries may be. Writes losses.json and losses.png.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pictures
import torch
from pytorch_weights import TorchResNet, channels_first

import minires as mr

PAPER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}  # K. He et al. 2015, section 4.2, before step 32,000
BATCH, TWIN_STEPS = 128, 300


def batches(data: mr.cifar.Split, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Normalised images and labels, in the order of train_cifar.py with seed 0."""
    mean, std = (np.array(v, np.float32) for v in (mr.cifar.MEAN, mr.cifar.STD))
    for step in range(steps):
        epoch, batch = divmod(step, -(-len(data.labels) // BATCH))
        order = np.random.default_rng([0, epoch]).permutation(len(data.labels))
        chosen = order[batch * BATCH : (batch + 1) * BATCH]
        yield (data.images[chosen].astype(np.float32) / 255 - mean) / std, data.labels[chosen]


def ours(state: dict[str, np.ndarray]) -> Callable[[np.ndarray, np.ndarray], float]:
    net = mr.resnet.resnet20()
    net.load_state_dict(state)
    optimizer = mr.optim.SGD(net.parameters(), **PAPER)

    def step(images: np.ndarray, labels: np.ndarray) -> float:
        loss = mr.functional.cross_entropy(net(mr.Tensor(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def theirs(state: dict[str, np.ndarray]) -> Callable[[np.ndarray, np.ndarray], float]:
    net = TorchResNet()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    optimizer = torch.optim.SGD(net.parameters(), **PAPER)

    def step(images: np.ndarray, labels: np.ndarray) -> float:
        loss = torch.nn.functional.cross_entropy(net(channels_first(images)), torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def first_apart(a: np.ndarray, b: np.ndarray) -> dict[str, int | None]:
    """The first step, from 1, at which two losses differ by more than some shares of them."""
    n = min(len(a), len(b))
    apart = np.abs(a[:n] - b[:n]) / np.abs(b[:n])
    return {str(share): next(iter((np.flatnonzero(apart > share) + 1).tolist()), None) for share in (1e-4, 1e-3, 1e-2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("MINIRES_DATA", "data"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", default="runs/paper-beside-pytorch")
    arguments = parser.parse_args()
    data, out = mr.cifar.load(arguments.data_dir).train, Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    mr.manual_seed(0)
    state = mr.resnet.resnet20().state_dict()
    moved = state | {"conv1.weight": np.nextafter(state["conv1.weight"], np.float32(np.inf))}
    runs = {
        "minires": (ours(state), arguments.steps),
        "PyTorch": (theirs(state), arguments.steps),
        "PyTorch, moved by a rounding": (theirs(moved), min(TWIN_STEPS, arguments.steps)),
    }
    losses = {}
    for name, (step, steps) in runs.items():
        losses[name] = np.array([step(*batch) for batch in batches(data, steps)])
        last = losses[name][-200:].mean()
        print(f"{name:30}{steps:6} steps, mean loss of the last {min(steps, 200)}: {last:.4f}", flush=True)
    a, b, twin = losses.values()
    apart = {"minires": first_apart(a, b), "PyTorch, moved by a rounding": first_apart(twin, b)}
    for name, steps in apart.items():
        words = ", ".join(f"{share} at step {step or 'none'}" for share, step in steps.items())
        print(f"{name} and PyTorch first differ by more than {words}")
    command = " ".join(["python", *sys.argv])
    record = {"command": command, "apart": apart, "losses": {name: v.tolist() for name, v in losses.items()}}
    (out / "losses.json").write_text(json.dumps(record))
    pictures.losses(losses, out / "losses.png")


if __name__ == "__main__":
    main()

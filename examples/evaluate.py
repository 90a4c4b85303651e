"""Evaluate a network on the test set: its accuracy, a table of the classes, and a picture of what it confuses.

    python examples/evaluate.py                                      the ResNet-20 that comes with minires
    python examples/evaluate.py runs/NAME/best.safetensors           one that train_cifar.py has trained

Writes confusion.png, or what --picture names, with matplotlib.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pictures

import minires as mr

WEIGHTS = Path(__file__).parent / "results" / "resnet20" / "resnet20.safetensors"


def test_set(name: str, data_dir: str) -> mr.cifar.Dataset:
    return mr.cifar.synthetic() if name == "synthetic" else mr.cifar.load(data_dir)


def logits_of(net: mr.nn.Module, split: mr.cifar.Split, batch_size: int = 250) -> np.ndarray:
    """The logits (N, classes) of all images of a split, on the host."""
    net.eval()
    with mr.no_grad():
        return np.concatenate([net(x).numpy() for x, _ in mr.cifar.Loader(split, batch_size, train=False)])


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """matrix[t, p]: how many images of class t were taken for class p."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def table(matrix: np.ndarray, classes: tuple[str, ...]) -> str:
    lines = [f"{'class':12}{'images':>8}{'recall':>9}{'precision':>11}   most often taken for"]
    for i, name in enumerate(classes):
        right, of_class, as_class = matrix[i, i], matrix[i].sum(), matrix[:, i].sum()
        wrong = np.where(np.arange(len(classes)) == i, 0, matrix[i])
        taken_for = f"{classes[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "nothing else"
        shares = f"{right / max(of_class, 1):9.1%}{right / max(as_class, 1):11.1%}"
        lines.append(f"{name:12}{of_class:8}{shares}   {taken_for}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a network on the test set.")
    parser.add_argument("weights", nargs="?", default=WEIGHTS, help="best.safetensors of a run (default: the shipped)")
    parser.add_argument("--data-dir", default=os.environ.get("MINIRES_DATA", "data"))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--picture", default="confusion.png", help="of the confusion matrix")
    arguments = parser.parse_args()
    if arguments.device != "auto":
        mr.set_device(arguments.device)
    state, metadata = mr.checkpoint.load(arguments.weights)
    net = mr.resnet.from_state_dict(state)
    data = test_set(metadata.get("dataset", "cifar10"), arguments.data_dir)
    predicted = logits_of(net, data.test).argmax(1)
    matrix = confusion_matrix(data.test.labels, predicted, len(data.classes))
    print(f"{arguments.weights} on the {len(predicted):,} test images of {data.name}")
    print(f"accuracy {np.trace(matrix) / len(predicted):.2%}\n\n{table(matrix, data.classes)}")
    if pictures.can_draw():
        pictures.confusion(matrix, data.classes, Path(arguments.picture))
        print(f"\nthe confusion matrix is drawn in {arguments.picture}")


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, mr.cifar.DataError, mr.checkpoint.CheckpointError, OSError, ValueError, KeyError) as e:
        sys.exit(f"error: {e.args[0] if isinstance(e, KeyError) else e}")

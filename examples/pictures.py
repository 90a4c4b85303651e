"""The pictures that training and evaluation write, with matplotlib: pip install -e '.[plot]'."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PAPER_ACCURACY = 0.9125  # ResNet-20: K. He et al. 2015, table 6


def can_draw() -> bool:
    """Whether matplotlib is installed; without it nothing is drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)


def curves(records: list[dict], title: str, path: Path) -> None:
    """Loss and accuracy by epoch, from the lines of a metrics.jsonl, with the paper's accuracy on CIFAR-10."""
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [r["epoch"] for r in records]
    for part in ("train", "test"):
        left.plot(epochs, [r[f"{part}_loss"] for r in records], ".-", label=part)
        right.plot(epochs, [r[f"{part}_accuracy"] for r in records], ".-", label=part)
    if records[0]["dataset"] == "cifar10":
        right.axhline(PAPER_ACCURACY, color="gray", linestyle=":", label="ResNet-20 in the paper")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy")
    right.legend()
    figure.suptitle(title)
    _save(figure, path)


def losses(runs: dict[str, np.ndarray], path: Path) -> None:
    """Losses by step of several runs, and under them how far each is from the second one."""
    figure, (top, bottom) = _pyplot().subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    _, other, *_ = runs.items()
    for name, values in runs.items():
        steps = np.arange(1, len(values) + 1)
        top.plot(steps, values, linewidth=0.7, label=name)
        if name != other[0]:
            bottom.semilogy(
                steps, np.abs(values - other[1][: len(values)]) / other[1][: len(values)], ".", markersize=2, label=name
            )
    top.set(ylabel="loss")
    bottom.set(xlabel="step", ylabel=f"share by which it is off {other[0]}'s")
    top.legend()
    bottom.legend()
    _save(figure, path)


def predictions(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Up to 16 images, (N, 32, 32, 3) uint8, that were classified right, and under them up to 16 that were not."""
    right = predicted == labels
    figure, axes = _pyplot().subplots(4, 8, figsize=(10, 6.2), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for rows, chosen in ((axes[:2], np.flatnonzero(right)), (axes[2:], np.flatnonzero(~right))):
        for axis, i in zip(rows.flat, chosen, strict=False):
            axis.imshow(images[i])
            name, truth = classes[predicted[i]], classes[labels[i]]
            axis.set_title(name if right[i] else f"{name},\nnot {truth}", fontsize=8, color="green" if right[i] else "red")
    figure.suptitle(f"{right.sum()} of {len(labels)} test images are classified right")
    _save(figure, path)


def filters(weight: np.ndarray, path: Path) -> None:
    """The filters of the first layer, (O, 3, KH, KW), as colours: grey is 0, and the largest weight of all is full."""
    figure, axes = _pyplot().subplots(-(-len(weight) // 8), 8, figsize=(8, 2.5), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, colours in zip(axes.flat, 0.5 + weight / (2 * abs(weight).max()), strict=False):
        axis.imshow(colours.transpose(1, 2, 0))
    figure.suptitle("the first convolution's filters")
    _save(figure, path)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """How many images of each class (rows) were taken for each class (columns)."""
    figure, axis = _pyplot().subplots(figsize=(7, 6.5), layout="constrained")
    axis.imshow(matrix / matrix.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        dark = count > matrix[row].sum() / 2
        axis.text(column, row, count, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ticks = range(len(classes))
    axis.set(xlabel="predicted", ylabel="true", yticks=ticks, yticklabels=classes)
    axis.set_xticks(ticks, classes, rotation=45, ha="right")
    axis.set_title(f"accuracy {np.trace(matrix) / matrix.sum():.2%}")
    _save(figure, path)

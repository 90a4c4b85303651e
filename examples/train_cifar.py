"""Train a ResNet on CIFAR-10 with the kernels of `kernels/`, on a GPU or on the CPU.

    python examples/train_cifar.py                                   fetch CIFAR-10 and train ResNet-20
    python examples/train_cifar.py --data-dir ~/cifar --epochs 3     data that is already there, a short run
    python examples/train_cifar.py --dataset synthetic               the built-in images: no network needed

Writes metrics.jsonl (one object an epoch), best.safetensors, last.safetensors and, with matplotlib, curves.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

import minires as mr

PAPER_STEPS = 64_000  # K. He et al. 2015, section 4.2
FAST_EPOCHS = {"cuda": 30, "cpu": 5}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a ResNet on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=("auto", "cifar10", "synthetic"), default="auto", help="auto: CIFAR-10 if it can be had")
    add("--data-dir", default=os.environ.get("MINIRES_DATA", "data"), help="holds cifar-10-batches-bin/, or will")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--depth", type=int, default=20, help="6 n + 2 layers")
    add("--shortcut", choices=("A", "B"), default="A", help="option A has no parameters, B is a 1x1 convolution")
    add("--recipe", choices=("fast", "paper"), default="fast", help="one cycle of few epochs, or 64,000 steps")
    add("--epochs", type=int, help="instead of the recipe's")
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, help="highest learning rate, instead of the recipe's")
    add("--seed", type=int, default=0)
    add("--train-size", type=int, help="only the first images")
    add("--test-size", type=int, help="only the first images")
    add("--profile", action="store_true", help="first show where the time of three batches goes")
    add("--out", help="a new folder for the results (default: runs/<name>)")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "train_size", "test_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return arguments


def load_data(arguments: argparse.Namespace) -> mr.cifar.Dataset:
    if arguments.dataset != "synthetic":
        try:
            data = mr.cifar.load(arguments.data_dir)
            return data.first(arguments.train_size, arguments.test_size)
        except mr.cifar.DataError as error:
            if arguments.dataset == "cifar10":
                raise mr.cifar.DataError(
                    f"{error}; give the folder that holds {mr.cifar.FOLDER} with --data-dir, or train on the built-in "
                    "images with --dataset synthetic"
                ) from None
            line = "*" * 100
            print(f"{line}\nCIFAR-10 IS NOT THERE: {error}\nTRAINING ON THE BUILT-IN SYNTHETIC IMAGES INSTEAD\n{line}")
    return mr.cifar.synthetic(arguments.train_size or 5000, arguments.test_size or 1000)


def make_optimizer(
    arguments: argparse.Namespace, net: mr.nn.Module, steps_per_epoch: int
) -> tuple[mr.optim.SGD, mr.optim.Schedule, int]:
    """The optimiser, its schedule and the number of steps."""
    epochs = arguments.epochs
    if arguments.recipe == "paper":
        steps = epochs * steps_per_epoch if epochs else PAPER_STEPS
        rate = 0.1 if arguments.lr is None else arguments.lr
        optimizer = mr.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=1e-4)
        return optimizer, mr.optim.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4]), steps
    steps = (epochs or FAST_EPOCHS[mr.get_device()]) * steps_per_epoch
    rate = 0.4 * arguments.batch_size / 128 if arguments.lr is None else arguments.lr
    optimizer = mr.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return optimizer, mr.optim.OneCycleLR(optimizer, rate, steps), steps


class Mean:
    """The mean loss and accuracy of the images seen so far."""

    def __init__(self) -> None:
        self.images, self.loss_sum, self.correct = 0, 0.0, 0

    def add(self, loss: float, correct: int, images: int) -> None:
        self.images, self.loss_sum, self.correct = (
            self.images + images,
            self.loss_sum + loss * images,
            self.correct + correct,
        )

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


def train_epoch(
    net: mr.nn.Module, loader: mr.cifar.Loader, optimizer: mr.optim.SGD, schedule: mr.optim.Schedule, steps: int
) -> Mean:
    """One pass over the training images, of at most `steps` steps. Raises FloatingPointError where it diverges."""
    mean = Mean()
    net.train()
    began = time.perf_counter()
    with tqdm(total=min(steps, len(loader)), desc=f"epoch {loader.epoch + 1}", unit="step", leave=False) as bar:
        for step, (x, labels) in zip(range(steps), loader, strict=False):
            logits = net(x)
            loss = mr.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in epoch {loader.epoch + 1}, step {step + 1}, at the learning rate "
                    f"{optimizer.lr:.3g}: try a lower --lr"
                )
            schedule.step()
            mean.add(value, mr.functional.count_correct(logits, labels), len(labels))
            rate = mean.images / (time.perf_counter() - began)
            bar.set_postfix_str(
                f"loss {mean.loss:.3f}, accuracy {mean.accuracy:.1%}, {rate:.0f} images/s", refresh=False
            )
            bar.update()
            if loader.epoch == 0 and step == 0:
                began_second = time.perf_counter()  # the first step may have compiled the kernels
            if loader.epoch == 0 and step == 10:
                seconds = (time.perf_counter() - began_second) / 10 * (steps - 11)
                bar.write(f"about {seconds / 60:.1f} minutes of training to go")
    return mean


def profile_steps(net: mr.nn.Module, loader: mr.cifar.Loader) -> None:
    """Print the kernels' times in the forward and backward of three batches, after one that is not counted."""

    def run(batches) -> None:
        for x, labels in batches:
            mr.functional.cross_entropy(net(x), labels).backward()
            for parameter in net.parameters():
                parameter.grad = None

    batches = iter(loader)
    run(itertools.islice(batches, 1))
    with mr.profile() as profile:
        run(itertools.islice(batches, 3))
    print(profile)


def evaluate(net: mr.nn.Module, loader: mr.cifar.Loader) -> Mean:
    mean = Mean()
    net.eval()
    with mr.no_grad():
        for x, labels in loader:
            logits = net(x)
            loss = mr.functional.cross_entropy(logits, labels).item()
            mean.add(loss, mr.functional.count_correct(logits, labels), len(labels))
    return mean


def output_folder(arguments: argparse.Namespace, dataset: str) -> Path:
    if arguments.out:
        out = Path(arguments.out)
    else:
        name = f"{dataset}-resnet{arguments.depth}{arguments.shortcut}-{arguments.recipe}-seed{arguments.seed}"
        names = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
        out = next(path for path in names if not path.exists())
    if (out / "metrics.jsonl").exists():
        raise FileExistsError(f"{out} holds a run already: give another folder with --out, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    return out


def plot(records: list[dict], title: str, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [r["epoch"] for r in records]
    for part in ("train", "test"):
        left.plot(epochs, [r[f"{part}_loss"] for r in records], ".-", label=part)
        right.plot(epochs, [r[f"{part}_accuracy"] for r in records], ".-", label=part)
    if records[0]["dataset"] == "cifar10":
        right.axhline(0.9125, color="gray", linestyle=":", label="ResNet-20 in the paper")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy")
    right.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments()
    if arguments.device != "auto":
        mr.set_device(arguments.device)
    mr.manual_seed(arguments.seed)
    net = mr.resnet.resnet(arguments.depth, shortcut=arguments.shortcut)
    data = load_data(arguments)
    train = mr.cifar.Loader(data.train, arguments.batch_size, train=True, seed=arguments.seed)
    test = mr.cifar.Loader(data.test, arguments.batch_size, train=False)
    optimizer, schedule, steps = make_optimizer(arguments, net, len(train))
    out = output_folder(arguments, data.name)

    parameters = sum(math.prod(p.shape) for p in net.parameters())
    epochs = -(-steps // len(train))
    title = f"ResNet-{arguments.depth}, {data.name}, recipe {arguments.recipe}, seed {arguments.seed}"
    print(f"device   {mr.describe_device()}")
    print(f"model    ResNet-{arguments.depth}, shortcut {arguments.shortcut}, {parameters:,} parameters")
    print(f"data     {data.name}: {train.size:,} images to train on, {test.size:,} to test")
    print(
        f"recipe   {arguments.recipe}: {epochs} epochs, {steps:,} steps of {arguments.batch_size} images, "
        f"lr {schedule.base_lr:.3g}"
    )
    print(f"output   {out}", flush=True)

    if arguments.profile:
        state = net.state_dict()
        profile_steps(net, train)
        net.load_state_dict(state)
    records: list[dict] = []
    for epoch in range(epochs):
        train.epoch = epoch
        began = time.perf_counter()
        learned = train_epoch(net, train, optimizer, schedule, steps - epoch * len(train))
        seconds = time.perf_counter() - began
        tested = evaluate(net, test)
        record = {
            "epoch": epoch + 1,
            "lr": optimizer.lr,
            "train_loss": learned.loss,
            "train_accuracy": learned.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
            "seconds": round(seconds, 3),
            "images_per_second": round(learned.images / seconds, 1),
            "dataset": data.name,
        }
        is_best = all(tested.accuracy > r["test_accuracy"] for r in records)
        records.append(record)
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        metadata = {
            "depth": str(arguments.depth),
            "shortcut": arguments.shortcut,
            "dataset": data.name,
            "epoch": str(epoch + 1),
        }
        for name in ("last", "best") if is_best else ("last",):
            mr.checkpoint.save(out / f"{name}.safetensors", net.state_dict(), {k: str(v) for k, v in metadata.items()})
        plot(records, title, out / "curves.png")
        print(
            f"epoch {epoch + 1}/{epochs}  train loss {learned.loss:.4f} accuracy {learned.accuracy:.2%}  "
            f"test loss {tested.loss:.4f} accuracy {tested.accuracy:.2%}  {record['images_per_second']:.0f} images/s"
            + ("" if data.name == "cifar10" else f"  ({data.name})"),
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except (
        mr.DeviceError,
        mr.cifar.DataError,
        mr.checkpoint.CheckpointError,
        FloatingPointError,
        OSError,
        ValueError,
    ) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)

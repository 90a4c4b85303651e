"""Train a ResNet on CIFAR-10 with the kernels of `kernels/`, on a GPU or on the CPU.

    python examples/train_cifar.py                                   fetch CIFAR-10 and train ResNet-20
    python examples/train_cifar.py --data-dir ~/cifar --epochs 3     data that is already there, a short run
    python examples/train_cifar.py --dataset synthetic               the built-in images: no network needed
    python examples/train_cifar.py --resume runs/NAME                go on where a run was stopped

Writes metrics.jsonl (the command, then one object an epoch), the weights best.safetensors and last.safetensors,
checkpoint.safetensors, from which --resume goes on, bit for bit as if the run had not been stopped, and with matplotlib
curves.png and, at the end, predictions.png (test images classified right, and wrong) and filters.png (the first layer).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pictures
from evaluate import logits_of
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

import minires as mr
from minires.download import wants_bar

PAPER_STEPS = 64_000  # K. He et al. 2015, section 4.2
FAST_EPOCHS = {"cuda": 30, "cpu": 9}


CHANGEABLE = ("data_dir", "device", "epochs", "lr", "checkpoint_minutes")  # when a run is resumed


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a ResNet on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", choices=("auto", "cifar10", "synthetic"), default="auto", help="auto: CIFAR-10 if it can be had")
    add("--data-dir", default=os.environ.get("MINIRES_DATA"), help="holds CIFAR-10, or will (default: data)")
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
    add("--checkpoint-minutes", type=float, default=10, help="between two checkpoints inside an epoch")
    add("--profile", action="store_true", help="first show where the time of three batches goes")
    add("--verify", action="store_true", help="check the SHA-256 of the data's files, not only their size")
    add("--no-progress", action="store_true", help="a line a minute in place of the bar, as in a file")
    add("--out", help="a new folder for the results (default: runs/<name>)")
    add("--resume", metavar="RUN", help="the folder of a run to go on with, with its options unless given anew")
    return parser


def parse_arguments() -> argparse.Namespace:
    parser = make_parser()
    command = shlex.join(["python", *sys.argv])
    parser.set_defaults(command=command)
    arguments = parser.parse_args()
    if arguments.resume:
        before = read_checkpoint(Path(arguments.resume) / "checkpoint.safetensors")[1]
        began = before.pop("command", command)
        parser.set_defaults(**before, command=began)
        arguments = parser.parse_args()
        if arguments.out:
            parser.error("--out and --resume exclude each other: a run goes on in its own folder")
        for name, value in before.items():
            now = getattr(arguments, name)
            if now != value and name not in CHANGEABLE:
                parser.error(f"{flag(name)} was {value} in this run and cannot become {now}: begin a new run")
            if now != value:
                print(f"changed  {flag(name)}: {value} before, {now} from here on")
                arguments.command = f"{began} && {command}"
    for name in ("epochs", "batch_size", "train_size", "test_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"{flag(name)} must be at least 1, got {value}")
    if not arguments.checkpoint_minutes >= 0:
        parser.error(f"--checkpoint-minutes must not be negative, got {arguments.checkpoint_minutes}")
    return arguments


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def load_data(arguments: argparse.Namespace) -> mr.cifar.Dataset:
    """CIFAR-10, or the built-in images for whoever named nothing and cannot fetch it. Raises DataError."""
    named = arguments.data_dir is not None
    arguments.data_dir = str(Path(arguments.data_dir or "data").resolve())
    if arguments.dataset != "synthetic":
        try:
            data = mr.cifar.load(arguments.data_dir, verify=arguments.verify)
            return data.first(arguments.train_size, arguments.test_size)
        except mr.cifar.DataError as error:
            if arguments.dataset == "cifar10" or named or isinstance(error, mr.cifar.DamagedError):
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


# ---------------------------------------------------------------------------------------------------------------------
# What a checkpoint holds, besides weights and velocities. No random generator has a state of its own: the order and
# the augmentation of a batch follow from the seed, the epoch and the batch's number.


@dataclass
class Mean:
    """The sums behind the mean loss and accuracy of the images seen so far."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


@dataclass
class Progress:
    """Where a run stands: whole epochs, the steps and sums of the one it is in, and the lines of metrics.jsonl."""

    epoch: int = 0
    step: int = 0
    mean: Mean = field(default_factory=Mean)
    seconds: float = 0.0
    records: list[dict] = field(default_factory=list)


@dataclass
class Run:
    """A training run: all that changes while it goes on, and the folder it writes to."""

    options: dict
    out: Path
    net: mr.nn.Module
    optimizer: mr.optim.SGD
    schedule: mr.optim.Schedule
    total_steps: int
    progress: Progress = field(default_factory=Progress)
    saved_at: float = field(default_factory=time.monotonic)
    saved: str = "there is no checkpoint yet"
    has_bar: bool = True

    def __post_init__(self) -> None:
        self.step, self.test = mr.graph(self._step), mr.graph(self._test)
        # Sums of losses and of right answers, on the device: reading them waits for it, which no step does.
        self.totals = mr.device.current().to_device(np.zeros(2))

    def _step(self, x: mr.Tensor, labels: Any) -> None:
        logits = self.net(x)
        loss = mr.functional.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._count(logits, loss, labels)

    def _test(self, x: mr.Tensor, labels: Any) -> None:
        with mr.no_grad():
            logits = self.net(x)
            self._count(logits, mr.functional.cross_entropy(logits, labels), labels)

    def _count(self, logits: mr.Tensor, loss: mr.Tensor, labels: Any) -> None:
        correct = mr.functional.count_correct(logits, labels)
        mr.device.launch("add_to_totals", (1,), (1,), loss.data, correct, self.totals, len(labels))

    def begin(self, mean: Mean) -> None:
        """Go on adding up from a mean."""
        mr.device.current().assign(self.totals, np.array([mean.loss_sum, mean.correct], float))

    def read(self, mean: Mean) -> None:
        """Bring the sums to the host. Raises FloatingPointError where the loss is not finite."""
        loss_sum, correct = mr.device.current().to_host(self.totals)
        if not math.isfinite(loss_sum):
            raise FloatingPointError(self.diverged(f"the loss is {loss_sum}"))
        mean.loss_sum, mean.correct = float(loss_sum), int(correct)

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def save(self) -> None:
        """Raises FloatingPointError where a weight is no longer finite: the checkpoint before is kept."""
        arrays = {f"model.{name}": a for name, a in self.net.state_dict().items()}
        arrays |= {f"optimizer.{name}": a for name, a in self.optimizer.state_dict().items()}
        if not all(np.isfinite(a).all() for a in arrays.values()):
            raise FloatingPointError(self.diverged("a weight is no longer finite"))
        metadata = {"options": json.dumps(self.options), "progress": json.dumps(asdict(self.progress))}
        mr.checkpoint.save(self.checkpoint, arrays, metadata)
        self.saved_at = time.monotonic()
        where = f"of epoch {self.progress.epoch + 1} after {self.progress.step} steps"
        self.saved = f"the last good checkpoint, {where}, is {self.checkpoint}"

    def restore(self) -> None:
        arrays, _, self.progress = read_checkpoint(self.checkpoint)
        try:
            for part, owner in (("model.", self.net), ("optimizer.", self.optimizer)):
                owner.load_state_dict({k.removeprefix(part): a for k, a in arrays.items() if k.startswith(part)})
        except (KeyError, ValueError) as error:
            raise mr.checkpoint.CheckpointError(f"{self.checkpoint} does not fit its own options: {error}") from None
        for leftover in self.out.glob(".*-*"):  # of a write that was killed
            leftover.unlink()
        self.write_metrics()  # without what came after the checkpoint
        self.saved = f"the last good checkpoint is {self.checkpoint}"

    def write_metrics(self) -> None:
        records = [{"command": self.options["command"]}, *self.progress.records]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        mr.checkpoint.write_atomically(self.out / "metrics.jsonl", lines.encode())

    def diverged(self, what: str) -> str:
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}, learning rate {self.optimizer.lr:.3g}"
        return f"the training has diverged, {what}: {where}; {self.saved}; try a lower --lr"


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict, Progress]:
    """Arrays, options and progress. Raises CheckpointError where the file is damaged or something else."""
    arrays, metadata = mr.checkpoint.load(path)
    try:
        options, progress = (json.loads(metadata[key]) for key in ("options", "progress"))
        return arrays, options, Progress(**progress | {"mean": Mean(**progress["mean"])})
    except (KeyError, TypeError, ValueError):
        raise mr.checkpoint.CheckpointError(f"{path} is not a checkpoint of train_cifar.py") from None


class StopRequest:
    """Notes the first SIGINT or SIGTERM, so that the step can end; a second one stops at once."""

    def __enter__(self) -> StopRequest:
        self.signal = 0
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_epoch(run: Run, loader: mr.cifar.Loader, steps: int, stop: StopRequest) -> None:
    """What is left of the first `steps` steps of an epoch. Raises FloatingPointError where the loss is not finite.

    On a GPU the loss is read about twice a second, and before a checkpoint.
    """
    progress, mean = run.progress, run.progress.mean
    run.net.train()
    loader.epoch = progress.epoch
    before, began = progress.seconds, time.perf_counter()
    first, first_images = progress.step, mean.images
    seconds_unread = 0.5 if mr.get_device() == "cuda" else 0  # reading waits for a GPU
    run.begin(mean)
    name, read_at, told_at = f"epoch {loader.epoch + 1}", began, began
    with tqdm(total=steps, initial=first, desc=name, unit="step", leave=False, disable=not run.has_bar) as bar:
        for x, labels in itertools.islice(loader, first, steps):
            run.step(x, labels)
            run.schedule.step()
            mean.images += len(labels)
            progress.step += 1
            done, now = progress.step - first, time.perf_counter()
            is_due = time.monotonic() - run.saved_at >= 60 * run.options["checkpoint_minutes"]
            if stop.signal or is_due or progress.step == steps or done in (1, 11) or now - read_at >= seconds_unread:
                run.read(mean)
                read_at = now = time.perf_counter()
                progress.seconds = before + now - began
                rate = (mean.images - first_images) / (now - began)
                text = f"loss {mean.loss:.3f}, accuracy {mean.accuracy:.1%}, {rate:.0f} images/s"
                bar.set_postfix_str(text, refresh=False)
                if not run.has_bar and now - told_at >= 60:
                    print(f"{name}, step {progress.step} of {steps}: {text}", flush=True)
                    told_at = now
            bar.update()
            if done == 1:
                began_second = now  # the first step may have compiled the kernels
            if done == 11 and not run.progress.records:
                seconds = (now - began_second) / 10 * (run.total_steps - run.schedule.last_step)
                bar.write(f"about {seconds / 60:.1f} minutes of training to go")
            if stop.signal:
                return
            if is_due:
                run.save()


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


def evaluate(run: Run, loader: mr.cifar.Loader, stop: StopRequest) -> Mean:
    mean = Mean()
    run.net.eval()
    run.begin(mean)
    for x, labels in loader:
        run.test(x, labels)
        mean.images += len(labels)
        if stop.signal:
            break
    run.read(mean)
    return mean


def finish_epoch(run: Run, tested: Mean, epochs: int, data: mr.cifar.Dataset) -> None:
    """Write the epoch down. What follows the checkpoint is written again from it when the run is resumed."""
    progress, learned, options = run.progress, run.progress.mean, run.options
    record = {
        "epoch": progress.epoch + 1,
        "lr": run.optimizer.lr,
        "train_loss": learned.loss,
        "train_accuracy": learned.accuracy,
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(learned.images / progress.seconds, 1),
        "dataset": data.name,
    }
    is_best = all(tested.accuracy > r["test_accuracy"] for r in progress.records)
    metadata = {key: str((options | record)[key]) for key in ("depth", "shortcut", "dataset", "epoch")}
    for name in ("last", "best") if is_best else ("last",):
        path = run.out / f"{name}.safetensors"
        mr.checkpoint.save(path, run.net.state_dict(), metadata)
    run.progress = Progress(progress.epoch + 1, records=[*progress.records, record])
    run.save()
    run.write_metrics()
    if pictures.can_draw():
        pictures.curves(run.progress.records, f"{title(options)}, {data.name}", run.out / "curves.png")
    print(
        f"epoch {record['epoch']}/{epochs}  train loss {learned.loss:.4f} accuracy {learned.accuracy:.2%}  "
        f"test loss {tested.loss:.4f} accuracy {tested.accuracy:.2%}  {record['images_per_second']:.0f} images/s"
        + ("" if data.name == "cifar10" else f"  ({data.name})"),
        flush=True,
    )


def title(options: dict) -> str:
    return f"ResNet-{options['depth']}, recipe {options['recipe']}, seed {options['seed']}"


def output_folder(arguments: argparse.Namespace) -> Path:
    if arguments.resume:
        return Path(arguments.resume)
    if arguments.out:
        out = Path(arguments.out)
    else:
        a = arguments
        name = f"{a.dataset}-resnet{a.depth}{a.shortcut}-{a.recipe}-seed{a.seed}"
        names = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
        out = next(path for path in names if not path.exists())
    if (out / "metrics.jsonl").exists() or (out / "checkpoint.safetensors").exists():
        raise FileExistsError(f"{out} holds a run already: go on with it by --resume {out}, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder. The system gives it back when the process ends, however that is."""
    try:
        with FileLock(out / ".lock", timeout=0):
            try:
                yield
            finally:
                (out / ".lock").unlink(missing_ok=True)
    except Timeout:
        raise FileExistsError(f"another run is writing to {out}: wait for its end, or give another --out") from None


def draw_network(run: Run, data: mr.cifar.Dataset) -> None:
    """What the network has learned: its first filters, and some of its answers."""
    pictures.filters(run.net.state_dict()["conv1.weight"], run.out / "filters.png")
    some = data.test.first(min(250, len(data.test.labels)))
    predicted = logits_of(run.net, some).argmax(1)
    pictures.predictions(some.images, some.labels, predicted, data.classes, run.out / "predictions.png")


def main() -> None:
    arguments = parse_arguments()
    if arguments.device != "auto":
        mr.set_device(arguments.device)
    data = load_data(arguments)
    arguments.dataset = data.name
    out = output_folder(arguments)
    with hold(out):
        train_in(out, arguments, data)


def train_in(out: Path, arguments: argparse.Namespace, data: mr.cifar.Dataset) -> None:
    mr.manual_seed(arguments.seed)
    net = mr.resnet.resnet(arguments.depth, shortcut=arguments.shortcut)
    train = mr.cifar.Loader(data.train, arguments.batch_size, train=True, seed=arguments.seed)
    test = mr.cifar.Loader(data.test, arguments.batch_size, train=False)
    optimizer, schedule, steps = make_optimizer(arguments, net, len(train))
    options = {k: v for k, v in vars(arguments).items() if k not in ("out", "resume", "profile", "verify", "no_progress")}
    run = Run(options, out, net, optimizer, schedule, steps)
    run.has_bar = wants_bar() and not arguments.no_progress
    if arguments.resume:
        run.restore()
        schedule.go_to(min(run.progress.epoch * len(train) + run.progress.step, steps))

    parameters = sum(math.prod(p.shape) for p in net.parameters())
    epochs = -(-steps // len(train))
    print(f"device   {mr.describe_device()}")
    print(f"model    ResNet-{arguments.depth}, shortcut {arguments.shortcut}, {parameters:,} parameters")
    print(f"data     {data.name}: {train.size:,} images to train on, {test.size:,} to test")
    print(
        f"recipe   {arguments.recipe}: {epochs} epochs, {steps:,} steps of {arguments.batch_size} images, "
        f"lr {schedule.base_lr:.3g}"
    )
    print(f"output   {run.out}", flush=True)
    if arguments.resume:
        print(f"resumed  in epoch {run.progress.epoch + 1} after {run.progress.step} steps", flush=True)
    if run.progress.epoch >= epochs:
        print("nothing is left to train; to go on, give more --epochs")
    if arguments.profile:
        state = net.state_dict()
        profile_steps(net, train)
        net.load_state_dict(state)

    with StopRequest() as stop:
        while run.progress.epoch < epochs:
            train_epoch(run, train, min(len(train), steps - run.progress.epoch * len(train)), stop)
            tested = None if stop.signal else evaluate(run, test, stop)
            if stop.signal:
                run.save()
                print(f"stopped; to go on:  {shlex.join(['python', sys.argv[0], '--resume', str(run.out)])}")
                sys.exit(128 + stop.signal)
            finish_epoch(run, tested, epochs, data)
    if pictures.can_draw():
        draw_network(run, data)


if __name__ == "__main__":
    try:
        main()
    except (mr.DeviceError, mr.cifar.DataError, mr.checkpoint.CheckpointError, FloatingPointError, OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)

"""minires beside PyTorch, where that is installed: weights passed on, gradients and steps compared."""

import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest

import minires as mr

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from pytorch_weights import TorchResNet, channels_first  # noqa: E402

DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def networks(depth: int, shortcut: str, dtype: np.dtype):
    torch.manual_seed(0)
    theirs = TorchResNet(depth, shortcut).to(DTYPES[dtype])
    ours = mr.resnet.resnet(depth, shortcut=shortcut).to(dtype)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return ours, theirs


def batch(rng, dtype, n=3, size=8):
    """Few and small images: among a million activations one is so near to 0 that float32 decides its ReLU by rounding,
    differently in minires and in PyTorch, and the gradients then differ by 1e-3. Here there are 35,000."""
    return rng.standard_normal((n, size, size, 3)).astype(dtype), rng.integers(0, 10, n)


def relative_error(ours: np.ndarray, theirs) -> float:
    theirs = theirs.detach().numpy()
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("depth", "shortcut"), [(8, "B"), (20, "A")])
def test_logits_loss_and_every_gradient(rng, dtype, depth, shortcut, smoothing):
    limit = 1e-4 if dtype == np.float32 else 1e-9
    ours, theirs = networks(depth, shortcut, dtype)
    images, labels = batch(rng, dtype)
    logits = ours(mr.Tensor(images))
    loss = mr.functional.cross_entropy(logits, labels, smoothing)
    loss.backward()
    their_logits = theirs(channels_first(images))
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.from_numpy(labels), label_smoothing=smoothing)
    their_loss.backward()
    assert relative_error(logits.numpy(), their_logits) < limit
    assert relative_error(loss.numpy(), their_loss) < limit
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = mr.checkpoint.channels_first(parameter.grad.numpy())
        assert relative_error(gradient, gradients[name].grad) < limit, name
    ours.eval(), theirs.eval()  # with the running statistics that the batch has left
    assert relative_error(ours(mr.Tensor(images)).numpy(), theirs(channels_first(images))) < limit


@pytest.mark.no_late  # whose training has the bits of the CPU: see test_late_gpu.py
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
        {"lr": 0.05, "weight_decay": 1e-2},
    ],
    ids=str,
)
def test_twenty_steps_of_sgd(rng, options):
    ours, theirs = networks(8, "A", np.dtype(np.float64))
    optimizer, their_optimizer = (mr.optim.SGD(ours.parameters(), **options), torch.optim.SGD(theirs.parameters(), **options))
    for _ in range(20):
        images, labels = batch(rng, np.float64)
        optimizer.zero_grad()
        mr.functional.cross_entropy(ours(mr.Tensor(images)), labels).backward()
        optimizer.step()
        their_optimizer.zero_grad()
        torch.nn.functional.cross_entropy(theirs(channels_first(images)), torch.from_numpy(labels)).backward()
        their_optimizer.step()
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert relative_error(value, state[name]) < 1e-7, name


def test_weights_pass_both_ways(tmp_path, rng, current_device):
    """Through files, by the example that shows it."""
    script = Path(__file__).resolve().parent.parent / "examples" / "pytorch_weights.py"
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the largest difference between their logits" in result.stdout


def test_other_names_are_refused_clearly():
    ours, theirs = networks(8, "A", np.dtype(np.float32))
    state = {name.replace("fc.", "linear."): value.numpy() for name, value in theirs.state_dict().items()}
    with pytest.raises(KeyError, match=r"missing \['fc.bias', 'fc.weight'\], unknown \['linear.bias', 'linear.weight'\]"):
        ours.load_state_dict(state)


@pytest.mark.no_late
def test_the_shipped_network_answers_alike(cifar_dir):
    theirs, weights = TorchResNet().eval(), mr.checkpoint.load(evaluate.WEIGHTS)[0]
    ours = mr.resnet.from_state_dict(weights)
    theirs.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=False)
    test = mr.cifar.load(cifar_dir, download=False).test.first(1000)
    images = ((test.images / 255 - np.array(mr.cifar.MEAN)) / np.array(mr.cifar.STD)).astype(np.float32)
    with torch.no_grad():
        answers = theirs(channels_first(images)).numpy().argmax(1)
    assert (evaluate.logits_of(ours, test).argmax(1) == answers).mean() > 0.998
    assert abs((answers == test.labels).mean() - 0.924) < 0.02

import numpy as np
import pytest

import minires as mr
from minires import device, tiles

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(1,), (300, 3)], ids=str)
def test_ten_steps(rng, dtype, options, shape):
    parameter = mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
    optimizer = mr.optim.SGD([parameter], **options)
    w, v = parameter.numpy().astype(np.float64), np.zeros(shape)
    momentum = options.get("momentum", 0)
    for _ in range(10):
        gradient = rng.standard_normal(shape).astype(dtype)
        parameter.grad = mr.Tensor(gradient)
        optimizer.step()
        g = gradient + options.get("weight_decay", 0) * w
        v = momentum * v + g
        w = w - options["lr"] * (g + momentum * v if options.get("nesterov") else v)
    np.testing.assert_allclose(parameter.numpy(), w, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_parameters_without_a_gradient_are_left_alone():
    used, unused = (mr.Tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(2))
    used.grad = mr.Tensor(np.ones(3, np.float32))
    mr.optim.SGD([used, unused], lr=0.5, weight_decay=0.1).step()
    np.testing.assert_array_equal(unused.numpy(), 1)
    np.testing.assert_allclose(used.numpy(), 1 - 0.5 * 1.1, rtol=1e-6)


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_many_parameters_in_one_launch(rng, dtype, momentum, tiling, monkeypatch):
    """Of different sizes: one larger than all threads of its blocks, one of a single element."""
    monkeypatch.setattr(device.current(), "tiling", tiling)
    shapes = [(5, 3), (1,), (300, 300), (256,), (257,)]
    parameters = [mr.Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]
    other = np.float64 if dtype == np.float32 else np.float32
    parameters.append(mr.Tensor(np.ones(7, other), requires_grad=True))
    before = [p.numpy() for p in parameters]
    for p in parameters:
        p.grad = mr.Tensor(rng.standard_normal(p.shape).astype(p.dtype))
    optimizer = mr.optim.SGD(parameters, 1.0, momentum)
    optimizer.lr = 0.25
    with mr.profile() as profile:
        optimizer.step()
    assert profile.kernels[mr.tiles.sgd(1, 1)[0]].launches == 2  # one for each dtype
    assert profile.kernels[mr.tiles.sgd(1, 1)[0]].bytes > sum(2 * b.nbytes for b in before)
    for p, w in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.numpy(), w - 0.25 * p.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_more_parameters_than_a_launch_takes(rng):
    parameters = [mr.Tensor(rng.standard_normal(3).astype(np.float32), requires_grad=True) for _ in range(70)]
    before = [p.numpy() for p in parameters]
    for p in parameters:
        p.grad = mr.Tensor(np.ones(3, np.float32))
    with mr.profile() as profile:
        mr.optim.SGD(parameters, 0.5, 0.9).step()
    assert profile.kernels[mr.tiles.sgd(1, 1)[0]].launches == 2
    for p, w in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.numpy(), w - 0.5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": float("nan")}, "lr must be finite and at least 0, got nan"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": 0.1, "momentum": -0.1}, "momentum must be"),
        ({"lr": 0.1, "weight_decay": float("inf")}, "weight_decay must be"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs a momentum"),
    ],
    ids=str,
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        mr.optim.SGD([mr.Tensor([1.0], requires_grad=True)], **options)
    with pytest.raises(ValueError, match="params is empty"):
        mr.optim.SGD([], 0.1)

"""A convolution, BatchNorm and ReLU as one kernel: the bits of the three, and only where nothing else is asked for."""

import numpy as np
import pytest

import minires as mr
from minires.inference import conv_bn_relu


def layers(rng, dtype, c, o, stride=1, padding=1, kernel=3):
    conv, bn = mr.nn.Conv2d(c, o, kernel, stride, padding), mr.nn.BatchNorm2d(o)
    state = {name: rng.uniform(0.5, 2, o) for name in ("weight", "bias", "running_mean", "running_var")}
    bn.load_state_dict(state | {"bias": state["bias"] - 1})
    return conv.to(dtype).eval(), bn.to(dtype).eval()


def kernels_of(function) -> set[str]:
    with mr.profile() as profile:
        function()
    return {name.split("<")[0] for name in profile.kernels}


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    ("shape", "o", "stride", "padding"),
    [((2, 9, 33, 3), 16, 1, 1), ((1, 32, 32, 16), 16, 1, 1), ((2, 11, 19, 12), 20, 1, 1), ((2, 11, 19, 12), 20, 2, (0, 2))],
    ids=str,
)
def test_the_bits_of_one_after_another(rng, dtype, shape, o, stride, padding, with_residual):
    conv, bn = layers(rng, dtype, shape[3], o, stride, padding)
    x = mr.Tensor(rng.standard_normal(shape).astype(dtype))
    residual = mr.Tensor(rng.standard_normal(conv(x).shape).astype(dtype)) if with_residual else None
    expected = bn.relu(conv(x), residual).numpy()
    assert 0.05 < (expected > 0).mean() < 0.95
    with mr.no_grad():
        assert kernels_of(lambda: conv_bn_relu(conv, bn, x, residual)) == {"conv3x3"}
        np.testing.assert_array_equal(conv_bn_relu(conv, bn, x, residual).numpy(), expected)


@pytest.mark.parametrize("why", ["training", "a graph", "1 x 1", "a bias"])
def test_otherwise_one_after_another(rng, why):
    conv, bn = layers(rng, np.float32, 4, 8, kernel=1 if why == "1 x 1" else 3, padding=0)
    bn.train(why == "training")
    if why == "a bias":
        conv = mr.nn.Conv2d(4, 8, 3, bias=True)
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 4)).astype(np.float32))
    if why == "a graph":
        y = conv_bn_relu(conv, bn, x)
        y.backward(np.ones(y.shape, np.float32))
        assert conv.weight.grad is not None and bn.weight.grad is not None
        return
    with mr.no_grad():
        assert "batchnorm_forward" in kernels_of(lambda: conv_bn_relu(conv, bn, x))


def test_what_does_not_fit_is_said_by_the_layer_it_does_not_fit(rng):
    conv, bn = layers(rng, np.float32, 4, 8)
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 4)).astype(np.float32))
    with mr.no_grad():
        with pytest.raises(ValueError, match="conv2d: x has 3 channels but weight takes 4"):
            conv_bn_relu(conv, bn, mr.Tensor(np.ones((2, 8, 8, 3), np.float32)))
        with pytest.raises(ValueError, match=r"conv2d: the kernel \(3, 3\) is larger"):
            conv_bn_relu(mr.nn.Conv2d(4, 8, 3), bn, mr.Tensor(np.ones((2, 2, 2, 4), np.float32)))
        with pytest.raises(ValueError, match="batch_norm_relu: residual must have the shape"):
            conv_bn_relu(conv, bn, x, mr.Tensor(np.ones((2, 8, 7, 8), np.float32)))
        with pytest.raises(TypeError, match="float"):
            conv_bn_relu(conv, bn, mr.Tensor(x.numpy().astype(np.float64)))


def test_a_recorded_evaluation_notices_a_statistic_that_was_replaced(rng):
    conv, bn = layers(rng, np.float32, 4, 8)
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 4)).astype(np.float32))

    def evaluate(x):
        with mr.no_grad():
            return conv_bn_relu(conv, bn, x)

    recorded = mr.graph(evaluate)
    for _ in range(4):
        np.testing.assert_array_equal(recorded(x).numpy(), evaluate(x).numpy())
    bn.running_mean.data = mr.Tensor(np.zeros(8, np.float32)).data
    with pytest.raises(RuntimeError, match="another array now"):
        recorded(x)

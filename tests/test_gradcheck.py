"""Every operation, block and network against central differences in float64, and a wrong gradient that is caught."""

import numpy as np
import pytest
from test_avgpool import GEOMETRIES as POOLS

import minires as mr
from minires.tensor import record

F = mr.functional

CONVOLUTIONS = [  # batch, in and out channels, image, kernel, stride, padding
    (1, 1, 1, (1, 1), (1, 1), 1, 0),
    (2, 2, 3, (5, 7), (3, 3), 1, 1),
    (2, 4, 4, (5, 7), (3, 3), 1, 1),
    (1, 3, 4, (6, 5), (3, 3), 2, 1),
    (1, 4, 8, (5, 4), (3, 3), 2, 1),
    (2, 2, 2, (3, 3), (3, 3), 1, 2),
    (1, 2, 2, (4, 5), (2, 3), (2, 1), (3, 2)),
    (1, 2, 3, (4, 4), (4, 4), 1, 0),
    (2, 3, 2, (5, 5), (1, 1), 2, 0),
    (1, 2, 2, (7, 7), (3, 3), 3, 1),
]


def tensor(rng, *shape):
    return mr.Tensor(rng.standard_normal(shape))


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)
def test_conv2d(rng, geometry, algorithm):
    n, c, o, image, kernel, stride, padding = geometry
    inputs = tensor(rng, n, *image, c), tensor(rng, *kernel, c, o), tensor(rng, o)
    mr.gradcheck(lambda x, w, b: F.conv2d(x, w, b, stride, padding, algorithm), inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 5, 2), (3, 2, 2, 4), (2, 5, 5, 3)], ids=str)
def test_batch_norm(rng, shape, training):
    c = shape[3]
    running = tensor(rng, c), mr.Tensor(rng.uniform(0.5, 2, c))

    def f(x, weight, bias):
        return F.batch_norm(x, *running, weight, bias, training, momentum=0.0, eps=1e-2)

    mr.gradcheck(f, (tensor(rng, *shape), tensor(rng, c), tensor(rng, c)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 5, 2), (3, 2, 2, 4), (2, 5, 5, 3)], ids=str)
def test_batch_norm_relu(rng, shape, with_residual, training):
    c = shape[3]
    running = tensor(rng, c), mr.Tensor(rng.uniform(0.5, 2, c))

    def f(x, weight, bias, residual=None):
        return F.batch_norm_relu(x, *running, weight, bias, residual, training, momentum=0.0, eps=1e-2)

    residual = (tensor(rng, *shape),) if with_residual else ()
    mr.gradcheck(f, (tensor(rng, *shape), tensor(rng, c), tensor(rng, c), *residual))


@pytest.mark.parametrize("geometry", POOLS, ids=str)
def test_avg_pool2d(rng, geometry):
    image, *window = geometry
    mr.gradcheck(lambda x: F.avg_pool2d(x, *window), (tensor(rng, 2, *image, 2),))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 3)], ids=str)
def test_relu_add_pool_and_reshape(rng, shape):
    mr.gradcheck(F.relu, (tensor(rng, *shape),))
    mr.gradcheck(F.add, (tensor(rng, *shape), tensor(rng, *shape)))
    mr.gradcheck(F.global_avg_pool2d, (tensor(rng, *shape),))
    mr.gradcheck(lambda x: F.relu(x).reshape(shape[0], -1), (tensor(rng, *shape),))


@pytest.mark.parametrize(("channels", "stride"), [(3, 2), (4, 3), (6, 1)])
def test_shortcut(rng, channels, stride):
    mr.gradcheck(lambda x: F.shortcut(x, channels, stride), (tensor(rng, 2, 5, 4, 3),))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (20, 7, 18)], ids=str)
def test_linear(rng, shape):
    n, n_in, n_out = shape
    mr.gradcheck(F.linear, (tensor(rng, n, n_in), tensor(rng, n_out, n_in), tensor(rng, n_out)))
    mr.gradcheck(F.linear, (tensor(rng, n, n_in), tensor(rng, n_out, n_in)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(rng, smoothing):
    labels = np.array([0, 3, 2, 2])
    mr.gradcheck(lambda z: F.cross_entropy(z, labels, smoothing), (tensor(rng, 4, 5),))


BLOCKS = [
    (mr.resnet.BasicBlock, 2, 2, 1, "A"),
    (mr.resnet.BasicBlock, 2, 4, 2, "A"),
    (mr.resnet.BasicBlock, 2, 3, 2, "B"),
    (mr.resnet.Bottleneck, 8, 2, 1, "A"),
    (mr.resnet.Bottleneck, 2, 2, 2, "A"),
    (mr.resnet.Bottleneck, 2, 2, 2, "B"),
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks(rng, block):
    kind, *arguments = block
    mr.manual_seed(1)
    check_module(kind(*arguments).to(np.float64), tensor(rng, 2, 5, 6, arguments[0]))


def check_module(module, x, loss=lambda y: y):
    for name, parameter in module.named_parameters():
        if "bn" in name:  # at weight 1 and bias 0 many gradients are 0 or small
            parameter.data = mr.Tensor(parameter.numpy() + np.random.default_rng(2).uniform(-0.3, 0.3, parameter.shape)).data
    mr.gradcheck(lambda: loss(module(x)), {"x": x, **dict(module.named_parameters())})


class SmallResNet(mr.nn.Module):
    def __init__(self):
        self.conv1 = mr.nn.Conv2d(3, 2, 3, padding=1)
        self.bn1 = mr.nn.BatchNorm2d(2)
        blocks = [(2, 2, 1, "A"), (2, 3, 2, "A"), (3, 4, 2, "B")]
        self.layers = mr.nn.Sequential(*(mr.resnet.BasicBlock(*b) for b in blocks))
        self.fc = mr.nn.Linear(4, 5)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.global_avg_pool2d(x))


def test_a_whole_network_down_to_the_loss(rng):
    mr.manual_seed(3)
    labels = np.array([1, 4, 0])
    net = SmallResNet().to(np.float64)
    check_module(net, tensor(rng, 3, 7, 6, 3), lambda y: F.cross_entropy(y, labels, 0.1))


def test_a_wrong_gradient_is_caught(rng):
    """As of a ReLU that lets the gradient of one negative element through."""

    def wrong_relu(x):
        y = F.relu(x)

        def backward(dy):
            dx = np.where(x.numpy() > 0, mr.Tensor.wrap(dy).numpy(), 0)
            dx[1, 2] = 0.75
            return (mr.Tensor(dx).data,)

        return record("wrong_relu", y.data, (x,), backward)

    values = rng.uniform(0.5, 1, (2, 3))
    values[1, 2] = -0.5
    with pytest.raises(mr.GradcheckError, match=r"gradient of input 0\[1, 2\]: analytic 0.75, numerical 0 "):
        mr.gradcheck(wrong_relu, (mr.Tensor(values),))


@pytest.mark.parametrize("factor", [1 + 1e-5, -1.0, 0.0, float("nan")])
def test_a_wrong_factor_is_caught(rng, factor):
    def wrong(x):
        y = F.relu(x)
        return record("wrong", y.data, (x,), lambda dy: (mr.Tensor(mr.Tensor.wrap(dy).numpy() * factor).data,))

    with pytest.raises(mr.GradcheckError, match="gradient of w"):
        x = mr.Tensor(rng.uniform(0.5, 1, (3,)))
        mr.gradcheck(lambda: wrong(x), {"w": x})


def test_only_float64():
    with pytest.raises(TypeError, match="input 0 must be float64, got float32"):
        mr.gradcheck(F.relu, (mr.Tensor([1.0]),))

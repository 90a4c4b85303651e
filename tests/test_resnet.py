import math

import numpy as np
import pytest

import minires as mr
from minires.resnet import BasicBlock, Bottleneck, ResNet


def parameters(net):
    return sum(math.prod(p.shape) for p in net.parameters())


def test_parameter_counts():
    assert parameters(mr.resnet.resnet20()) == 269_722
    assert parameters(mr.resnet.resnet20(shortcut="B")) == 272_474
    assert parameters(ResNet(BasicBlock, [3, 3, 3])) == 269_722
    assert parameters(mr.resnet.resnet56()) == 853_018


def test_names_are_those_of_a_pytorch_resnet():
    names = mr.resnet.resnet20(shortcut="B").state_dict()
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"}
    assert expected < names.keys()


@pytest.mark.no_late
@pytest.mark.parametrize(
    "arguments",
    [
        (BasicBlock, [1, 1, 1], "A"),
        (BasicBlock, [1, 1, 1], "B"),
        (BasicBlock, [2, 2, 2], "A"),
        (Bottleneck, [1, 1, 1], "A"),
        (Bottleneck, [1, 1, 1], "B"),
    ],
    ids=str,
)
def test_overfits_one_batch(arguments):
    block, layers, shortcut = arguments
    mr.manual_seed(0)
    net = ResNet(block, layers, shortcut=shortcut)
    split = mr.cifar.synthetic(16, 10, seed=1).train
    ((x, labels),) = mr.cifar.Loader(split, 16, train=False)
    optimizer = mr.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(60):
        loss = mr.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return
    pytest.fail(f"loss {loss.item()} after 60 steps")


def test_any_image_size():
    with mr.no_grad():
        assert mr.resnet.resnet(8)(mr.Tensor(np.ones((2, 1, 5, 3), np.float32))).shape == (2, 10)


def test_bad_arguments():
    with pytest.raises(ValueError, match="shortcut must be 'A' or 'B', got 'C'"):
        ResNet(BasicBlock, [1, 1, 1], shortcut="C")
    with pytest.raises(ValueError, match="three positive block counts"):
        ResNet(BasicBlock, [1, 0, 1])
    with pytest.raises(ValueError, match="depth must be 6 n"):
        mr.resnet.resnet(21)
    with pytest.raises(ValueError, match="x has 4 channels"):
        mr.resnet.resnet(8)(mr.Tensor(np.ones((1, 8, 8, 4), np.float32)))


class Guarded(np.ndarray):
    """An array that refuses NumPy's arithmetic."""

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        raise AssertionError(f"NumPy's {ufunc.__name__} on the path of training")

    def __array_function__(self, function, types, arguments, keywords):
        if function not in (np.copyto,):
            raise AssertionError(f"NumPy's {function.__name__} on the path of training")
        return super().__array_function__(function, types, arguments, keywords)


def test_no_arithmetic_outside_the_kernels(monkeypatch, current_device):
    if current_device != "cpu":
        pytest.skip("device arrays are NumPy's on the cpu device only")
    mr.manual_seed(0)
    net = mr.resnet.resnet(8, shortcut="B")
    optimizer = mr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    loader = mr.cifar.Loader(mr.cifar.synthetic(20, 10).train, 20, train=True)
    now = mr.device.current()
    empty = type(now).empty.__get__(now)
    monkeypatch.setattr(now, "empty", lambda shape, dtype: empty(shape, dtype).view(Guarded))

    def refuse(*arguments, **keywords):
        raise AssertionError("NumPy's arithmetic on the path of training")

    with monkeypatch.context() as patch:
        for name in dir(np):
            if isinstance(getattr(np, name), np.ufunc):
                patch.setattr(np, name, refuse)
        for name in ["sum", "mean", "var", "std", "dot", "einsum", "tensordot", "max", "min", "argmax", "clip", "where"]:
            patch.setattr(np, name, refuse)
        before = net.conv1.weight.numpy().tobytes()
        for x, labels in loader:
            loss = mr.functional.cross_entropy(net(x), labels, 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mr.functional.count_correct(net.eval()(x), labels)
    assert net.conv1.weight.numpy().tobytes() != before
    with pytest.raises(AssertionError, match="NumPy's add"):
        x.data + x.data


@pytest.mark.parametrize(("depth", "classes", "shortcut"), [(8, 10, "A"), (14, 7, "B"), (20, 10, "B")])
def test_a_network_follows_from_its_weights(depth, classes, shortcut, rng):
    net = mr.resnet.resnet(depth, classes, shortcut)
    state = net.state_dict() | {"bn1.num_batches_tracked": np.array(3)}  # as from PyTorch
    again = mr.resnet.from_state_dict(state)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in net.named_parameters()]
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 3)).astype(np.float32))
    assert (again.eval()(x).numpy() == net.eval()(x).numpy()).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("fc.weight"),
        lambda state: state.pop("conv1.weight"),
        lambda state: state.update({"layer1.0.conv3.weight": np.zeros(3)}),
        lambda state: state.update({"layer4.0.conv1.weight": np.zeros(3)}),
        lambda state: state.update({"conv1.weight": np.zeros((16, 1, 3, 3))}),
        lambda state: state.clear(),
    ],
)
def test_weights_of_another_network_are_refused(change):
    state = mr.resnet.resnet(8).state_dict()
    change(state)
    with pytest.raises(ValueError, match="not the weights of a ResNet of BasicBlocks"):
        mr.resnet.from_state_dict(state)

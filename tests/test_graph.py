"""mr.graph(): a recorded step does what the step does. It is replayed from the third call on."""

import numpy as np
import pytest
from steps import training_step

import minires as mr
from minires import device


def train(wrap, steps, lr_of):
    mr.manual_seed(0)
    net = mr.resnet.resnet(8)
    optimizer = mr.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)

    step, log = wrap(training_step(net, optimizer)), []
    train = mr.cifar.synthetic(5, 1).train
    middle = mr.cifar.Split(np.ascontiguousarray(train.images[:, 8:24, 8:24]), train.labels)
    loader = mr.cifar.Loader(middle, 2, train=True)  # the last batch is smaller
    for loader.epoch in range(steps):
        for x, labels in loader:
            optimizer.lr = lr_of(loader.epoch)
            loss, correct = step(x, labels)
            log.append((loss.item(), int(correct)))
    return log, net.state_dict()


def test_a_recorded_training_step_gives_the_same_bits():
    def lr_of(epoch):
        return 0.1 / (epoch + 1)

    log, state = train(lambda step: step, 5, lr_of)
    log_of_graph, state_of_graph = train(mr.graph, 5, lr_of)
    assert log_of_graph == log
    for name, value in state.items():
        np.testing.assert_array_equal(state_of_graph[name], value)


def test_shapes_and_results():
    double = mr.graph(lambda x, n: (x + x, n))
    for size in (3, 4, 3, 3, 3, 4, 3):
        x = mr.Tensor(np.full(size, size, np.float32))
        y, n = double(x, device.current().to_device(np.arange(size, dtype=np.int32)))
        np.testing.assert_array_equal(y.numpy(), np.full(size, 2 * size))
        assert n.shape == (size,)


def test_bad_labels_are_found_in_the_first_call():
    loss = mr.graph(lambda x, labels: mr.functional.cross_entropy(x, labels))
    labels = device.current().to_device(np.array([0, 5], np.int32))
    with pytest.raises(ValueError, match=r"target\[1\] is 5"):
        loss(mr.Tensor(np.zeros((2, 5), np.float32)), labels).item()


def double(x):
    return x + x


def test_an_exception_in_a_recorded_function_leaves_the_device_usable():
    calls = []

    def function(x):
        calls.append(0)
        y = double(x)
        if len(calls) == 3:
            raise KeyError("oops")
        return y

    run, x = mr.graph(function), mr.Tensor([1.0, 2.0])
    for _ in range(2):
        assert run(x).numpy().tolist() == [2, 4]
    with pytest.raises(KeyError, match="oops"):
        run(x)
    assert double(x).numpy().tolist() == [2, 4]
    assert run(x).numpy().tolist() == [2, 4]
    assert run(mr.Tensor([3.0, 4.0])).numpy().tolist() == [6, 8]
    assert len(calls) == 4


@pytest.mark.parametrize("what", ["numpy", "repr", "Tensor", "lr"])
def test_the_host_in_a_recorded_function_is_one_sentence(what):
    w = mr.Tensor([1.0], requires_grad=True)
    optimizer = mr.optim.SGD([w], 0.1)
    w.grad = mr.Tensor([1.0])
    optimizer.step()

    def function(x):
        if what == "numpy":
            double(x).numpy()
        elif what == "repr":
            repr(x)
        elif what == "lr":
            optimizer.lr = 0.5
        return x + (mr.Tensor([1.0]) if what == "Tensor" else x)

    run = mr.graph(function)
    for _ in range(2):
        run(mr.Tensor([1.0]))
    with pytest.raises(mr.DeviceError, match="must not bring data from or to the host"):
        run(mr.Tensor([1.0]))
    assert double(mr.Tensor([2.0])).item() == 4


def recorded_step():
    mr.manual_seed(0)
    net = mr.nn.Sequential(mr.nn.Linear(3, 4), mr.nn.ReLU(), mr.nn.Linear(4, 2))
    optimizer = mr.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def step(x, labels):
        loss = mr.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    x = mr.Tensor(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
    labels = device.current().to_device(np.array([0, 1, 0, 1, 1], np.int32))
    return net, optimizer, step, x, labels


def test_a_recorded_step_goes_on_from_what_was_loaded():
    net, optimizer, step, x, labels = recorded_step()
    run = mr.graph(step)
    state, velocities = net.state_dict(), optimizer.state_dict()
    first = [run(x, labels).item() for _ in range(5)]
    net.load_state_dict(state)
    optimizer.load_state_dict(velocities)
    assert [run(x, labels).item() for _ in range(5)] == first


def test_a_replaced_parameter_is_an_error():
    net, _, step, x, labels = recorded_step()
    run = mr.graph(step)
    for _ in range(4):
        run(x, labels)
    net.to(np.float32)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(\d.* has another array now.*make a new graph"):
        run(x, labels)


def test_a_replay_is_launches_alone_until_something_watches():
    calls = []
    run = mr.graph(lambda x: (calls.append(0), double(x))[1])
    for value in range(5):
        assert run(mr.Tensor([value + 0.5])).item() == 2 * value + 1
    assert len(calls) == 3
    with mr.profile() as profile:
        assert run(mr.Tensor([2.0])).item() == 4
    assert profile.kernels["add_forward"].launches == 1
    assert len(calls) == 4
    assert run(mr.Tensor([3.0])).item() == 6
    assert len(calls) == 4


def test_two_recordings_share_no_memory():
    """What one call's intermediate values lay in, another's results must not."""
    first, second = mr.graph(lambda x: double(double(x))), mr.graph(lambda x: double(double(double(x))))
    x = mr.Tensor(np.arange(1000, dtype=np.float32))
    for _ in range(4):
        four = first(x)
        eight, sixteen = second(x), double(eight_of(x))
        np.testing.assert_array_equal(four.numpy(), 4 * x.numpy())
        np.testing.assert_array_equal(eight.numpy(), 8 * x.numpy())
        np.testing.assert_array_equal(sixteen.numpy(), 16 * x.numpy())


def eight_of(x):
    return double(double(double(x)))


def test_filled_and_copied_arrays_are_recorded():
    """A replay fills and copies anew: what the function then adds to must not be what the call before left."""
    x, ones = mr.Tensor([1.0, 2.0]), device.current().to_device(np.ones(2, np.float32))

    def function(x):
        now = device.current()
        total, copy = now.filled((2,), np.float32, 5), now.empty((2,), np.float32)
        now.assign(copy, ones)
        for target in (total, copy):
            now.assign(target, mr.tensor.add_arrays(target, x.data))
        return mr.Tensor.wrap(total), mr.Tensor.wrap(copy)

    run = mr.graph(function)
    for _ in range(5):
        total, copy = run(x)
        assert total.numpy().tolist() == [6, 7]
        assert copy.numpy().tolist() == [2, 3]

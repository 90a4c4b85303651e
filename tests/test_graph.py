"""mr.graph(): a recorded step does what the step does. On a GPU it is replayed from the third call on."""

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
    loader = mr.cifar.Loader(mr.cifar.synthetic(5, 1).train, 2, train=True)  # the last batch is smaller
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

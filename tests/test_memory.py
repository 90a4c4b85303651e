"""The CPU device's memory: bounded by what was in use at once, and nothing asked of the system once a program repeats itself."""

import numpy as np
import pytest
from steps import training_step

import minires as mr
from minires.device import memory


@pytest.fixture(autouse=True)
def on_the_cpu(current_device):
    if current_device != "cpu":
        pytest.skip("on a GPU CuPy keeps memory")


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The sizes of what pools have asked of the system."""
    sizes = []

    class Numpy:
        def __getattr__(self, name):
            return getattr(np, name)

        @staticmethod
        def empty(size, dtype):
            sizes.append(size)
            return np.empty(size, dtype)

    monkeypatch.setattr(memory, "np", Numpy())
    return sizes


def test_whatever_the_sizes_what_is_kept_is_bounded(rng, asked):
    pool, alive, most = memory.Pool(most=2), [], 0
    for _ in range(3000):
        alive.append(pool.empty((int(rng.integers(1, 100_000)),), np.float32))
        in_use = sum(a.nbytes for a in alive)
        most = max(most, in_use)
        assert in_use <= pool.used <= 1.13 * in_use + 64 * len(alive)
        assert pool.used + pool.unused <= 2 * (1.13 * most + 64 * 20)
        while len(alive) > rng.integers(1, 20):
            alive.pop(int(rng.integers(len(alive))))
    assert len(asked) < 1500  # of 3,000 of random sizes: a size is rounded to one of few
    alive.clear()
    assert pool.used == 0


def test_arrays_do_not_overlap_and_begin_with_a_line_of_the_cache(rng):
    pool = memory.Pool(most=2)
    for _ in range(20):
        arrays = [pool.empty((int(n),), np.uint8) for n in rng.integers(1, 5000, 20)]
        for i, array in enumerate(arrays):
            assert array.ctypes.data % 64 == 0
            array[...] = i
        assert all((array == i).all() for i, array in enumerate(arrays))


@pytest.mark.parametrize("wrap", [lambda step: step, mr.graph], ids=["eager", "recorded"])
def test_a_training_step_asks_the_system_for_nothing(wrap, asked):
    net = mr.resnet.resnet(8)
    step = wrap(training_step(net, mr.optim.SGD(net.parameters(), 0.1, momentum=0.9)))
    loader = mr.cifar.Loader(mr.cifar.synthetic(48, 1).train, 16, train=True)
    for _ in range(2):
        for x, labels in loader:
            step(x, labels)
    assert asked
    asked.clear()
    for x, labels in loader:
        step(x, labels)
    assert not asked


def test_an_address_sanitizer_sees_what_lies_behind(monkeypatch):
    monkeypatch.setenv("MINIRES_CXXFLAGS", "-fsanitize=address")
    array = mr.device.current().new_pool(most=2).empty((1001,), np.uint8)
    assert array.base.base._block[0].nbytes == 1001


def test_data_are_there_once():
    data = mr.cifar.synthetic(20, 1).train
    assert np.shares_memory(mr.cifar.Loader(data, 10, train=False)._images, data.images)

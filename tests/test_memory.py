"""The CPU device's memory: bounded by what was in use at once, and nothing asked of the system once a program repeats itself."""

import numpy as np
import pytest
from steps import training_step

import minires as mr
from minires import device
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
        alive.append(pool.empty((int(rng.integers(1, 100_000)),), np.dtype(np.float32)))
        in_use = sum(a.nbytes for a in alive)
        most = max(most, pool.used)
        assert in_use <= pool.used <= 2.26 * in_use + 64 * len(alive)  # rounded by an eighth, or of twice the size
        assert pool.used + pool.unused <= 2 * most
        while len(alive) > rng.integers(1, 20):
            alive.pop(int(rng.integers(len(alive))))
    assert len(asked) < 300  # of 3,000 of random sizes
    alive.clear()
    assert pool.used == 0


def test_arrays_do_not_overlap_and_begin_with_a_line_of_the_cache(rng):
    pool = memory.Pool(most=2)
    for _ in range(20):
        arrays = [pool.empty((int(n),), np.dtype(np.uint8)) for n in rng.integers(1, 5000, 20)]
        for i, array in enumerate(arrays):
            assert array.ctypes.data % 64 == 0
            array[...] = i
        assert all((array == i).all() for i, array in enumerate(arrays))


@pytest.mark.parametrize("wrap", [lambda step: step, mr.graph], ids=["eager", "recorded"])
def test_a_training_step_asks_the_system_for_nothing(wrap, asked, monkeypatch):
    now = device.current()
    monkeypatch.setattr(now, "pool", now.new_pool(most=2))  # without what other tests have left
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


def test_recordings_of_other_shapes_share_their_memory():
    """The last batch of an epoch is smaller: what is recorded for it lies where that of the whole batches does."""
    net = mr.resnet.resnet(8)
    step = mr.graph(training_step(net, mr.optim.SGD(net.parameters(), 0.1, momentum=0.9)))
    pools = []
    new_pool = type(mr.device.current()).new_pool
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mr.device.current(), "new_pool", lambda most: pools.append(new_pool(most)) or pools[-1])
        held = []
        for size in (16, 10):
            for x, labels in mr.cifar.Loader(mr.cifar.synthetic(4 * size, 1).train, size, train=True):
                step(x, labels)
            held.append(pools[0].used + pools[0].unused)
    assert len(pools) == 1 and held[1] < 1.15 * held[0]


def test_an_address_sanitizer_sees_what_lies_behind(monkeypatch):
    monkeypatch.setenv("MINIRES_CXXFLAGS", "-fsanitize=address")
    pool = mr.device.current().new_pool(most=2)
    array = pool.empty((1001,), np.dtype(np.uint8))
    assert array.base.base._block[2].nbytes == 1001
    del array  # a larger block that is unused does not serve
    assert pool.empty((1000,), np.dtype(np.uint8)).base.base._block[2].nbytes == 1000


def test_data_are_there_once():
    data = mr.cifar.synthetic(20, 1).train
    assert np.shares_memory(mr.cifar.Loader(data, 10, train=False)._images, data.images)

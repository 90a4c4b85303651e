import numpy as np

import minires as mr


def test_launches_and_bytes():
    x = mr.Tensor(np.ones((10, 7), np.float32), requires_grad=True)
    mr.functional.relu(x)
    with mr.profile() as profile:
        y = mr.functional.relu(mr.functional.relu(x))
        y.backward(np.ones(y.shape, np.float32))
    mr.functional.relu(x)
    assert {name: k.launches for name, k in profile.kernels.items()} == {"relu_forward": 2, "relu_backward": 2}
    assert profile.kernels["relu_forward"].bytes == 2 * 2 * 280  # x and y, twice
    assert profile.kernels["relu_backward"].bytes == 2 * 3 * 280
    assert all(0 < k.seconds < 10 for k in profile.kernels.values())


def test_the_table_has_the_longest_first():
    profile = mr.profiler.Profile()
    profile.kernels = {
        "short": mr.profiler.KernelTime(launches=3, seconds=0.25, bytes=10**9),
        "long": mr.profiler.KernelTime(launches=1, seconds=0.75, bytes=3 * 10**9),
    }
    head, first, second = str(profile).splitlines()
    assert head.split() == ["launches", "ms", "share", "GB/s", "kernel"]
    assert first.split() == ["1", "750.00", "75.0%", "4.0", "long"]
    assert second.split() == ["3", "250.00", "25.0%", "4.0", "short"]


def test_it_does_not_change_results(rng):
    x = mr.Tensor(rng.standard_normal((2, 8, 8, 3)).astype(np.float32))
    w = mr.Tensor(rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    expected = mr.functional.conv2d(x, w).numpy()
    with mr.profile():
        np.testing.assert_array_equal(mr.functional.conv2d(x, w).numpy(), expected)

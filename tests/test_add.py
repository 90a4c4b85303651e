import numpy as np
import pytest
from reference import assert_close

import minires as mr
from minires import device


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 9, 11)], ids=str)
def test_add(rng, dtype, shape):
    a, b = (mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for _ in range(2))
    c = a + b
    np.testing.assert_array_equal(c.numpy(), a.numpy() + b.numpy())
    dc = rng.standard_normal(shape).astype(dtype)
    c.backward(dc)
    np.testing.assert_array_equal(a.grad.numpy(), dc)
    np.testing.assert_array_equal(b.grad.numpy(), dc)


@pytest.mark.parametrize(("n", "count"), [(1, 1), (3, 257), (40, 512)])
def test_sum_over_batch(rng, dtype, n, count):
    now, parts = device.current(), rng.standard_normal((n, count)).astype(dtype)
    total = now.empty((count,), dtype)
    device.launch("sum_over_batch", (-(-count // 256),), (256,), now.to_device(parts), total, n, count)
    assert_close(now.to_host(total), parts.sum(0, np.float64), dtype)


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"b must have the shape \(2, 3\) of a, got \(3,\)"):
        mr.Tensor(np.ones((2, 3), np.float32)) + mr.Tensor(np.ones(3, np.float32))


@pytest.mark.parametrize(("channels", "out", "stride"), [(1, 1, 1), (4, 8, 2), (3, 8, 2), (5, 5, 3), (2, 7, 1)])
@pytest.mark.parametrize(
    "image", [(1, 1), (8, 8), (7, 5), (9, 35)], ids=str
)  # the last needs several blocks for a plane
def test_shortcut(rng, dtype, channels, out, stride, image):
    x = mr.Tensor(rng.standard_normal((2, channels, *image)).astype(dtype), requires_grad=True)
    y = mr.functional.shortcut(x, out, stride)
    before = (out - channels) // 2
    expected = np.zeros((2, out, -(-image[0] // stride), -(-image[1] // stride)), dtype)
    expected[:, before : before + channels] = x.numpy()[:, :, ::stride, ::stride]
    np.testing.assert_array_equal(y.numpy(), expected)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    dx = np.zeros(x.shape, dtype)
    dx[:, :, ::stride, ::stride] = dy[:, before : before + channels]
    np.testing.assert_array_equal(x.grad.numpy(), dx)


def test_shortcut_cannot_drop_channels():
    with pytest.raises(ValueError, match="fewer than the 4 channels"):
        mr.functional.shortcut(mr.Tensor(np.ones((1, 4, 2, 2), np.float32)), 3)

import numpy as np
import pytest

import minires as mr
from minires import device, tiles


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 9, 11)], ids=str)
def test_add(rng, dtype, shape):
    a, b = (mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for _ in range(2))
    c = a + b
    np.testing.assert_array_equal(c.numpy(), a.numpy() + b.numpy())
    dc = rng.standard_normal(shape).astype(dtype)
    c.backward(dc)
    np.testing.assert_array_equal(a.grad.numpy(), dc)
    np.testing.assert_array_equal(b.grad.numpy(), dc)


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"b must have the shape \(2, 3\) of a, got \(3,\)"):
        mr.Tensor(np.ones((2, 3), np.float32)) + mr.Tensor(np.ones(3, np.float32))


WIDE = (257, 259, 1)  # more channels than a block's threads


@pytest.mark.parametrize(
    ("channels", "out", "stride"), [(1, 1, 1), (4, 8, 2), (3, 8, 2), (5, 5, 3), (2, 7, 1), (16, 48, 2), WIDE]
)
@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("image", [(1, 1), (8, 8), (7, 5), (9, 35)], ids=str)  # the last needs several blocks for a plane
def test_shortcut(rng, dtype, channels, out, stride, image, tiling, monkeypatch):
    monkeypatch.setattr(device.current(), "tiling", tiling)
    x = mr.Tensor(rng.standard_normal((2, *image, channels)).astype(dtype), requires_grad=True)
    y = mr.functional.shortcut(x, out, stride)
    before = (out - channels) // 2
    expected = np.zeros((2, -(-image[0] // stride), -(-image[1] // stride), out), dtype)
    expected[..., before : before + channels] = x.numpy()[:, ::stride, ::stride]
    np.testing.assert_array_equal(y.numpy(), expected)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    dx = np.zeros(x.shape, dtype)
    dx[:, ::stride, ::stride] = dy[..., before : before + channels]
    np.testing.assert_array_equal(x.grad.numpy(), dx)
    x.grad = None
    (mr.functional.shortcut(x, out, stride) + mr.functional.shortcut(x, out, stride)).backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), 2 * dx)  # the second is added to the first


def test_shortcut_cannot_drop_channels():
    with pytest.raises(ValueError, match="fewer than the 4 channels"):
        mr.functional.shortcut(mr.Tensor(np.ones((1, 2, 2, 4), np.float32)), 3)

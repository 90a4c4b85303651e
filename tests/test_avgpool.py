import numpy as np
import pytest
from reference import assert_close, unwindow, windows

import minires as mr
from minires import device, tiles

GEOMETRIES = [  # image, kernel, stride, padding
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    ((8, 8), (2, 2), (2, 2), (0, 0)),
    ((7, 9), (3, 2), (2, 1), (1, 1)),
    ((5, 5), (5, 5), (1, 1), (0, 0)),
    ((9, 8), (2, 3), (4, 5), (0, 1)),
    ((6, 6), (4, 4), (1, 1), (2, 2)),
    ((5, 7), (5, 3), (5, 3), (0, 0)),  # as high as the image, but narrower
    ((5, 7), (3, 7), (3, 7), (0, 0)),
]


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("c", [3, 96, 257])  # the last are more than a block's threads
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_avg_pool2d(rng, dtype, geometry, c, tiling, monkeypatch):
    monkeypatch.setattr(device.current(), "tiling", tiling)
    image, kernel, stride, padding = geometry
    x = mr.Tensor(rng.standard_normal((2, *image, c)).astype(dtype), requires_grad=True)
    y = mr.functional.avg_pool2d(x, kernel, stride, padding)
    assert_close(y, windows(x.numpy(), kernel, stride, padding).mean((4, 5)), dtype)
    dy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    spread = np.broadcast_to(dy[..., None, None] / np.prod(kernel), (*y.shape, *kernel))
    assert_close(x.grad, unwindow(spread, x.shape, stride, padding), dtype)


def test_global(rng, dtype):
    x = mr.Tensor(rng.standard_normal((3, 5, 7, 4)).astype(dtype), requires_grad=True)
    y = mr.functional.global_avg_pool2d(x)
    assert_close(y, x.numpy().astype(np.float64).mean((1, 2)), dtype)
    dy = rng.standard_normal((3, 4)).astype(dtype)
    y.backward(dy)
    assert_close(x.grad, np.broadcast_to(dy[:, None, None] / 35, x.shape), dtype)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((6,), "larger than the padded image"), ((2, 0), "stride must be at least 1"), ((2, 1, 2), "more than half")],
)
def test_bad_geometry(arguments, words):
    with pytest.raises(ValueError, match=words):
        mr.functional.avg_pool2d(mr.Tensor(np.ones((1, 5, 5, 1), np.float32)), *arguments)

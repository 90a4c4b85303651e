import numpy as np
import pytest
from reference import assert_close, unwindow, windows

from minires import device, tiles
from minires.functional import _launch_pixels

GEOMETRIES = [  # image, kernel, stride, padding
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    ((5, 7), (3, 3), (1, 1), (1, 1)),
    ((7, 5), (3, 2), (2, 1), (0, 2)),
    ((4, 4), (4, 4), (3, 3), (0, 0)),
    ((35, 33), (5, 1), (1, 3), (4, 0)),
    ((3, 40), (1, 3), (1, 1), (0, 1)),  # rows that need two blocks
    ((9, 9), (2, 2), (4, 4), (0, 0)),  # pixels between the windows that no window reads
]


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("c", [3, 48])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_im2col_and_col2im(rng, dtype, geometry, c, tiling, monkeypatch):
    monkeypatch.setattr(device.current(), "tiling", tiling)
    (h, w), kernel, stride, padding = geometry
    n = 2
    x = rng.standard_normal((n, h, w, c)).astype(dtype)
    expected = windows(x, kernel, stride, padding)
    oh, ow = expected.shape[1:3]
    now = device.current()
    numbers = c, h, w, *kernel, oh, ow, *stride, *padding
    columns, folded = now.empty((n, oh, ow, *kernel, c), dtype), now.empty(x.shape, dtype)
    _launch_pixels("im2col", n * oh * ow, c, now.to_device(x), columns, n * oh * ow, *numbers)
    np.testing.assert_array_equal(now.to_host(columns), expected.transpose(0, 1, 2, 4, 5, 3))

    d_columns = rng.standard_normal(columns.shape).astype(dtype)
    _launch_pixels("col2im", n * h * w, c, now.to_device(d_columns), folded, n * h * w, *numbers)
    assert_close(now.to_host(folded), unwindow(d_columns.transpose(0, 1, 2, 5, 3, 4), x.shape, stride, padding), dtype)

import numpy as np
import pytest
from reference import assert_close, unwindow, windows

from minires import device
from minires.functional import _launch_planes

GEOMETRIES = [  # image, kernel, stride, padding
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    ((5, 7), (3, 3), (1, 1), (1, 1)),
    ((7, 5), (3, 2), (2, 1), (0, 2)),
    ((4, 4), (4, 4), (3, 3), (0, 0)),
    ((35, 33), (5, 1), (1, 3), (4, 0)),
    ((3, 40), (1, 3), (1, 1), (0, 1)),  # rows that need two blocks
    ((9, 9), (2, 2), (4, 4), (0, 0)),  # pixels between the windows that no window reads
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_im2col_and_col2im(rng, dtype, geometry):
    (h, w), kernel, stride, padding = geometry
    n, c = 2, 3
    x = rng.standard_normal((n, c, h, w)).astype(dtype)
    expected = windows(x, kernel, stride, padding)
    oh, ow = expected.shape[2:4]
    now = device.current()
    numbers = h, w, *kernel, oh, ow, *stride, *padding
    columns, folded = now.empty((n, c, *kernel, oh, ow), dtype), now.empty(x.shape, dtype)
    _launch_planes("im2col", n * c * kernel[0] * kernel[1], oh, ow, now.to_device(x), columns, *numbers)
    np.testing.assert_array_equal(now.to_host(columns), expected.transpose(0, 1, 4, 5, 2, 3))

    d_columns = rng.standard_normal(columns.shape).astype(dtype)
    _launch_planes("col2im", n * c, h, w, now.to_device(d_columns), folded, *numbers)
    assert_close(now.to_host(folded), unwindow(d_columns.transpose(0, 1, 4, 5, 2, 3), x.shape, stride, padding), dtype)

import numpy as np
import pytest
from reference import assert_close

from minires import device, tiles
from minires.functional import _gemm

SHAPES = [
    (1, 1, 1),
    (16, 16, 16),
    (16, 300, 27),
    (17, 33, 5),
    (32, 128, 144),
    (64, 64, 64),
    (65, 130, 70),
    (10, 3, 200),
]


def operands(rng, kind, m, n, k, batch, dtype):
    a = rng.standard_normal((batch, m, k)).astype(dtype)
    b = rng.standard_normal((batch, k, n)).astype(dtype)
    stored_a = a.swapaxes(1, 2) if kind[0] == "t" else a
    stored_b = b.swapaxes(1, 2) if kind[1] == "t" else b
    return a, b, *(device.current().to_device(np.ascontiguousarray(s)) for s in (stored_a, stored_b))


TILES = {f"{name} {t.rows}x{t.columns}": t for name, table in tiles.TABLES.items() for t in table.gemm}


@pytest.mark.parametrize("variant", ["tiled", *TILES])
@pytest.mark.parametrize("kind", ["nn", "nt", "tn"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kernel_is_the_matrix_product(rng, dtype, kind, variant, shape):
    (m, n, k), batch = shape, 3
    a, b, stored_a, stored_b = operands(rng, kind, m, n, k, batch, dtype)
    c = device.current().empty((batch, m, n), dtype)
    name, height, width, block = f"gemm_tiled<{tiles.TRANSPOSED[kind]}>", 16, 16, (16, 16)
    if variant != "tiled":
        tile = TILES[variant]
        name, height, width = f"gemm_blocked<{tile.arguments}, {tiles.TRANSPOSED[kind]}>", tile.rows, tile.columns
        block = (tile.threads,)
    grid = (-(-n // width), -(-m // height), 2)  # fewer than the batch: a block then goes on to the next matrix
    device.launch(name, grid, block, stored_a, stored_b, c, m, n, k, m * k, k * n, m * n, batch)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    assert_close(device.current().to_host(c), expected, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stride_of_zero_uses_one_matrix_for_the_whole_batch(rng, dtype, shape):
    m, n, k = shape
    a, b, stored_a, stored_b = operands(rng, "nn", m, n, k, 4, dtype)
    c = device.current().empty((4, m, n), dtype)
    _gemm("nn", stored_a, stored_b, c, m, n, k, (0, k * n, m * n), 4)
    assert_close(device.current().to_host(c), a[0].astype(np.float64) @ b.astype(np.float64), dtype)

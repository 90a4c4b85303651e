import numpy as np
import pytest
from reference import assert_close

import minires as mr
from minires import device, tiles
from minires.functional import _gemm, _transposed

SHAPES = [(1, 1, 1), (16, 16, 16), (16, 300, 27), (17, 33, 5), (32, 128, 144), (64, 64, 64), (65, 130, 70), (10, 3, 200)]


def operands(rng, m, n, k, transposed, dtype):
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    return a, b, *(device.current().to_device(np.ascontiguousarray(s)) for s in (a.T if transposed else a, b))


TILES = {f"{name} {t[0]}x{t[1]}": t for name, table in tiles.TABLES.items() for t in table.gemm}


@pytest.mark.parametrize("variant", TILES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kernel_is_the_matrix_product(rng, dtype, transposed, variant, shape):
    m, n, k = shape
    a, b, stored_a, stored_b = operands(rng, m, n, k, transposed, dtype)
    bm, bn, bk, tm, tn = TILES[variant]
    threads = min(bm // tm * bn // tn, tiles.TABLES[variant.split()[0]].threads)
    name = f"gemm_blocked<{bm}, {bn}, {bk}, {tm}, {tn}, {threads}, {str(transposed).lower()}>"
    for depth in {k, -(-k // (2 * bk)) * bk}:  # K as a whole, and in two chunks where it is long enough
        chunks = -(-k // depth)
        c = device.current().empty((chunks, m, n), dtype)
        device.launch(name, (-(-n // bn), -(-m // bm), chunks), (threads,), stored_a, stored_b, c, m, n, k, depth)
        parts = device.current().to_host(c).sum(0, np.float64).astype(dtype)
        assert_close(parts, a.astype(np.float64) @ b.astype(np.float64), dtype)


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("shape", [*SHAPES, (9, 12, 5000)], ids=str)
def test_as_the_operations_ask_for_it(rng, dtype, shape, tiling, monkeypatch):
    monkeypatch.setattr(device.current(), "tiling", tiling)
    m, n, k = shape
    a, b, stored_a, stored_b = operands(rng, m, n, k, True, dtype)
    c = device.current().empty((m, n), dtype)
    _gemm(stored_a, stored_b, c, m, n, k, transposed=True)
    assert_close(device.current().to_host(c), a.astype(np.float64) @ b.astype(np.float64), dtype)
    assert (tiles.gemm(m, n, k, True)[1][2] > 1) == (k == 5000)  # chunks


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (17, 33), (1152, 10)], ids=str)
def test_transpose(rng, dtype, shape):
    x = rng.standard_normal(shape).astype(dtype)
    turned = _transposed(device.current().to_device(x), *shape)
    np.testing.assert_array_equal(device.current().to_host(turned), x.T)


def test_banks_of_shared_memory(current_device):
    """The padding of a slice's rows: without it the lanes that read a column would all want one bank."""
    if current_device != "cpu" or device.is_watched():
        pytest.skip("counters are of the cpu device")
    a, b, c = (device.current().empty((128, 128), np.dtype(np.float32)) for _ in range(3))
    with mr.counters() as counted:
        _gemm(a, b, c, 128, 128, 128)
    shared = counted.launches[0].total("shared")
    assert shared.wavefronts <= 1.45 * shared.wavefronts_least

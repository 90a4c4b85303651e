import numpy as np
import pytest
from reference import assert_close

import minires as mr
from minires import device, functional, tiles

SHAPES = [(1, 1), (3, 5), (128, 10), (300, 64), (70, 48), (1000, 96), (3, 257), (40, 2304)]


@pytest.mark.parametrize("tiling", tiles.TABLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_and_its_gradient(rng, dtype, shape, tiling, monkeypatch):
    now = device.current()
    monkeypatch.setattr(now, "tiling", tiling)
    x, bias = rng.standard_normal(shape).astype(dtype), mr.Tensor(rng.standard_normal(shape[1]).astype(dtype))
    y = now.to_device(x)
    functional._add_bias(y, bias)
    np.testing.assert_array_equal(now.to_host(y), x + bias.numpy())
    bias.requires_grad = True
    assert_close(now.to_host(functional._bias_gradient(now.to_device(x), bias)), x.sum(0, np.float64), dtype)

import numpy as np
import pytest
import reference
from reference import assert_close

import minires as mr
from minires import device, tiles

SHAPES = [(2, 1, 1, 3), (1, 3, 3, 5), (4, 8, 8, 16), (3, 7, 5, 2), (2, 2, 2, 300)]
SHAPES += [(9, 13, 11, 1), (5, 9, 11, 12), (3, 5, 9, 64)]  # of several chunks, the last of fewer rows


def make(rng, shape, dtype, offset=0.0):
    c = shape[3]
    x = (rng.standard_normal(shape) * rng.uniform(0.5, 2, c) + offset).astype(dtype)
    weight, bias = (rng.standard_normal(c).astype(dtype) for _ in range(2))
    running = [mr.Tensor(rng.uniform(0.5, 2, c).astype(dtype)) for _ in range(2)]
    return [mr.Tensor(a, requires_grad=True) for a in (x, weight, bias)], running


@pytest.fixture(params=[("cuda", 256), ("cuda", 96), ("cpu", 1)], ids=str)
def sizes(request, monkeypatch):
    """The numbers of each device's table but for few, small chunks, and a block whose columns and threads do not come out even."""
    tiling, threads = request.param
    monkeypatch.setattr(device.current(), "tiling", tiling)
    monkeypatch.setattr(tiles.TABLES[tiling], "threads", threads)
    monkeypatch.setattr(tiles.TABLES[tiling], "blocks", 64)
    monkeypatch.setattr(tiles.TABLES[tiling], "rows", 1 if tiling == "cuda" else 16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training(rng, dtype, shape, sizes):
    (x, weight, bias), running = make(rng, shape, dtype)
    before = [r.numpy().astype(np.float64) for r in running]
    y = mr.functional.batch_norm(x, *running, weight, bias, training=True, momentum=0.3, eps=1e-3)
    expected, _, mean, variance = reference.batch_norm(x.numpy(), weight.numpy(), bias.numpy(), 1e-3)
    assert_close(y, expected, dtype)
    m = x.data.size // shape[3]
    assert_close(running[0], 0.7 * before[0] + 0.3 * mean.ravel(), dtype)
    assert_close(running[1], 0.7 * before[1] + 0.3 * variance.ravel() * m / (m - 1), dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    y.backward(dy)
    gradients = reference.batch_norm_gradients(x.numpy(), weight.numpy(), dy.astype(np.float64), 1e-3)
    for tensor, gradient in zip((x, weight, bias), gradients, strict=True):
        scale = np.abs(dy).sum() / shape[3]  # the sums cancel: their error is that of their terms
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=0, atol=reference.TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation(rng, dtype, shape):
    (x, weight, bias), running = make(rng, shape, dtype)
    before = [r.numpy() for r in running]
    y = mr.functional.batch_norm(x, *running, weight, bias, training=False, eps=1e-3)
    mean, variance, w, b = (a.numpy().astype(np.float64) for a in (*running, weight, bias))
    xhat = (x.numpy() - mean) / np.sqrt(variance + 1e-3)
    assert_close(y, xhat * w + b, dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    y.backward(dy)
    assert_close(x.grad, dy * w / np.sqrt(variance + 1e-3), dtype)
    np.testing.assert_allclose(
        weight.grad.numpy(), (dy * xhat).sum((0, 1, 2)), rtol=1e-4 if dtype == np.float32 else 1e-11, atol=1e-4
    )
    for old, new in zip(before, running, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_variance_survives_a_mean_ten_thousand_times_larger(rng):
    """E[x^2] - E[x]^2 would lose all digits here: 1e4^2 against a variance of 1 in float32."""
    x = (rng.standard_normal((64, 16, 16, 2)) + 1e4).astype(np.float32)
    weight, running_var = (mr.Tensor(np.ones(2, np.float32)) for _ in range(2))
    bias, running_mean = (mr.Tensor(np.zeros(2, np.float32)) for _ in range(2))
    y = mr.functional.batch_norm(mr.Tensor(x), running_mean, running_var, weight, bias, training=True)
    expected = reference.batch_norm(x, np.ones(2), np.zeros(2), 1e-5)[0]
    assert np.abs(y.numpy() - expected).max() < 2e-3  # the mean itself has a rounding of 5e-4


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_with_relu(rng, dtype, shape, with_residual, training, sizes):
    (x, weight, bias), running = make(rng, shape, dtype)
    residual = mr.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) if with_residual else None
    dy = rng.standard_normal(shape).astype(dtype)
    inputs = [t for t in (x, weight, bias, residual) if t]
    results = []
    for fused in (True, False):
        buffers = [mr.Tensor(r) for r in running]
        if fused:
            y = mr.functional.batch_norm_relu(x, *buffers, weight, bias, residual, training, 0.3, 1e-3)
        else:
            y = mr.functional.batch_norm(x, *buffers, weight, bias, training, 0.3, 1e-3)
            y = mr.functional.relu(y + residual if with_residual else y)
        for t in inputs:
            t.grad = None
        y.backward(dy)
        results.append([y.numpy(), *(b.numpy() for b in buffers), *(t.grad.numpy() for t in inputs)])
    scale = np.abs(dy).sum() / shape[3]  # the sums cancel: their error is that of their terms
    for fused, readable in zip(*results, strict=True):
        np.testing.assert_allclose(fused, readable, rtol=0, atol=reference.TOLERANCE[dtype] * scale)


def test_fused_keeps_nan():
    """As relu does: a NaN must not end as a zero."""
    x = np.ones((2, 2, 2, 1), np.float32)
    x[0, 0, 0, 0] = np.nan
    tensors = [mr.Tensor(np.ones(1, np.float32)) for _ in range(4)]
    for residual in (None, mr.Tensor(np.ones_like(x))):
        y = mr.functional.batch_norm_relu(mr.Tensor(x), *tensors, residual).numpy()
        np.testing.assert_array_equal(np.isnan(y), np.isnan(x))


def test_fused_with_a_residual_of_another_shape():
    tensors = [mr.Tensor(np.ones(3, np.float32)) for _ in range(4)]
    x, residual = (mr.Tensor(np.ones(s, np.float32)) for s in ((2, 4, 4, 3), (2, 4, 5, 3)))
    with pytest.raises(ValueError, match=r"residual must have the shape \(2, 4, 4, 3\) of x, got \(2, 4, 5, 3\)"):
        mr.functional.batch_norm_relu(x, *tensors, residual)


def test_one_value_a_channel_cannot_be_normalised():
    tensors = [mr.Tensor(np.ones(3, np.float32)) for _ in range(4)]
    with pytest.raises(ValueError, match="more than one value a channel"):
        mr.functional.batch_norm(mr.Tensor(np.ones((1, 1, 1, 3), np.float32)), *tensors, training=True)


def test_bad_shape():
    tensors = [mr.Tensor(np.ones(c, np.float32)) for c in (3, 4, 3, 3)]
    with pytest.raises(ValueError, match=r"running_var must have the shape \(3,\)"):
        mr.functional.batch_norm(mr.Tensor(np.ones((2, 4, 4, 3), np.float32)), *tensors)

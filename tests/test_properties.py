"""Any shapes, strides, paddings, dtypes and values: every operation gives the right result or a clear error.

A few hundred examples in all; 2,500 by `pytest tests/test_properties.py --hypothesis-profile=long`.
"""

import warnings

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import minires as mr

F = mr.functional
EPSILON = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-13}
DTYPES = st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])
SPECIAL = [0.0, -0.0, 1e-42, -1e-30, 1e30, -3e38, 1e300, np.inf, -np.inf, np.nan]


@st.composite
def arrays(draw, shape, dtype, special=True):
    """Normally distributed, and in some examples a few values that are not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = rng.standard_normal(shape)
    if special and array.size and draw(st.booleans()):
        values = draw(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=3))
        array.reshape(-1)[rng.integers(0, array.size, len(values))] = values
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def tensors(*arrays):
    return [mr.Tensor(a, requires_grad=True) for a in arrays]


def check(actual, expected, bound, dtype):
    """Rounding errors are at most EPSILON times `bound`, the same sum over absolute values. Where that overflows the
    dtype, or is no number, the result need not be one either."""
    actual = actual.numpy() if isinstance(actual, mr.Tensor) else actual
    assert actual.shape == expected.shape and actual.dtype == dtype
    sound = np.isfinite(bound) & (bound < np.finfo(dtype).max / 16)
    error = np.abs(np.where(sound, actual, 0) - np.where(sound, expected, 0))
    assert (error <= EPSILON[dtype] * np.where(sound, bound, 0) + 64 * np.finfo(dtype).tiny).all()


def linear_operation(run, transform, inputs, dtype):
    """Check an operation that is linear in each input against `transform`, its float64 form."""
    wide = [a.astype(np.float64) for a in inputs]
    with np.errstate(all="ignore"):
        expected, bound = transform(*wide), transform(*map(np.abs, wide))
    y = run(*tensors(*inputs))
    check(y, expected, bound, dtype)
    y.backward(np.ones(y.shape, dtype))


def pad_sum(x, weight, bias, stride, padding):
    return reference.conv2d(x, weight, stride, padding) + bias


SIZES = st.integers(1, 5)
PAIRS = st.tuples(st.integers(-1, 4), st.integers(-1, 4))


def fits(image, kernel, stride, padding):
    return (
        min(stride) >= 1 and min(padding) >= 0 and all(k <= i + 2 * p for i, k, p in zip(image, kernel, padding, strict=True))
    )


@given(st.data())
@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_conv2d(algorithm, data):
    dtype, draw = data.draw(DTYPES), data.draw
    # Of channels a few: each pair is an instance of the fast kernels, which must be compiled.
    n, c, o = draw(SIZES), draw(st.sampled_from([3, 16, 65])), draw(st.sampled_from([1, 16]))
    kernel = draw(st.one_of(st.just((3, 3)), st.tuples(SIZES, SIZES)))
    image = draw(st.tuples(st.integers(1, 20), st.integers(1, 40)))
    stride, padding = draw(st.one_of(st.just((1, 1)), PAIRS)), draw(st.one_of(st.just((1, 1)), PAIRS))
    wrong_channels = draw(st.sampled_from([0, 0, 0, 1]))
    shapes = (n, *image, c), (*kernel, c + wrong_channels, o), (o,)
    inputs = [draw(arrays(shape, dtype)) for shape in shapes]
    if wrong_channels or not fits(image, kernel, stride, padding):
        with pytest.raises(ValueError, match="conv2d: "):
            F.conv2d(*tensors(*inputs), stride, padding, algorithm)
        return
    linear_operation(
        lambda *t: F.conv2d(*t, stride, padding, algorithm), lambda *a: pad_sum(*a, stride, padding), inputs, dtype
    )


@given(st.data())
def test_linear(data):
    dtype = data.draw(DTYPES)
    n, n_in, n_out = (data.draw(st.integers(1, 70)) for _ in range(3))
    inputs = [data.draw(arrays(shape, dtype)) for shape in ((n, n_in), (n_out, n_in), (n_out,))]
    linear_operation(F.linear, lambda x, w, b: x @ w.T + b, inputs, dtype)


@given(st.data())
def test_add_relu_and_reshape(data):
    dtype, shape = data.draw(DTYPES), data.draw(st.lists(st.integers(1, 9), max_size=4).map(tuple))
    a, b = (data.draw(arrays(shape, dtype)) for _ in range(2))
    linear_operation(F.add, np.add, (a, b), dtype)
    x = tensors(a)[0]
    y = F.relu(x)
    np.testing.assert_array_equal(y.numpy(), np.where(a > 0, a, np.where(np.isnan(a), a, 0)))
    y.reshape(-1).backward(b.reshape(-1))
    np.testing.assert_array_equal(x.grad.numpy(), np.where(y.numpy() <= 0, 0, b))


@given(st.data())
def test_avg_pool2d(data):
    dtype, image = data.draw(DTYPES), data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kernel, stride, padding = data.draw(PAIRS), data.draw(PAIRS), data.draw(PAIRS)
    x = data.draw(arrays((2, *image, 3), dtype))
    possible = min(kernel) >= 1 and fits(image, kernel, stride, padding)
    if not possible or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        with pytest.raises(ValueError, match="avg_pool2d: "):
            F.avg_pool2d(*tensors(x), kernel, stride, padding)
        return
    linear_operation(
        lambda t: F.avg_pool2d(t, kernel, stride, padding),
        lambda a: reference.windows(a, kernel, stride, padding).mean((4, 5)),
        [x],
        dtype,
    )
    linear_operation(F.global_avg_pool2d, lambda a: a.mean((1, 2)), [x], dtype)


@given(st.data())
def test_shortcut(data):
    dtype, stride, channels = data.draw(DTYPES), data.draw(st.integers(-1, 4)), data.draw(st.integers(0, 9))
    n, c, h, w = (data.draw(SIZES) for _ in range(4))
    x = data.draw(arrays((n, h, w, c), dtype))
    if stride < 1 or channels < c:
        with pytest.raises(ValueError, match="shortcut: "):
            F.shortcut(*tensors(x), channels, stride)
        return
    before = (channels - c) // 2
    widths = (0, 0), (0, 0), (0, 0), (before, channels - c - before)
    y = F.shortcut(*tensors(x), channels, stride)
    np.testing.assert_array_equal(y.numpy(), np.pad(x, widths)[:, ::stride, ::stride])


@given(st.data())
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_and_its_fused_form(training, data):
    dtype, shape = data.draw(DTYPES), data.draw(st.tuples(SIZES, st.integers(1, 20), st.integers(1, 20), SIZES))
    c = shape[3]
    x, residual = (data.draw(arrays(shape, dtype)) for _ in range(2))
    weight, bias, mean = (data.draw(arrays((c,), dtype)) for _ in range(3))
    variance = np.abs(data.draw(arrays((c,), dtype)))
    running = [mr.Tensor(mean), mr.Tensor(variance)]
    fused = [mr.Tensor(mean), mr.Tensor(variance)]
    inputs = tensors(x, weight, bias, residual)
    if training and x.size == c:
        with pytest.raises(ValueError, match="batch_norm: training needs more than one value"):
            F.batch_norm(inputs[0], *running, *inputs[1:3], training)
        return
    y = F.batch_norm(inputs[0], *running, *inputs[1:3], training)
    z = F.batch_norm_relu(inputs[0], *fused, *inputs[1:], training)
    z.backward(np.ones(shape, dtype))
    assert all(t.grad.shape == t.shape for t in inputs)
    wide = x.astype(np.float64)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        m, v = (wide.mean((0, 1, 2)), wide.var((0, 1, 2))) if training else (mean.astype(float), variance.astype(float))
        m, v, w, b = (a.astype(float) for a in (m, v, weight, bias))
        scale = np.abs(w) / np.sqrt(v + 1e-5)
        expected = (wide - m) * (w / np.sqrt(v + 1e-5)) + b
        largest = np.abs(wide).max((0, 1, 2)) if training else np.abs(wide)
        bound = (largest + np.abs(m)) * scale * (10 + largest * scale / np.maximum(np.abs(w), 1e-300)) + np.abs(b)
        # Squares of deviations must fit the dtype.
        bound = np.where((largest < np.finfo(dtype).max ** 0.45) & (v < np.finfo(dtype).max ** 0.9), bound, np.inf)
        check(y, expected, bound, dtype)
        total = expected + residual
        check(z, np.where(total > 0, total, 0), bound + np.abs(residual), dtype)


@given(st.data())
def test_cross_entropy_and_count_correct(data):
    dtype, n, c = data.draw(DTYPES), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    with np.errstate(over="ignore"):
        logits = data.draw(arrays((n, c), dtype)) * dtype.type(data.draw(st.sampled_from([1, 1e-20, 50])))
    smoothing = data.draw(st.sampled_from([0.0, 0.1, 1.0, -0.5]))
    label_type = data.draw(st.sampled_from([np.uint8, np.int32, np.int64]))
    labels = np.array(data.draw(st.lists(st.integers(0, c), min_size=n, max_size=n)), label_type)
    (z,) = tensors(logits)
    if smoothing < 0 or labels.max() >= c:
        with pytest.raises(ValueError, match="cross_entropy: "):
            F.cross_entropy(z, labels, smoothing)
        return
    loss = F.cross_entropy(z, labels, smoothing)
    loss.backward()
    wide = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        target = reference.smoothed_targets(labels, c, smoothing)
        expected = -(target * np.where(target > 0, reference.log_softmax(wide), 0)).sum(1).mean()
    bound = 10 + 4 * np.abs(wide).max() if np.isfinite(wide).all() else np.inf
    check(loss, np.asarray(expected), np.asarray(bound), dtype)
    if np.isfinite(wide).all():
        assert int(F.count_correct(z, labels)) == (logits.argmax(1) == labels).sum()
    else:
        assert 0 <= int(F.count_correct(z, labels)) <= n


@given(st.data())
def test_sgd(data):
    dtype, shape = data.draw(DTYPES), data.draw(st.lists(st.integers(1, 9), max_size=3).map(tuple))
    w, g = (data.draw(arrays(shape, dtype)) for _ in range(2))
    lr, decay = (data.draw(st.sampled_from([0.0, 0.1, 1e-30])) for _ in range(2))
    momentum = data.draw(st.sampled_from([0.0, 0.9]))
    nesterov = momentum > 0 and data.draw(st.booleans())
    (parameter,) = tensors(w)
    parameter.grad = mr.Tensor(g)
    mr.optim.SGD([parameter], lr, momentum, decay, nesterov).step()
    with np.errstate(all="ignore"):
        factor = lr * (1 + momentum) if nesterov else lr
        expected = w.astype(float) - factor * (g.astype(float) + decay * w.astype(float))
        bound = np.abs(w.astype(float)) + np.abs(factor) * (np.abs(g.astype(float)) + decay * np.abs(w.astype(float)))
    check(parameter, expected, bound + np.abs(g.astype(float)), dtype)

"""Operations in float64 NumPy, written for clearness: what the kernels are compared with."""

from __future__ import annotations

import numpy as np

TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}


def assert_close(actual, expected, dtype, factor: float = 1.0) -> None:
    """The largest error, relative to the largest value, is a small multiple of the dtype's rounding."""
    actual = actual.numpy() if hasattr(actual, "numpy") else np.asarray(actual)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-300)
    assert error <= TOLERANCE[np.dtype(dtype)] * factor, f"relative error {error:.3g}"


def pad(x, padding):
    (top, left) = padding
    return np.pad(np.asarray(x, np.float64), ((0, 0), (top, top), (left, left), (0, 0)))


def windows(x, kernel, stride, padding):
    """(N, OH, OW, C, KH, KW): the window of x under each output pixel."""
    view = np.lib.stride_tricks.sliding_window_view(pad(x, padding), kernel, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]]


def unwindow(d_windows, shape, stride, padding):
    """The transpose of `windows`: adds each window's values to the pixels they came from."""
    n, h, w, c = shape
    _, oh, ow, _, kh, kw = d_windows.shape
    dx = np.zeros((n, h + 2 * padding[0], w + 2 * padding[1], c))
    for ky in range(kh):
        for kx in range(kw):
            rows, columns = slice(ky, ky + stride[0] * oh, stride[0]), slice(kx, kx + stride[1] * ow, stride[1])
            dx[:, rows, columns] += d_windows[..., ky, kx]
    return dx[:, padding[0] : padding[0] + h, padding[1] : padding[1] + w]


def conv2d(x, weight, stride, padding):
    return np.einsum("nhwcij,ijco->nhwo", windows(x, weight.shape[:2], stride, padding), weight, optimize=True)


def conv2d_gradients(x, weight, dy, stride, padding):
    columns = windows(x, weight.shape[:2], stride, padding)
    d_weight = np.einsum("nhwcij,nhwo->ijco", columns, dy, optimize=True)
    dx = unwindow(np.einsum("nhwo,ijco->nhwcij", dy, weight, optimize=True), x.shape, stride, padding)
    return dx, d_weight


def batch_norm(x, weight, bias, eps):
    x = np.asarray(x, np.float64)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    xhat = (x - mean) / np.sqrt(variance + eps)
    return xhat * weight + bias, xhat, mean, variance


def batch_norm_gradients(x, weight, dy, eps):
    _, xhat, _, variance = batch_norm(x, weight, weight, eps)
    d_bias, d_weight = dy.sum((0, 1, 2)), (dy * xhat).sum((0, 1, 2))
    d_xhat = dy * weight
    centred = d_xhat - d_xhat.mean((0, 1, 2))
    dx = (centred - xhat * (d_xhat * xhat).mean((0, 1, 2))) / np.sqrt(variance + eps)
    return dx, d_weight, d_bias


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def smoothed_targets(labels, classes, smoothing):
    return np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes

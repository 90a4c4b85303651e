"""Each differentiable operation: its forward launches, and under them its backward.

Arrays are NCHW, convolution weights OIHW. All floating-point inputs of an operation must have one dtype, float32 or
float64; the result has it too. Formulas are PyTorch's and stand in the kernels' headers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import device, tiles
from .tensor import Tensor, add_arrays, check_range, note_used, record

__all__ = [
    "add",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_relu",
    "conv2d",
    "count_correct",
    "cross_entropy",
    "global_avg_pool2d",
    "linear",
    "relu",
    "shortcut",
]

_THREADS = 256


# ---------------------------------------------------------------------------------------------------------------------
# Launch geometry


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    return device.current().empty(shape, like.dtype)


def _launch_elements(kernel: str, n: int, *args: Any) -> None:
    """One thread for each of n elements."""
    device.launch(kernel, (-(-n // _THREADS),), (_THREADS,), *args)


def _launch_rows(kernel: str, rows: int, length: int, *args: Any) -> None:
    """One thread for each element of each row; blocks do not cross rows."""
    threads = min(_THREADS, length)
    device.launch(kernel, (rows, -(-length // threads)), (threads,), *args)


def _launch_planes(kernel: str, planes: int, height: int, width: int, *args: Any) -> None:
    """One thread for each pixel of each plane; blocks do not cross planes."""
    x = min(width, 32)
    y = min(height, _THREADS // x)
    device.launch(kernel, (planes, -(-height // y), -(-width // x)), (x, y), *args)


# ---------------------------------------------------------------------------------------------------------------------
# What a user can get wrong


def _check_tensors(operation: str, **tensors: Tensor | None) -> None:
    given = {name: t for name, t in tensors.items() if t is not None}
    first, *_ = given.items()
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operation}: {name} must be a minires.Tensor, got {type(tensor).__name__}")
        if not isinstance(tensor.data, device.current().array_type):
            raise TypeError(f"{operation}: {name} is not on the current device, {device.get_device()}")
        if tensor.dtype != first[1].dtype:
            raise TypeError(f"{operation}: {first[0]} is {first[1].dtype} but {name} is {tensor.dtype}")
    note_used(*given.values())


def _check_rank(operation: str, name: str, tensor: Tensor, axes: str) -> None:
    if len(tensor.shape) != len(axes.split(", ")):
        raise ValueError(f"{operation}: {name} must have the shape ({axes}), got {tensor.shape}")
    if 0 in tensor.shape:
        raise ValueError(f"{operation}: {name} is empty, its shape is {tensor.shape}")


def _check_shape(operation: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], why: str) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{operation}: {name} must have the shape {shape} {why}, got {tensor.shape}")


def _pair(operation: str, name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (
        (value, value)
        if isinstance(value, (int, np.integer))
        else tuple(value)
        if isinstance(value, (tuple, list))
        else ()
    )
    if len(pair) != 2 or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{operation}: {name} must be an integer or a pair of integers, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{operation}: {name} must be at least {least}, got {value}")
    return int(pair[0]), int(pair[1])


def _output_size(operation: str, image: tuple, kernel: tuple, stride: tuple, padding: tuple) -> tuple[int, int]:
    padded = tuple(i + 2 * p for i, p in zip(image, padding, strict=True))
    if kernel[0] > padded[0] or kernel[1] > padded[1]:
        raise ValueError(f"{operation}: the kernel {kernel} is larger than the padded image {padded}")
    return tuple((i - k) // s + 1 for i, k, s in zip(padded, kernel, stride, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Matrix products


def _gemm(
    kind: str, a: Any, b: Any, c: Any, m: int, n: int, k: int, strides: tuple = (0, 0, 0), batch: int = 1
) -> None:
    """c = op(a) op(b) for each matrix of the batch; `kind` is nn, nt or tn. See kernels/gemm.cu."""
    name, grid, block = tiles.gemm(kind, m, n, batch)
    device.launch(name, grid, block, a, b, c, m, n, k, *strides, batch)


def _bias_gradient(dy: Any, n: int, channels: int, length: int) -> Any:
    d_bias = _empty((channels,), dy)
    device.launch("bias_backward", (channels,), (_THREADS,), dy, d_bias, n, channels, length)
    return d_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias.

    x is (N, in), weight (out, in), bias (out,); the result is (N, out). Raises ValueError or TypeError where shapes
    or dtypes do not fit. Formula: torch.nn.functional.linear.
    """
    _check_tensors("linear", x=x, weight=weight, bias=bias)
    _check_rank("linear", "x", x, "N, in")
    _check_rank("linear", "weight", weight, "out, in")
    (n, n_in), n_out = x.shape, weight.shape[0]
    _check_shape("linear", "weight", weight, (n_out, n_in), f"for x of shape {x.shape}")
    _check_shape("linear", "bias", bias, (n_out,), f"for weight of shape {weight.shape}")
    y = _empty((n, n_out), x.data)
    _gemm("nt", x.data, weight.data, y, n, n_out, n_in)
    if bias is not None:
        _launch_rows("bias_forward", n * n_out, 1, y, bias.data, n_out, 1)

    def backward(dy):
        dx = d_weight = d_bias = None
        if x.requires_grad:
            dx = _empty(x.shape, dy)
            _gemm("nn", dy, weight.data, dx, n, n_in, n_out)
        if weight.requires_grad:
            d_weight = _empty(weight.shape, dy)
            _gemm("tn", dy, x.data, d_weight, n_out, n_in, n)
        if bias is not None and bias.requires_grad:
            d_bias = _bias_gradient(dy, n, n_out, 1)
        return (dx, d_weight, d_bias)[: len(inputs)]

    inputs = (x, weight) if bias is None else (x, weight, bias)
    return record("linear", y, inputs, backward)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    algorithm: str = "auto",
) -> Tensor:
    """Cross-correlation of images with kernels.

    x is (N, C, H, W), weight (O, C, KH, KW), bias (O,); the result is (N, O, OH, OW) with
    OH = (H + 2 padding - KH) // stride + 1. Strides and paddings are integers or (vertical, horizontal) pairs.
    `algorithm` is "im2col" for the readable kernels, im2col and GEMM, or "auto" for the fast ones where they serve:
    3 x 3, stride 1 or 2, padding up to 2. Raises ValueError or TypeError where shapes or dtypes do not fit.
    Formula: torch.nn.functional.conv2d.
    """
    if algorithm not in ("auto", "im2col"):
        raise ValueError(f"conv2d: algorithm must be 'auto' or 'im2col', got {algorithm!r}")
    _check_tensors("conv2d", x=x, weight=weight, bias=bias)
    _check_rank("conv2d", "x", x, "N, C, H, W")
    _check_rank("conv2d", "weight", weight, "O, C, KH, KW")
    (n, c, h, w), (o, c_weight, kh, kw) = x.shape, weight.shape
    if c != c_weight:
        raise ValueError(f"conv2d: x has {c} channels but weight takes {c_weight}: shapes {x.shape} and {weight.shape}")
    _check_shape("conv2d", "bias", bias, (o,), f"for weight of shape {weight.shape}")
    stride, padding = _pair("conv2d", "stride", stride, 1), _pair("conv2d", "padding", padding, 0)
    oh, ow = _output_size("conv2d", (h, w), (kh, kw), stride, padding)
    geometry = (h, w, kh, kw, oh, ow, *stride, *padding)
    fast = algorithm == "auto" and (kh, kw) == (3, 3) and stride in ((1, 1), (2, 2)) and max(padding) <= 2
    product, input_gradient, weight_gradient = _CONV3X3 if fast else _IM2COL
    if stride == (2, 2) and padding != (1, 1):  # what conv3x3_strided_gradient is for
        input_gradient = _im2col_input_gradient
    y = _empty((n, o, oh, ow), x.data)
    product(x.data, weight.data, y, geometry)
    if bias is not None:
        _launch_rows("bias_forward", n * o, oh * ow, y, bias.data, o, oh * ow)

    def backward(dy):
        dx = d_weight = d_bias = None
        if x.requires_grad:
            dx = _empty(x.shape, dy)
            input_gradient(dy, weight.data, dx, geometry)
        if weight.requires_grad:
            d_weight = _empty(weight.shape, dy)
            weight_gradient(x.data, dy, d_weight, geometry)
        if bias is not None and bias.requires_grad:
            d_bias = _bias_gradient(dy, n, o, oh * ow)
        return (dx, d_weight, d_bias)[: len(inputs)]

    inputs = (x, weight) if bias is None else (x, weight, bias)
    return record("conv2d", y, inputs, backward)


# The readable way: columns and matrix products. `geometry` is im2col's: H, W, KH, KW, OH, OW, strides and paddings.


def _unfold(x: Any, geometry: tuple) -> Any:
    (n, c, *_), (_, _, kh, kw, oh, ow, *_) = x.shape, geometry
    columns = _empty((n, c * kh * kw, oh * ow), x)
    _launch_planes("im2col", n * c * kh * kw, oh, ow, x, columns, *geometry)
    return columns


def _im2col_forward(x: Any, weight: Any, y: Any, geometry: tuple) -> None:
    columns, (n, o, *_) = _unfold(x, geometry), y.shape
    _, rows, p = columns.shape
    _gemm("nn", weight, columns, y, o, p, rows, (0, rows * p, o * p), n)


def _im2col_input_gradient(dy: Any, weight: Any, dx: Any, geometry: tuple) -> None:
    (n, c, h, w), o = dx.shape, weight.shape[0]
    p, rows = math.prod(dy.shape[2:]), math.prod(weight.shape[1:])
    d_columns = _empty((n, rows, p), dy)
    _gemm("tn", weight, dy, d_columns, rows, p, o, (0, o * p, rows * p), n)
    _launch_planes("col2im", n * c, h, w, d_columns, dx, *geometry)


def _im2col_weight_gradient(x: Any, dy: Any, d_weight: Any, geometry: tuple) -> None:
    # The columns are unfolded again: keeping those of every layer would take nine times the activations.
    columns, o = _unfold(x, geometry), dy.shape[1]
    n, rows, p = columns.shape
    parts = _empty((n, o, rows), dy)
    _gemm("nt", dy, columns, parts, o, rows, p, (o * p, rows * p, o * rows), n)
    _launch_elements("sum_over_batch", o * rows, parts, d_weight, n, o * rows)


# The fast way, without columns: see the second half of kernels/conv2d.cu.


def _conv3x3_forward(x: Any, weight: Any, y: Any, geometry: tuple) -> None:
    (n, c, h, w), (_, o, oh, ow), (*_, stride, _, pad_h, pad_w) = x.shape, y.shape, geometry
    name, grid, block = tiles.conv(stride, False, n, o, oh, ow)
    device.launch(name, grid, block, x, weight, y, n, c, h, w, o, oh, ow, pad_h, pad_w)


def _conv3x3_input_gradient(dy: Any, weight: Any, dx: Any, geometry: tuple) -> None:
    (n, o, oh, ow), (_, c, h, w), (*_, stride, _, pad_h, pad_w) = dy.shape, dx.shape, geometry
    if stride == 1:
        name, grid, block = tiles.conv(1, True, n, c, h, w)
        device.launch(name, grid, block, dy, weight, dx, n, o, oh, ow, c, h, w, 2 - pad_h, 2 - pad_w)
    else:
        name, grid, block = tiles.strided_gradient(n, c, h, w)
        device.launch(name, grid, block, dy, weight, dx, o, oh, ow, c, h, w)


def _conv3x3_weight_gradient(x: Any, dy: Any, d_weight: Any, geometry: tuple) -> None:
    (n, c, h, w), (_, o, oh, ow), (*_, stride, _, pad_h, pad_w) = x.shape, dy.shape, geometry
    pairs = -(-c // 16), -(-o // 16)
    chunks = min(max(tiles.table().blocks // math.prod(pairs), 1), n * oh)
    parts = _empty((chunks, c, 9, o), dy)
    name, threads = tiles.weight(stride, ow)
    device.launch(name, (*pairs, chunks), (threads,), x, dy, parts, n, c, h, w, o, oh, ow, pad_h, pad_w)
    run = tiles.table().sum_run
    _launch_elements(f"conv3x3_weight_sum<{run}>", -(-c * 9 * o // run), parts, d_weight, chunks, c, o)


_IM2COL = _im2col_forward, _im2col_input_gradient, _im2col_weight_gradient
_CONV3X3 = _conv3x3_forward, _conv3x3_input_gradient, _conv3x3_weight_gradient


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation, activation, residual connection, pooling


class _BatchNorm:
    """The channels of one batch normalisation: what plain and fused ones share. See kernels/batchnorm.cu."""

    def __init__(
        self,
        operation: str,
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> None:
        named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
        _check_tensors(operation, x=x, **named)
        _check_rank(operation, "x", x, "N, C, H, W")
        n, c, p = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        for name, tensor in named.items():
            _check_shape(operation, name, tensor, (c,), f"for x of shape {x.shape}")
        if training and n * p == 1:
            raise ValueError(f"{operation}: training needs more than one value a channel, x has the shape {x.shape}")
        check_range(operation, "momentum", momentum, 0, 1)
        check_range(operation, "eps", eps, 0)
        self.x, self.training, self.momentum, self.eps = x, training, momentum, eps
        table = tiles.table()
        # A chunk is as many images as a block adds up at most, fewer where the grid wants more blocks.
        images = min(max(table.chunk // p, 1), max(n * c // table.blocks, 1))
        self.images = max(images, -(-n // 65535))
        self.chunks = -(-n // self.images)
        self.sizes = n, c, p, self.images
        self.running, self.affine = (running_mean.data, running_var.data), (weight.data, bias.data)
        self.statistics = _empty((c,), x.data), _empty((c,), x.data)  # mean and invstd
        self.run, self.threads = table.run, table.reduction_threads

    def _launch(self, kernel: str, options: str, *args: Any) -> None:
        grid = self.sizes[1], self.chunks
        device.launch(f"{kernel}<{self.run}{options}>", grid, (self.threads,), *args)

    def _parts(self) -> tuple[Any, Any]:
        return tuple(_empty((self.chunks, self.sizes[1]), self.x.data) for _ in range(2))

    def forward(self, fused: str, residual: Any = None) -> Any:
        y, parts = _empty(self.x.shape, self.x.data), self._parts() if self.training else (None, None)
        if self.training:
            self._launch("batchnorm_chunk_statistics", "", self.x.data, *parts, *self.sizes)
        arrays = self.x.data, *parts, *self.statistics, *self.running, *self.affine, residual, y
        self._launch("batchnorm_forward", fused, *arrays, *self.sizes, self.training, self.momentum, self.eps)
        return y

    def backward(self, fused: str, dy: Any, y: Any = None) -> tuple[Any, ...]:
        """The gradients of x, weight and bias, and with a residual of that."""
        c, add = self.sizes[1], y is not None
        dz, parts = _empty(dy.shape, dy) if add else None, self._parts()
        arrays = self.x.data, y, dy, *self.statistics, *self.affine, dz, *parts
        self._launch("batchnorm_chunk_sums", fused, *arrays, *self.sizes)
        dx, d_weight, d_bias = _empty(dy.shape, dy), _empty((c,), dy), _empty((c,), dy)
        inputs = self.x.data, dz if add else dy, *self.statistics, *self.affine, *parts, d_weight, d_bias, dx
        relu = ", true" if fused == _RELU else ", false"
        self._launch("batchnorm_backward", relu, *inputs, *self.sizes, self.training)
        return (dx, d_weight, d_bias, dz) if add else (dx, d_weight, d_bias)


_PLAIN, _RELU, _ADD_RELU = ", false, false", ", true, false", ", true, true"


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel, scale it by `weight` and shift it by `bias`.

    x is (N, C, H, W); the others are (C,). In training the batch's mean and biased variance normalise, and
    running_mean and running_var are updated in place: running = (1 - momentum) running + momentum batch, the variance
    unbiased. In evaluation the running ones normalise. Raises ValueError or TypeError where shapes or dtypes do not
    fit, a channel has one value in training, momentum is outside of 0 .. 1, or eps is negative or not finite.
    Formula: torch.nn.functional.batch_norm.
    """
    bn = _BatchNorm("batch_norm", x, running_mean, running_var, weight, bias, training, momentum, eps)
    return record("batch_norm", bn.forward(_PLAIN), (x, weight, bias), lambda dy: bn.backward(_PLAIN, dy))


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """relu(batch_norm(x, ...)) or relu(batch_norm(x, ...) + residual), fused: fewer passes over memory.

    x is (N, C, H, W), residual too, and so is the result; the rest is as in batch_norm. Raises ValueError or TypeError
    where shapes or dtypes do not fit.
    """
    _check_tensors("batch_norm_relu", x=x, residual=residual)
    _check_shape("batch_norm_relu", "residual", residual, x.shape, "of x")
    bn = _BatchNorm("batch_norm_relu", x, running_mean, running_var, weight, bias, training, momentum, eps)
    if residual is None:
        y = bn.forward(_RELU)
        return record("batch_norm_relu", y, (x, weight, bias), lambda dy: bn.backward(_RELU, dy))
    y = bn.forward(_ADD_RELU, residual.data)
    return record("batch_norm_relu", y, (x, weight, bias, residual), lambda dy: bn.backward(_ADD_RELU, dy, y))


def relu(x: Tensor) -> Tensor:
    """max(x, 0) for x of any shape; NaN stays NaN. The gradient at 0 is 0.

    Raises ValueError where x is empty, TypeError where it is no tensor. Formula: torch.nn.functional.relu.
    """
    _check_tensors("relu", x=x)
    n = math.prod(x.shape)
    _check_not_empty("relu", x)
    y = _empty(x.shape, x.data)
    _launch_elements("relu_forward", n, x.data, y, n)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_elements("relu_backward", n, y, dy, dx, n)
        return (dx,)

    return record("relu", y, (x,), backward)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b for two tensors of one shape and dtype. Raises ValueError or TypeError where they differ."""
    _check_tensors("add", a=a, b=b)
    _check_shape("add", "b", b, a.shape, "of a")
    _check_not_empty("add", a)
    return record("add", add_arrays(a.data, b.data), (a, b), lambda dy: (dy, dy))


Tensor.__add__ = add


def shortcut(x: Tensor, out_channels: int, stride: int = 1) -> Tensor:
    """The parameter-free shortcut, option A of He et al. 2015: every stride-th pixel, and channels of zeros.

    x is (N, C, H, W); the result is (N, out_channels, ceil(H / stride), ceil(W / stride)), with half of the new
    channels, rounded down, before the old ones. Raises ValueError where out_channels < C or stride < 1.
    """
    _check_tensors("shortcut", x=x)
    _check_rank("shortcut", "x", x, "N, C, H, W")
    stride, _ = _pair("shortcut", "stride", stride, 1)
    n, c, h, w = x.shape
    if out_channels < c:
        raise ValueError(f"shortcut: out_channels is {out_channels}, fewer than the {c} channels of x {x.shape}")
    oh, ow = -(-h // stride), -(-w // stride)
    geometry = c, h, w, out_channels, oh, ow, stride
    y = _empty((n, out_channels, oh, ow), x.data)
    _launch_planes("shortcut_forward", n * out_channels, oh, ow, x.data, y, *geometry)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_planes("shortcut_backward", n * c, oh, ow, dy, dx, *geometry)
        return (dx,)

    return record("shortcut", y, (x,), backward)


def avg_pool2d(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """The mean of each window, zeros of the padding counted; `stride` is kernel_size when left out.

    x is (N, C, H, W); the result is (N, C, OH, OW), sized as by conv2d. Raises ValueError where the padding is more
    than half of the window or the window larger than the padded image. Formula: torch.nn.functional.avg_pool2d.
    """
    _check_tensors("avg_pool2d", x=x)
    _check_rank("avg_pool2d", "x", x, "N, C, H, W")
    kernel = _pair("avg_pool2d", "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else _pair("avg_pool2d", "stride", stride, 1)
    padding = _pair("avg_pool2d", "padding", padding, 0)
    if padding[0] * 2 > kernel[0] or padding[1] * 2 > kernel[1]:
        raise ValueError(
            f"avg_pool2d: padding {padding} is more than half of the window {kernel}, which PyTorch does not allow either"
        )
    n, c, h, w = x.shape
    oh, ow = _output_size("avg_pool2d", (h, w), kernel, stride, padding)
    geometry = (h, w, *kernel, oh, ow, *stride, *padding)
    y = _empty((n, c, oh, ow), x.data)
    _launch_elements("avgpool_forward", n * c * oh * ow, x.data, y, n * c * oh * ow, *geometry)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_elements("avgpool_backward", n * c * h * w, dy, dx, n * c * h * w, *geometry)
        return (dx,)

    return record("avg_pool2d", y, (x,), backward)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel of each image: (N, C, H, W) to (N, C). Raises ValueError for another shape."""
    _check_tensors("global_avg_pool2d", x=x)
    _check_rank("global_avg_pool2d", "x", x, "N, C, H, W")
    n, c, h, w = x.shape
    return avg_pool2d(x, (h, w)).reshape(n, c)


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def cross_entropy(logits: Tensor, target: Any, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of the softmax cross-entropy, a tensor of shape ().

    logits is (N, C), target (N,) integers in 0 .. C-1, a NumPy array or one of the current device. Raises TypeError
    for labels that are no integers, ValueError for one out of range (of an array on a GPU: when the host next reads
    from it), for shapes that do not fit, or smoothing outside 0 .. 1. Formula: torch.nn.functional.cross_entropy.
    """
    _check_tensors("cross_entropy", logits=logits)
    _check_rank("cross_entropy", "logits", logits, "N, C")
    check_range("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    (n, c), labels = logits.shape, _labels("cross_entropy", logits, target)
    losses, loss = _empty((n,), logits.data), _empty((), logits.data)
    _launch_elements("cross_entropy_forward", n, logits.data, labels, losses, n, c, label_smoothing)
    device.launch("cross_entropy_mean", (1,), (_THREADS,), losses, loss, n)

    def backward(dy):
        d_logits = _empty(logits.shape, dy)
        _launch_elements("cross_entropy_backward", n, logits.data, labels, dy, d_logits, n, c, label_smoothing)
        return (d_logits,)

    return record("cross_entropy", loss, (logits,), backward)


def count_correct(logits: Tensor, target: Any) -> Any:
    """How many rows of logits (N, C) are largest at their target (N,), the first of equal ones.

    Raises ValueError or TypeError as cross_entropy.
    The result is an int32 device array of shape (), so that a GPU need not be waited for: int() brings it to the host.
    """
    _check_tensors("count_correct", logits=logits)
    _check_rank("count_correct", "logits", logits, "N, C")
    (n, c), labels = logits.shape, _labels("count_correct", logits, target)
    correct = device.current().filled((), np.int32, 0)
    _launch_elements("count_correct", n, logits.data, labels, correct, n, c)
    return correct


def _labels(operation: str, logits: Tensor, target: Any) -> Any:
    """`target` as int32 on the device; what is there already is checked by a kernel, of which a GPU tells when it is read."""
    target = np.asarray(target) if isinstance(target, (list, tuple)) else target
    if not hasattr(target, "dtype") or target.dtype.kind not in "iu":
        raise TypeError(
            f"{operation}: target must be an integer array, got {getattr(target, 'dtype', type(target).__name__)}"
        )
    n, c = logits.shape
    if target.shape != (n,):
        raise ValueError(
            f"{operation}: target must have the shape ({n},) for logits {logits.shape}, got {target.shape}"
        )
    now = device.current()
    if not isinstance(target, (now.array_type, np.ndarray)):
        raise TypeError(f"{operation}: target is not on the current device, {now.name}")
    if isinstance(target, np.ndarray) and (now.array_type is not np.ndarray or target.dtype != np.int32):  # the host's
        for index in np.flatnonzero((target < 0) | (target >= c))[:1]:
            raise _bad_label_error(operation, int(index), int(target[index]), c)
    labels = target if target.dtype == np.int32 else _to_int32(target, c)
    labels = labels if isinstance(labels, now.array_type) and labels.flags.c_contiguous else now.to_device(labels)
    if not now.is_recording:  # the calls before have checked them
        device.launch(
            "find_bad_label", (1,), (1,), labels, _bad_label(operation, now, now.watcher), n, c, scalar=logits.dtype
        )
        now.when_read(_check_label_of(operation))
    return labels


@functools.lru_cache(maxsize=16)
def _bad_label(operation: str, now: Any, watcher: Any) -> Any:
    """Index, value and number of classes of the first bad label, on the device; -1 while there is none."""
    return now.to_device(np.full(3, -1, np.int32))


@functools.cache
def _check_label_of(operation: str) -> Callable[[], None]:
    def check() -> None:
        now = device.current()
        found = _bad_label(operation, now, now.watcher)
        index, value, classes = now.to_host(found)
        if index >= 0:
            now.assign(found, np.full(3, -1, np.int32))
            raise _bad_label_error(operation, index, value, classes)

    return check


def _bad_label_error(operation: str, index: int, value: int, classes: int) -> ValueError:
    return ValueError(
        f"{operation}: target[{index}] is {value}, but with {classes} classes labels lie in 0 .. {classes - 1}"
    )


def _to_int32(labels: Any, classes: int) -> Any:
    """Labels out of range stay out of range: an int64 must not wrap into it."""
    limits = np.iinfo(labels.dtype)
    return labels.clip(max(-1, limits.min), min(classes, limits.max)).astype(np.int32)


def _check_not_empty(operation: str, x: Tensor) -> None:
    if 0 in x.shape:
        raise ValueError(f"{operation}: the tensor is empty, its shape is {x.shape}")

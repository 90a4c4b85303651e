"""Each differentiable operation: its forward launches, and under them its backward.

Arrays are NCHW, convolution weights OIHW. All floating-point inputs of an operation must have one dtype, float32 or
float64; the result has it too. Formulas are PyTorch's and stand in the kernels' headers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import device, tiles
from .arguments import check_filled, check_range, check_rank, check_shape, check_tensors, labels_of, out_size, pair_of
from .tensor import Tensor, add_arrays, record

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
    check_tensors("linear", x=x, weight=weight, bias=bias)
    check_rank("linear", "x", x, "N, in")
    check_rank("linear", "weight", weight, "out, in")
    (n, n_in), n_out = x.shape, weight.shape[0]
    check_shape("linear", "weight", weight, (n_out, n_in), f"for x of shape {x.shape}")
    check_shape("linear", "bias", bias, (n_out,), f"for weight of shape {weight.shape}")
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
    check_tensors("conv2d", x=x, weight=weight, bias=bias)
    check_rank("conv2d", "x", x, "N, C, H, W")
    check_rank("conv2d", "weight", weight, "O, C, KH, KW")
    (n, c, h, w), (o, c_weight, kh, kw) = x.shape, weight.shape
    if c != c_weight:
        raise ValueError(f"conv2d: x has {c} channels but weight takes {c_weight}: shapes {x.shape} and {weight.shape}")
    check_shape("conv2d", "bias", bias, (o,), f"for weight of shape {weight.shape}")
    stride, padding = pair_of("conv2d", "stride", stride, 1), pair_of("conv2d", "padding", padding, 0)
    oh, ow = out_size("conv2d", (h, w), (kh, kw), stride, padding)
    geometry = (h, w, kh, kw, oh, ow, *stride, *padding)
    fast = algorithm == "auto" and tiles.serves((kh, kw), stride, padding)
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

_NOT_FUSED = None, None, None, None, None, 0.0  # see inference.py


def _conv3x3_forward(x: Any, weight: Any, y: Any, geometry: tuple) -> None:
    (n, c, h, w), (_, o, oh, ow), (*_, stride, _, pad_h, pad_w) = x.shape, y.shape, geometry
    name, grid, block = tiles.conv(stride, False, n, o, oh, ow)
    device.launch(name, grid, block, x, weight, y, n, c, h, w, o, oh, ow, pad_h, pad_w, *_NOT_FUSED)


def _conv3x3_input_gradient(dy: Any, weight: Any, dx: Any, geometry: tuple) -> None:
    (n, o, oh, ow), (_, c, h, w), (*_, stride, _, pad_h, pad_w) = dy.shape, dx.shape, geometry
    if stride == 1:
        name, grid, block = tiles.conv(1, True, n, c, h, w)
        device.launch(name, grid, block, dy, weight, dx, n, o, oh, ow, c, h, w, 2 - pad_h, 2 - pad_w, *_NOT_FUSED)
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
        check_tensors(operation, x=x, **named)
        check_rank(operation, "x", x, "N, C, H, W")
        n, c, p = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        for name, tensor in named.items():
            check_shape(operation, name, tensor, (c,), f"for x of shape {x.shape}")
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
    check_tensors("batch_norm_relu", x=x, residual=residual)
    check_shape("batch_norm_relu", "residual", residual, x.shape, "of x")
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
    check_tensors("relu", x=x)
    n = math.prod(x.shape)
    check_filled("relu", x)
    y = _empty(x.shape, x.data)
    _launch_elements("relu_forward", n, x.data, y, n)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_elements("relu_backward", n, y, dy, dx, n)
        return (dx,)

    return record("relu", y, (x,), backward)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b for two tensors of one shape and dtype. Raises ValueError or TypeError where they differ."""
    check_tensors("add", a=a, b=b)
    check_shape("add", "b", b, a.shape, "of a")
    check_filled("add", a)
    return record("add", add_arrays(a.data, b.data), (a, b), lambda dy: (dy, dy))


Tensor.__add__ = add


def shortcut(x: Tensor, out_channels: int, stride: int = 1) -> Tensor:
    """The parameter-free shortcut, option A of He et al. 2015: every stride-th pixel, and channels of zeros.

    x is (N, C, H, W); the result is (N, out_channels, ceil(H / stride), ceil(W / stride)), with half of the new
    channels, rounded down, before the old ones. Raises ValueError where out_channels < C or stride < 1.
    """
    check_tensors("shortcut", x=x)
    check_rank("shortcut", "x", x, "N, C, H, W")
    stride, _ = pair_of("shortcut", "stride", stride, 1)
    n, c, h, w = x.shape
    if out_channels < c:
        raise ValueError(f"shortcut: out_channels is {out_channels}, fewer than the {c} channels of x {x.shape}")
    oh, ow = -(-h // stride), -(-w // stride)
    geometry = c, h, w, out_channels, oh, ow
    y = _empty((n, out_channels, oh, ow), x.data)
    _launch_planes(f"shortcut_forward<{stride}>", n * out_channels, oh, ow, x.data, y, *geometry)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_planes(f"shortcut_backward<{stride}>", n * c, h, w, dy, dx, *geometry)
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
    check_tensors("avg_pool2d", x=x)
    check_rank("avg_pool2d", "x", x, "N, C, H, W")
    kernel = pair_of("avg_pool2d", "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair_of("avg_pool2d", "stride", stride, 1)
    padding = pair_of("avg_pool2d", "padding", padding, 0)
    if padding[0] * 2 > kernel[0] or padding[1] * 2 > kernel[1]:
        raise ValueError(
            f"avg_pool2d: padding {padding} is more than half of the window {kernel}, which PyTorch does not allow either"
        )
    n, c, h, w = x.shape
    oh, ow = out_size("avg_pool2d", (h, w), kernel, stride, padding)
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
    check_tensors("global_avg_pool2d", x=x)
    check_rank("global_avg_pool2d", "x", x, "N, C, H, W")
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
    check_tensors("cross_entropy", logits=logits)
    check_rank("cross_entropy", "logits", logits, "N, C")
    check_range("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    (n, c), labels = logits.shape, labels_of("cross_entropy", logits, target)
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
    check_tensors("count_correct", logits=logits)
    check_rank("count_correct", "logits", logits, "N, C")
    (n, c), labels = logits.shape, labels_of("count_correct", logits, target)
    correct = device.current().filled((), np.int32, 0)
    _launch_elements("count_correct", n, logits.data, labels, correct, n, c)
    return correct

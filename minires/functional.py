"""Each differentiable operation: its forward launches, and under them its backward.

Arrays are N x H x W x C, channels last, and filters KH x KW x C x O. All floating-point inputs of an operation must have
one dtype, float32 or float64; the result has it too. Formulas are PyTorch's and stand in the kernels' headers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import device, tiles
from .arguments import Pair, check_channels, check_range, check_rank, check_shape, check_tensors, labels_of, out_size, pair_of
from .tensor import Tensor, add_arrays, record

_THREADS = 256


def _empty(shape: tuple[int, ...], like: Any) -> Any:
    return device.current().empty(shape, like.dtype)


def _launch_elements(kernel: str, n: int, *args: Any) -> None:
    """One thread for each of n elements."""
    device.launch(kernel, (-(-n // _THREADS),), (_THREADS,), *args)


def _launch_pixels(kernel: str, m: int, c: int, like: Any, *args: Any, whole: int = 0) -> None:
    """One thread for each run of c channels, x, of m pixels, y. Runs divide `whole`, or else all channels."""
    run = tiles.run(whole or c, like.dtype)
    x = min(c // run, _THREADS)
    grid = -(-m // (_THREADS // x)), -(-c // run // x)
    device.launch(f"{kernel}<{run}>", grid, (x, _THREADS // x), like, *args)


def _gemm(a: Any, b: Any, c: Any, m: int, n: int, k: int, transposed: bool = False) -> None:
    """c = op(a) b, m x k times k x n; a may be stored transposed, k x m. See kernels/gemm.cu."""
    name, grid, block, depth = tiles.gemm(m, n, k, transposed)
    to = c if grid[2] == 1 else _empty((grid[2], m, n), c)
    device.launch(name, grid, block, a, b, to, m, n, k, depth)
    if to is not c:
        _column_sums(to, len(to), c)


def _transposed(matrix: Any, rows: int, columns: int) -> Any:
    result = _empty((columns, rows), matrix)
    _launch_elements("transpose", rows * columns, matrix, result, rows, columns)
    return result


def _column_sums(x: Any, m: int, total: Any) -> Any:
    """The sum of the m rows of x, in `total`, which has the elements of one in any shape."""
    n = math.prod(total.shape)
    name, (strips, _), block, columns, _ = tiles.columns(m, n, "column_sums")
    device.launch(name, (strips,), block, x, total, m, n, columns)
    return total


def _add_bias(y: Any, bias: Tensor | None) -> None:
    if bias is not None:
        sizes = math.prod(y.shape[:-1]), y.shape[-1]
        _launch_pixels("bias_forward", *sizes, y, bias.data, *sizes)


def _bias_gradient(dy: Any, bias: Tensor | None) -> Any:
    if bias is not None and bias.requires_grad:
        return _column_sums(dy, math.prod(dy.shape[:-1]), _empty(bias.shape, dy))
    return None


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
    _gemm(x.data, _transposed(weight.data, n_out, n_in), y, n, n_out, n_in)
    _add_bias(y, bias)

    def backward(dy):
        dx = d_weight = None
        if x.requires_grad:
            dx = _empty(x.shape, dy)
            _gemm(dy, weight.data, dx, n, n_in, n_out)
        if weight.requires_grad:
            d_weight = _empty(weight.shape, dy)
            _gemm(dy, x.data, d_weight, n_out, n_in, n, transposed=True)
        return (dx, d_weight, _bias_gradient(dy, bias))[: len(inputs)]

    inputs = (x, weight) if bias is None else (x, weight, bias)
    return record("linear", y, inputs, backward)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0, algorithm: str = "auto"
) -> Tensor:
    """Cross-correlation of images with filters.

    x is (N, H, W, C), weight (KH, KW, C, O), bias (O,); the result is (N, OH, OW, O) with
    OH = (H + 2 padding - KH) // stride + 1. Strides and paddings are integers or (vertical, horizontal) pairs.
    `algorithm` is "im2col" for the readable kernels, im2col and GEMM, or "auto" for the fast ones where they serve: 3 x 3,
    stride 1 or 2, padding up to 2, up to 64 channels. Raises ValueError or TypeError where shapes or dtypes do not fit.
    Formula: torch.nn.functional.conv2d, which has channels first.
    """
    if algorithm not in ("auto", "im2col"):
        raise ValueError(f"conv2d: algorithm must be 'auto' or 'im2col', got {algorithm!r}")
    geometry = convolution_geometry(x, weight, bias, stride, padding)
    (_, _, kh, kw, oh, ow, *pairs), (*_, c, o) = geometry, weight.shape
    may_turn = pairs[:2] == [1, 1] or pairs[2:] == [1, 1]  # as conv3x3_strided_gradient has it

    def is_fast(c_in: int, c_out: int) -> bool:
        return algorithm == "auto" and tiles.serves((kh, kw, *pairs), c_in, c_out)

    y = _empty((x.shape[0], oh, ow, o), x.data)
    (_conv3x3_forward if is_fast(c, o) else _im2col_forward)(x.data, weight.data, y, geometry)
    _add_bias(y, bias)

    def backward(dy, known):
        dx = d_weight = turned = None
        if x.requires_grad and is_fast(o, c) and may_turn:
            turned = _empty((kh, kw, o, c), dy)
        wanted = weight.requires_grad and is_fast(c, o)
        if wanted or turned is not None:
            d_weight = _conv3x3_weight_gradient(x.data, dy, weight.data, turned, geometry, wanted)
        if weight.requires_grad and not wanted:
            d_weight = _im2col_weight_gradient(x.data, dy, weight.data, geometry)
        if turned is not None:
            dx = _conv3x3_input_gradient(dy, turned, x.shape, geometry, known)
        elif x.requires_grad:
            dx = _im2col_input_gradient(dy, weight.data, x.shape, geometry, known)
        return (dx, d_weight, _bias_gradient(dy, bias))[: len(inputs)]

    inputs = (x, weight) if bias is None else (x, weight, bias)
    return record("conv2d", y, inputs, backward, adds=True)


def convolution_geometry(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any) -> tuple[int, ...]:
    """H, W, KH, KW, OH, OW, strides and paddings of a conv2d. Raises ValueError or TypeError where shapes do not fit."""
    check_tensors("conv2d", x=x, weight=weight, bias=bias)
    check_rank("conv2d", "x", x, "N, H, W, C")
    check_rank("conv2d", "weight", weight, "KH, KW, C, O")
    image, kernel = x.shape[1:3], weight.shape[:2]
    check_channels("conv2d", x, weight)
    check_shape("conv2d", "bias", bias, weight.shape[3:], f"for weight of shape {weight.shape}")
    stride, padding = pair_of("conv2d", "stride", stride, 1), pair_of("conv2d", "padding", padding, 0)
    return (*image, *kernel, *out_size("conv2d", image, kernel, stride, padding), *stride, *padding)


# The readable way: columns and matrix products, by the convolution_geometry.


def _unfold(x: Any, geometry: tuple) -> Any:
    """A row for each output pixel. Of 1 x 1 filters that take every pixel, x is that already."""
    (n, *_, c), (_, _, kh, kw, oh, ow, *_) = x.shape, geometry
    pixels = n * oh * ow
    if geometry[2:] == (1, 1, *x.shape[1:3], 1, 1, 0, 0):
        return x.reshape(pixels, c)
    columns = _empty((pixels, kh * kw * c), x)
    _launch_pixels("im2col", pixels, c, x, columns, pixels, c, *geometry)
    return columns


def _im2col_forward(x: Any, weight: Any, y: Any, geometry: tuple) -> None:
    columns = _unfold(x, geometry)
    _gemm(columns, weight, y, len(columns), y.shape[-1], columns.shape[1])


def _im2col_input_gradient(dy: Any, weight: Any, shape: tuple, geometry: tuple, known: Any) -> Any:
    (n, h, w, c), o = shape, weight.shape[-1]
    m, k = math.prod(dy.shape[:-1]), math.prod(weight.shape[:-1])
    d_columns, dx = _empty((m, k), dy), _empty(shape, dy)
    _gemm(dy, _transposed(weight, k, o), d_columns, m, k, o)
    _launch_pixels("col2im", n * h * w, c, d_columns, dx, n * h * w, c, *geometry)
    return dx if known is None else add_arrays(dx, known)


def _im2col_weight_gradient(x: Any, dy: Any, weight: Any, geometry: tuple) -> Any:
    # The columns are unfolded again: keeping those of every layer would take nine times the activations.
    columns, d_weight = _unfold(x, geometry), _empty(weight.shape, dy)
    _gemm(columns, dy, d_weight, columns.shape[1], dy.shape[-1], len(columns), transposed=True)
    return d_weight


# The fast way, without columns: see kernels/conv3x3.cu.

_NO_NORM = None, None, None, None  # see inference.py


def _conv3x3_forward(x: Any, weight: Any, y: Any, geometry: tuple) -> None:
    (n, h, w, c), (_, oh, ow, o), (*_, stride, _, pad_h, pad_w) = x.shape, y.shape, geometry
    name, grid, block = tiles.conv(n, c, o, (oh, ow), stride, x.dtype, False, False)
    device.launch(name, grid, block, x, weight, y, h, w, oh, ow, pad_h, pad_w, *_NO_NORM, None, 0.0)


def _conv3x3_input_gradient(dy: Any, turned: Any, shape: tuple, geometry: tuple, known: Any) -> Any:
    (n, oh, ow, o), (_, h, w, c), (*_, stride, _, pad_h, pad_w) = dy.shape, shape, geometry
    dx = _empty(shape, dy)
    if stride == 1:
        name, grid, block = tiles.conv(n, o, c, (h, w), 1, dy.dtype, False, known is not None)
        sizes = oh, ow, h, w, 2 - pad_h, 2 - pad_w
        device.launch(name, grid, block, dy, turned, dx, *sizes, *_NO_NORM, known, 0.0)
        return dx
    name, grid, block = tiles.strided_gradient(n, o, c, (-(-h // 2), -(-w // 2)), dy.dtype)
    device.launch(name, grid, block, dy, turned, dx, oh, ow, h, w)
    return dx if known is None else add_arrays(dx, known)


def _conv3x3_weight_gradient(x: Any, dy: Any, weight: Any, turned: Any, geometry: tuple, wanted: bool) -> Any:
    """The gradient, and in `turned` the filters turned, where that is an array; only these where no gradient is wanted."""
    (n, h, w, c), (_, oh, ow, o), (*_, stride, _, pad_h, pad_w) = x.shape, dy.shape, geometry
    name, grid, block, chunk = tiles.weight(n, c, o, (oh, ow), stride, x.dtype)
    grid = grid if wanted else (*grid[:2], 1)
    parts = _empty((grid[2], *weight.shape), dy)
    sizes = n if wanted else 0, c, h, w, o, oh, ow, pad_h, pad_w, chunk
    device.launch(name, grid, block, x, dy, parts, weight, turned, *sizes)
    return _column_sums(parts, len(parts), _empty(weight.shape, dy)) if wanted else None


# Normalisation, activation, residual connection, pooling


class BatchNorm:
    """One batch normalisation: what plain and fused ones share. Raises as batch_norm. See kernels/batchnorm.cu for shapes."""

    def __init__(
        self, operation: str, x: Tensor, channels: tuple, residual: Any, training: bool, momentum: float, eps: float
    ) -> None:
        named = dict(zip(("running_mean", "running_var", "weight", "bias"), channels, strict=True))
        check_tensors(operation, x=x, **named, residual=residual)
        check_rank(operation, "x", x, "N, H, W, C")
        check_shape(operation, "residual", residual, x.shape, "of x")
        m, c = math.prod(x.shape[:-1]), x.shape[-1]
        for name, tensor in named.items():
            check_shape(operation, name, tensor, (c,), f"for x of shape {x.shape}")
        if training and m == 1:
            raise ValueError(f"{operation}: training needs more than one value a channel, x has the shape {x.shape}")
        check_range(operation, "momentum", momentum, 0, 1)
        check_range(operation, "eps", eps, 0)
        self.x, self.training, self.momentum, self.eps, self.sizes = x, training, momentum, eps, (m, c)
        self.running, self.affine = ([tensor.data for tensor in pair] for pair in (channels[:2], channels[2:]))
        self.residual = residual and residual.data

    def _launch(self, kernel: str, options: tuple[bool, ...], arrays: tuple, *scalars: Any) -> None:
        name, grid, block, *strip = tiles.columns(*self.sizes, kernel, *options)
        device.launch(name, grid, block, *arrays, *self.sizes, *strip, *scalars)

    def _parts(self) -> tuple[Any, Any]:
        chunks = tiles.columns(*self.sizes, "")[1][1]
        return tuple(_empty((chunks, self.sizes[1]), self.x.data) for _ in range(2))

    def forward(self, fused: tuple[bool, bool]) -> Any:
        """The result, in a new array."""
        y, parts = _empty(self.x.shape, self.x.data), (None, None)
        self.statistics = tuple(_empty((self.sizes[1],), self.x.data) for _ in range(2))  # mean and invstd
        if self.training:
            parts = self._parts()
            self._launch("batchnorm_chunk_statistics", (), (self.x.data, *parts))
        arrays = self.x.data, *parts, *self.statistics, *self.running, *self.affine, self.residual, y
        self._launch("batchnorm_forward", fused, arrays, self.training, self.momentum, self.eps)
        return y

    def backward(self, fused: tuple[bool, bool], dy: Any, y: Any = None) -> tuple[Any, ...]:
        """The gradients of x, weight and bias, and with a residual of that."""
        (relu, add), c = fused, self.sizes[1]
        dz, parts = _empty(dy.shape, dy) if add else None, self._parts()
        self._launch("batchnorm_chunk_sums", fused, (self.x.data, y, dy, *self.statistics, *self.affine, dz, *parts))
        dx, d_weight, d_bias = _empty(dy.shape, dy), _empty((c,), dy), _empty((c,), dy)
        inputs = self.x.data, dz if add else dy, *self.statistics, *self.affine, *parts, d_weight, d_bias, dx
        self._launch("batchnorm_backward", (relu and not add,), inputs, self.training)
        return (dx, d_weight, d_bias, dz) if add else (dx, d_weight, d_bias)


_PLAIN, _RELU, _ADD_RELU = (False, False), (True, False), (True, True)


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

    x is (N, H, W, C); the others are (C,). In training the batch's mean and biased variance normalise, and
    running_mean and running_var are updated in place: running = (1 - momentum) running + momentum batch, the variance
    unbiased. In evaluation the running ones normalise. Raises ValueError or TypeError where shapes or dtypes do not
    fit, a channel has one value in training, momentum is outside of 0 .. 1, or eps is negative or not finite.
    Formula: torch.nn.functional.batch_norm.
    """
    channels = running_mean, running_var, weight, bias
    bn = BatchNorm("batch_norm", x, channels, None, training, momentum, eps)
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

    x is (N, H, W, C), residual too, and so is the result; the rest is as in batch_norm. Raises ValueError or TypeError
    where shapes or dtypes do not fit.
    """
    channels = running_mean, running_var, weight, bias
    bn = BatchNorm("batch_norm_relu", x, channels, residual, training, momentum, eps)
    if residual is None:
        y = bn.forward(_RELU)
        return record("batch_norm_relu", y, (x, weight, bias), lambda dy: bn.backward(_RELU, dy))
    y = bn.forward(_ADD_RELU)
    return record("batch_norm_relu", y, (x, weight, bias, residual), lambda dy: bn.backward(_ADD_RELU, dy, y))


def relu(x: Tensor) -> Tensor:
    """max(x, 0) for x of any shape; NaN stays NaN. The gradient at 0 is 0.

    Raises ValueError where x is empty, TypeError where it is no tensor. Formula: torch.nn.functional.relu.
    """
    check_tensors("relu", x=x)
    n = math.prod(x.shape)
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
    return record("add", add_arrays(a.data, b.data), (a, b), lambda dy: (dy, dy))


Tensor.__add__ = add


def shortcut(x: Tensor, out_channels: int, stride: int = 1) -> Tensor:
    """The parameter-free shortcut, option A of He et al. 2015: every stride-th pixel, and channels of zeros.

    x is (N, H, W, C); the result is (N, ceil(H / stride), ceil(W / stride), out_channels), with half of the new
    channels, rounded down, before the old ones. Raises ValueError where out_channels < C or stride < 1.
    """
    check_tensors("shortcut", x=x)
    check_rank("shortcut", "x", x, "N, H, W, C")
    stride, _ = pair_of("shortcut", "stride", stride, 1)
    n, h, w, c = x.shape
    if out_channels < c:
        raise ValueError(f"shortcut: out_channels is {out_channels}, fewer than the {c} channels of x {x.shape}")
    oh, ow = -(-h // stride), -(-w // stride)
    geometry = c, h, w, out_channels, oh, ow, stride
    y = _empty((n, oh, ow, out_channels), x.data)
    whole = math.gcd(c, out_channels, (out_channels - c) // 2)
    _launch_pixels("shortcut_forward", n * oh * ow, out_channels, x.data, y, n * oh * ow, *geometry, whole=whole)

    def backward(dy, known):
        dx = _empty(x.shape, dy)
        _launch_pixels("shortcut_backward", n * h * w, c, dy, known, dx, n * h * w, *geometry, whole=whole)
        return (dx,)

    return record("shortcut", y, (x,), backward, adds=True)


def avg_pool2d(x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The mean of each window, zeros of the padding counted; `stride` is kernel_size when left out.

    x is (N, H, W, C); the result is (N, OH, OW, C), sized as by conv2d. Raises ValueError where the padding is more
    than half of the window or the window larger than the padded image. Formula: torch.nn.functional.avg_pool2d.
    """
    check_tensors("avg_pool2d", x=x)
    check_rank("avg_pool2d", "x", x, "N, H, W, C")
    kernel = pair_of("avg_pool2d", "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair_of("avg_pool2d", "stride", stride, 1)
    padding = pair_of("avg_pool2d", "padding", padding, 0)
    if padding[0] * 2 > kernel[0] or padding[1] * 2 > kernel[1]:
        raise ValueError(
            f"avg_pool2d: padding {padding} is more than half of the window {kernel}, which PyTorch does not allow either"
        )
    n, h, w, c = x.shape
    oh, ow = out_size("avg_pool2d", (h, w), kernel, stride, padding)
    geometry = (c, h, w, *kernel, oh, ow, *stride, *padding)
    y = _empty((n, oh, ow, c), x.data)
    _launch_pixels("avgpool_forward", n * oh * ow, c, x.data, y, n * oh * ow, *geometry)

    def backward(dy):
        dx = _empty(x.shape, dy)
        _launch_pixels("avgpool_backward", n * h * w, c, dy, dx, n * h * w, *geometry)
        return (dx,)

    return record("avg_pool2d", y, (x,), backward)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel of each image: (N, H, W, C) to (N, C). Raises ValueError for another shape."""
    check_tensors("global_avg_pool2d", x=x)
    check_rank("global_avg_pool2d", "x", x, "N, H, W, C")
    n, h, w, c = x.shape
    return avg_pool2d(x, (h, w)).reshape(n, c)


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
    loss = _empty((), logits.data)
    device.launch("cross_entropy_forward", (1,), (_THREADS,), logits.data, labels, loss, n, c, label_smoothing)

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

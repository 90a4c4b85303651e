"""Evaluation without a graph: a 3 x 3 convolution, BatchNorm by its running statistics, and ReLU as one kernel."""

from __future__ import annotations

from . import device, tiles
from .arguments import out_size
from .nn import BatchNorm2d, Conv2d
from .tensor import Tensor, is_grad_enabled, note_used


def conv_bn_relu(conv: Conv2d, bn: BatchNorm2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """bn.relu(conv(x), residual), with the same bits: in evaluation within no_grad by one kernel, where it serves.

    x is (N, H, W, C), residual has the result's shape. See kernels/conv3x3.cu. Raises what conv and bn.relu raise.
    """
    tensors = [x, conv.weight, bn.running_mean, bn.running_var, bn.weight, bn.bias]
    shape = None if bn.training or is_grad_enabled() else _output_shape(conv, x)
    if shape is None or not _fits(tensors, residual, shape):
        return bn.relu(conv(x), residual)
    note_used(*tensors, residual)
    (n, oh, ow, o), (_, h, w, c) = shape, x.shape
    name, grid, block = tiles.conv(n, c, o, (oh, ow), conv.stride[0], x.dtype, True, residual is not None)
    y = device.current().empty(shape, x.dtype)
    image, weight, *normalisation = (tensor.data for tensor in tensors)
    sizes = h, w, oh, ow, *conv.padding
    device.launch(name, grid, block, image, weight, y, *sizes, *normalisation, residual and residual.data, bn.eps)
    return Tensor.wrap(y)


def _output_shape(conv: Conv2d, x: Tensor) -> tuple[int, int, int, int] | None:
    """The shape of conv(x) where the fast kernel computes it."""
    (*kernel, c, o), stride, padding = conv.weight.shape, conv.stride, conv.padding
    fast = tiles.serves(kernel, stride, padding, c, o) and conv.bias is None
    if not fast or not isinstance(x, Tensor) or len(x.shape) != 4 or x.shape[3] != c or 0 in x.shape:
        return None
    return (x.shape[0], *out_size("conv2d", x.shape[1:3], (3, 3), stride, padding), o)


def _fits(tensors: list[Tensor], residual: Tensor | None, shape: tuple) -> bool:
    """Whether all are on the device and of one dtype, and those of BatchNorm and the residual have their shapes."""
    given = [*tensors, *([] if residual is None else [residual])]
    alike = all(isinstance(t.data, device.current().array_type) and t.dtype == tensors[0].dtype for t in given)
    normalises = all(t.shape == shape[3:] for t in tensors[2:])
    return alike and normalises and (residual is None or residual.shape == shape)

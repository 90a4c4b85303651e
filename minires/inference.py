"""Evaluation without a graph: a 3 x 3 convolution, BatchNorm by its running statistics, and ReLU as one kernel."""

from __future__ import annotations

from . import device, tiles
from .functional import BatchNorm, convolution_geometry
from .nn import BatchNorm2d, Conv2d
from .tensor import Tensor, is_grad_enabled


def conv_bn_relu(conv: Conv2d, bn: BatchNorm2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """bn.relu(conv(x), residual), with the same bits: in evaluation within no_grad by one kernel, where it serves.

    x is (N, H, W, C), residual has the result's shape. See kernels/conv3x3.cu. Raises what conv and bn.relu raise.
    """
    *kernel, c, o = conv.weight.shape
    is_plain = bn.training or is_grad_enabled() or conv.bias is not None
    if is_plain or not tiles.serves((*kernel, *conv.stride, *conv.padding), c, o):
        return bn.relu(conv(x), residual)
    h, w, _, _, oh, ow, *_ = convolution_geometry(x, conv.weight, None, conv.stride, conv.padding)
    y = Tensor.wrap(device.current().empty((x.shape[0], oh, ow, o), x.dtype))
    channels = bn.running_mean, bn.running_var, bn.weight, bn.bias
    BatchNorm("batch_norm_relu", y, channels, residual, False, 0.0, bn.eps)  # which checks them
    name, grid, block = tiles.conv(x.shape[0], c, o, (oh, ow), conv.stride[0], x.dtype, True, residual is not None)
    arrays = *(t.data for t in channels), residual and residual.data
    device.launch(name, grid, block, x.data, conv.weight.data, y.data, h, w, oh, ow, *conv.padding, *arrays, bn.eps)
    return y

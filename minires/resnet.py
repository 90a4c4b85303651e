"""ResNets for 32 x 32 images: section 4.2 of K. He et al., "Deep Residual Learning for Image Recognition", 2015."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .functional import global_avg_pool2d, shortcut
from .inference import conv_bn_relu
from .nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from .tensor import Tensor


class _OptionA(Module):
    """The shortcut without parameters: subsample, and pad with channels of zeros."""

    def __init__(self, out_channels: int, stride: int) -> None:
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return shortcut(x, self.out_channels, self.stride)


def _downsample(in_channels: int, out_channels: int, stride: int, option: str) -> Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if option == "A":
        return _OptionA(out_channels, stride)
    return Sequential(Conv2d(in_channels, out_channels, 1, stride), BatchNorm2d(out_channels))


class BasicBlock(Module):
    """Two 3 x 3 convolutions and a shortcut: (N, H, W, in_channels) to (N, H / stride, W / stride, channels)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, shortcut: str = "A") -> None:
        self.conv1 = Conv2d(in_channels, channels, 3, stride, padding=1)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_bn_relu(self.conv1, self.bn1, x)
        return conv_bn_relu(self.conv2, self.bn2, y, self.downsample(x) if self.downsample else x)


class Bottleneck(Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; the result has 4 * channels channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, shortcut: str = "A") -> None:
        self.conv1 = Conv2d(in_channels, channels, 1)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, stride, padding=1)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, channels * self.expansion, 1)
        self.bn3 = BatchNorm2d(channels * self.expansion)
        self.downsample = _downsample(in_channels, channels * self.expansion, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_bn_relu(self.conv1, self.bn1, x)
        y = conv_bn_relu(self.conv2, self.bn2, y)
        return conv_bn_relu(self.conv3, self.bn3, y, self.downsample(x) if self.downsample else x)


class ResNet(Module):
    """Three stages of 16, 32 and 64 channels (times the block's expansion), of `layers` blocks each.

    `shortcut` says how a block that changes the shape passes its input on: "A" without parameters, "B" by a 1 x 1
    convolution with BatchNorm. forward takes (N, H, W, 3), H and W at least 1, and returns logits (N, num_classes).
    Raises ValueError for another shortcut or not three positive layer counts.
    """

    layer1: Sequential
    layer2: Sequential
    layer3: Sequential

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: Sequence[int], num_classes: int = 10, shortcut: str = "A"
    ) -> None:
        if shortcut not in ("A", "B"):
            raise ValueError(f"ResNet: shortcut must be 'A' or 'B', got {shortcut!r}")
        if len(layers) != 3 or min(layers) < 1:
            raise ValueError(f"ResNet: layers must be three positive block counts, got {layers!r}")
        self.conv1 = Conv2d(3, 16, 3, padding=1)
        self.bn1 = BatchNorm2d(16)
        channels = 16
        for stage, (width, count) in enumerate(zip((16, 32, 64), layers, strict=True), start=1):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(channels, width, stride, shortcut))
                channels = width * block.expansion
            setattr(self, f"layer{stage}", Sequential(*blocks))
        self.fc = Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_bn_relu(self.conv1, self.bn1, x)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(global_avg_pool2d(x))


def resnet(depth: int, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """The ResNet of BasicBlocks with `depth` = 6 n + 2 weighted layers. Raises ValueError for another depth."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"resnet: depth must be 6 n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}")
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, num_classes, shortcut)


def from_state_dict(state: Mapping[str, np.ndarray]) -> ResNet:
    """The ResNet of BasicBlocks that these weights belong to, with them: its depth, classes and shortcuts follow.

    `state` is what `Module.state_dict()` or PyTorch's gives, by name; what DataParallel (`module.`) and torch.compile
    (`_orig_mod.`) put before all names is taken off. Raises ValueError where it is of another network.
    """
    while prefix := next((p for p in ("module.", "_orig_mod.") if state and all(k.startswith(p) for k in state)), None):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    blocks = {tuple(name.split(".")[:2]) for name in state if re.match(r"layer\d+\.\d+\.", name)}
    depth = max(6 * round(len(blocks) / 3) + 2, 8)
    shortcut = "B" if any(".downsample." in name for name in state) else "A"
    classes = len(state["fc.weight"]) if np.ndim(state.get("fc.weight", 0)) == 2 else 10
    net = resnet(depth, classes, shortcut)
    try:
        net.load_state_dict(state)
    except (KeyError, ValueError):
        shapes = {name: a.shape for name, a in net.state_dict().items()}
        found = {k: np.shape(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}
        raise ValueError(
            f"from_state_dict: these are not the weights of a ResNet of BasicBlocks; the nearest is ResNet-{depth}, shortcut "
            f"{shortcut}\nexpected and not found: {_few(shapes.items() - found.items())}\n"
            f"found and not expected: {_few(found.items() - shapes.items())}"
        ) from None
    return net


def _few(items: Iterable[tuple[str, tuple]]) -> str:
    words = [f"{name} {shape}" for name, shape in sorted(items)]
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "") if words else "nothing"


# With option A they have 269,722, 464,154, 658,586, 853,018 and 1,727,962 parameters for 10 classes.
resnet20, resnet32, resnet44, resnet56, resnet110 = (functools.partial(resnet, depth) for depth in (20, 32, 44, 56, 110))

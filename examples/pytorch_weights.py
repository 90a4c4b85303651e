"""Weights from PyTorch to minires and back, as safetensors files. Needs PyTorch: pip install torch

    python examples/pytorch_weights.py

The state dicts have the same names and shapes, so nothing needs to be converted. Two things differ in the wild:
`num_batches_tracked` of PyTorch's BatchNorm, which minires passes over, and the last layer's name, `linear` in some
repositories and `fc` here: rename it as below.
"""

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional

import minires as mr


class TorchBlock(torch.nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.stride, self.before = stride, (channels - in_channels) // 2
        self.after = channels - in_channels - self.before
        if shortcut == "B" and (stride != 1 or in_channels != channels):
            convolution = torch.nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "downsample"):
            return functional.relu(y + self.downsample(x))
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.relu(y + functional.pad(x, (0, 0, 0, 0, self.before, self.after)))


class TorchResNet(torch.nn.Module):
    """minires.resnet.resnet(depth), in PyTorch."""

    def __init__(self, depth: int = 20, shortcut: str = "A") -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        channels = 16
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(TorchBlock(channels, width, 2 if stage > 1 and i == 0 else 1, shortcut))
                channels = width
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Images N x H x W x C, as minires has them, for PyTorch: N x C x H x W, the same memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def main() -> None:
    theirs, ours = TorchResNet().eval(), mr.resnet.resnet20().eval()

    # As from a repository that calls its last layer `linear`.
    state = {name.replace("fc.", "linear."): value for name, value in theirs.state_dict().items()}
    safetensors.torch.save_file(state, "from-pytorch.safetensors")

    arrays, _ = mr.checkpoint.load("from-pytorch.safetensors")
    ours.load_state_dict({name.replace("linear.", "fc."): array for name, array in arrays.items()})
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    with mr.no_grad(), torch.no_grad():
        logits = theirs(channels_first(images)).numpy()
        difference = abs(ours(mr.Tensor(images)).numpy() - logits).max()
    print(f"from PyTorch: the largest difference between their logits is {difference:.2g}")

    mr.checkpoint.save("to-pytorch.safetensors", ours.state_dict())
    back = safetensors.torch.load_file("to-pytorch.safetensors")
    missing, unexpected = theirs.load_state_dict(back, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    print(f"to PyTorch: {len(back)} arrays; PyTorch keeps its own num_batches_tracked, which minires has no use for")


if __name__ == "__main__":
    main()

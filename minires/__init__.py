"""minires: a small deep-learning library whose every floating-point operation is a CUDA kernel that one can read.

    import minires as mr
    net = mr.resnet.resnet20()
    loss = mr.functional.cross_entropy(net(mr.Tensor(images)), labels)
    loss.backward()
    mr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).step()

Names are PyTorch's. The kernels run on an NVIDIA GPU or, compiled by a C++ compiler, on the CPU: see set_device.

    Tensor, no_grad, functional      arrays with gradients, and the differentiable operations
    nn, resnet, optim                layers, ResNets, SGD and schedules of its learning rate
    cifar, checkpoint                CIFAR-10 as batches on the device; safetensors files
    gradcheck, sanitize              are the gradients right, are the kernels sound
    counters, profile                what would a GPU do with a kernel, where does the time go
    graph, RawKernel                 a training step as one CUDA graph; a kernel of your own
"""

from . import checkpoint, cifar, functional, nn, optim, resnet, tiles
from .device import DeviceError, RawKernel, describe_device, get_device, set_device
from .gradcheck import GradcheckError, gradcheck
from .graph import graph
from .nn import manual_seed
from .profiler import profile
from .tensor import Tensor, no_grad
from .watch import SanitizerError, counters, sanitize

__all__ = [
    "DeviceError", "GradcheckError", "RawKernel", "SanitizerError", "Tensor", "checkpoint", "cifar", "counters",
    "describe_device", "functional", "get_device", "gradcheck", "graph", "manual_seed", "nn", "no_grad", "optim",
    "profile", "resnet", "sanitize", "set_device", "tiles",
]  # fmt: skip
__version__ = "0.1.0"

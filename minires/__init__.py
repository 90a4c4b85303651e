"""minires: a small deep-learning library whose every floating-point operation is a CUDA kernel that one can read.

    import minires as mr
    net = mr.resnet.resnet20()
    loss = mr.functional.cross_entropy(net(mr.Tensor(images)), labels)
    loss.backward()
    mr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).step()

Names are PyTorch's. The kernels run on an NVIDIA GPU or, compiled by a C++ compiler, on the CPU: see set_device.
"""

from . import checkpoint, cifar, functional, nn, optim, resnet
from .device import DeviceError, RawKernel, SanitizerError, describe_device, get_device, sanitize, set_device
from .gradcheck import GradcheckError, gradcheck
from .graph import graph
from .nn import manual_seed
from .profiler import profile
from .tensor import Tensor, no_grad

__all__ = [
    "DeviceError",
    "GradcheckError",
    "RawKernel",
    "SanitizerError",
    "Tensor",
    "checkpoint",
    "cifar",
    "describe_device",
    "functional",
    "get_device",
    "gradcheck",
    "graph",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "profile",
    "resnet",
    "sanitize",
    "set_device",
]
__version__ = "0.1.0"

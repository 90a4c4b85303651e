# %% [markdown]
# # Lesson 3: an operation of your own with its gradient, checked, and a wrong gradient that is caught
#
# The slope of a function is (f(x + eps) - f(x - eps)) / (2 eps), up to an error of eps^2: that needs no calculus, so it
# checks the calculus. It is done in float64, where eps = 1e-6 leaves ten digits or so. The operation is y = x * sigmoid(x),
# "SiLU" in PyTorch. With s = sigmoid(x): dy/dx = s + x * s * (1 - s).

# %%
import numpy as np

import minires as mr
from minires.tensor import record

CODE = """
extern "C" __global__ void silu_forward(const double* x, double* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] / (1 + exp(-x[i]));
}

extern "C" __global__ void silu_backward(const double* x, const double* dy, double* dx, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double s = 1 / (1 + exp(-x[i]));
    dx[i] = dy[i] * (s + x[i] * s * (1 - s));
}
"""


def silu(x: mr.Tensor, code: str = CODE) -> mr.Tensor:
    n = x.data.size
    blocks, y = (-(-n // 128),), mr.device.current().empty(x.shape, x.dtype)
    mr.RawKernel(code, "silu_forward")(blocks, (128,), (x.data, y, n))

    def backward(dy):
        dx = mr.device.current().empty(x.shape, x.dtype)
        mr.RawKernel(code, "silu_backward")(blocks, (128,), (x.data, dy, dx, n))
        return (dx,)

    return record("silu", y, (x,), backward)


x = mr.Tensor(np.random.default_rng(0).standard_normal((4, 5)))
largest = mr.gradcheck(silu, [x])
print(f"silu: the gradient is right, its largest relative error is {largest:.1e}")

# %% [markdown]
# A factor forgotten: such a gradient still points downhill, and a network may even learn with it.

# %%
wrong = CODE.replace("x[i] * s * (1 - s)", "s * (1 - s)")
try:
    mr.gradcheck(lambda x: silu(x, wrong), [x])
except mr.GradcheckError as error:
    print(f"without the factor x: {error}")

# %% [markdown]
# A whole block of a ResNet, down to every weight.

# %%
block = mr.resnet.BasicBlock(2, 4, stride=2, shortcut="B").to(np.float64)
image = mr.Tensor(np.random.default_rng(1).standard_normal((2, 6, 6, 2)))
largest = mr.gradcheck(lambda: block(image), {"image": image, **dict(block.named_parameters())})
print(f"a BasicBlock: every gradient is right, the largest relative error is {largest:.1e}")

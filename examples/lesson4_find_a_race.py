# %% [markdown]
# # Lesson 4: a race that most runs do not show, found by the sanitizer, and its cure
#
# The threads of a block share memory. What one writes and another reads needs a barrier between the two: without it,
# who comes first is an accident, and a kernel can be right on one GPU and wrong on the next. The sanitizer runs a launch
# thread by thread on the CPU, in several orders.

# %%
import builtins

import numpy as np

import minires as mr

show = getattr(builtins, "display", print)  # a notebook shows more than text
usual = mr.get_device()
mr.set_device("cpu")


def examine(code: str, name: str, blocks: int, expected: np.ndarray) -> None:
    x, y = (mr.Tensor(np.arange(64 * blocks, dtype=np.float32)) for _ in range(2))
    try:
        mr.RawKernel(code, name)((blocks,), (64,), (x.data, y.data))
        print(f"{name}: the result is {'right' if np.allclose(y.numpy(), expected) else 'WRONG'}")
        with mr.sanitize():
            mr.RawKernel(code, name)((blocks,), (64,), (x.data, y.data))
        print("the sanitizer finds nothing")
    except mr.DeviceError as error:
        show(error)


# Reverses each run of 64 elements through shared memory.
CODE = """
extern "C" __global__ void reverse(const float* x, float* y) {
    __shared__ float tile[64];
    const int t = threadIdx.x, first = blockIdx.x * 64;
    tile[t] = x[first + t];
    __syncthreads();
    y[first + t] = tile[63 - t];
}
"""
reversed_runs = np.arange(256).reshape(4, 64)[:, ::-1].ravel()
examine(CODE, "reverse", 4, reversed_runs)

# %%
examine(CODE.replace("__syncthreads();", ""), "reverse", 4, reversed_runs)

# %%
# Divides 64 elements by their sum, which the block adds up by a tree.
TREE = """
extern "C" __global__ void shares(const float* x, float* y) {
    __shared__ float part[64];
    const int t = threadIdx.x;
    part[t] = x[t];
    for (int half = 32; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) part[t] += part[t + half];
    }
    __syncthreads();
    y[t] = x[t] / part[0];
}
"""
shares = np.arange(64) / np.arange(64).sum()
examine(TREE, "shares", 1, shares)

# %% [markdown]
# A barrier that only some threads reach is no cure: on a GPU the others may wait for ever.

# %%
branch = TREE.replace("        __syncthreads();\n", "").replace("if (t < half) ", "if (t < half) __syncthreads(), ")
examine(branch, "shares", 1, shares)
mr.set_device(usual)

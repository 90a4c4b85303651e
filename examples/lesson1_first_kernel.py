# %% [markdown]
# # Lesson 1: write a kernel, launch it, and see who does what
#
# A kernel is a function that many threads run at once. The threads come in blocks, the blocks make a grid, and each
# thread finds out from its indices which element is its own.

# %%
import numpy as np

import minires as mr

CODE = """
extern "C" __global__ void axpy(float a, const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;  // my element, counted over all blocks
    if (i < n) y[i] += a * x[i];                          // the last block has threads too many
}

extern "C" __global__ void who_am_i(int* block, int* thread, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    block[i] = blockIdx.x;
    thread[i] = threadIdx.x;
}
"""
n, threads = 1000, 256
grid = (-(-n // threads),)  # rounded up: 4 blocks of 256 are 1,024 threads for 1,000 elements
x, y = mr.Tensor(np.arange(n, dtype=np.float32)), mr.Tensor(np.ones(n, np.float32))
mr.RawKernel(CODE, "axpy")(grid, (threads,), (2.0, x.data, y.data, n))
print(f"device: {mr.describe_device()}\naxpy on {n} elements: as NumPy's: {(y.numpy() == 1 + 2 * np.arange(n)).all()}")

# %%
block, thread = (mr.device.current().empty((n,), np.int32) for _ in range(2))
mr.RawKernel(CODE, "who_am_i")(grid, (threads,), (block, thread, n))
block, thread = (mr.device.current().to_host(a) for a in (block, thread))
for i in (0, 1, 255, 256, 999):
    print(f"element {i:3} was computed by thread {thread[i]:3} of block {block[i]}")

# %%
# Every operation of minires is such a launch: this is mr.functional.relu.
mr.device.launch("relu_forward", grid, (threads,), x.data, y.data, n)
print(f"relu of {n} elements: as NumPy's: {(y.numpy() == np.maximum(x.numpy(), 0)).all()}")

# %% [markdown]
# Without `if (i < n)` the 24 threads too many write behind the end of the array. On a GPU, and on a CPU, that may go
# unnoticed. The sanitizer, which runs a launch thread by thread on the CPU, notices. The counters, there too, say what a
# GPU's memory would see of a launch: in a notebook, click on a count before a line.

# %%
usual, _ = mr.get_device(), mr.set_device("cpu")
x, y = mr.Tensor(np.arange(n, dtype=np.float32)), mr.Tensor(np.ones(n, np.float32))
try:
    with mr.sanitize():
        mr.RawKernel(CODE.replace("if (i < n) ", ""), "axpy")(grid, (threads,), (2.0, x.data, y.data, n))
except mr.SanitizerError as error:
    print(error)
with mr.counters() as counted:
    mr.RawKernel(CODE, "axpy")(grid, (threads,), (2.0, x.data, y.data, n))
mr.set_device(usual)
counted

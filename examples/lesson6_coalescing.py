# %% [markdown]
# # Lesson 6: why one of two kernels that do the same is faster on a GPU, seen without a GPU
#
# Global memory comes in sectors of 32 bytes: a warp whose 32 lanes read neighbouring floats touches 4 of them, one whose
# lanes read a column touches 32, and fetches eight times what it uses. Shared memory has 32 banks, one word a clock each:
# lanes that want different words of one bank wait for one another. The transpose of a matrix meets both, since what is a
# row to the reader is a column to the writer. Three ways:
#
# - `naive` reads rows and writes columns of global memory;
# - `tile` reads a tile's rows into shared memory, and writes its columns from there as rows: columns of a tile that is 32
#   wide lie in one bank;
# - `padded` is the same with a tile 33 wide, so that a column lies in 32 banks.

# %%
import numpy as np

import minires as mr

CODE = """
__global__ void naive(const float* x, float* y, int n) {
    const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) y[column * n + row + j] = x[(row + j) * n + column];
}

template <int PAD> __global__ void tile(const float* x, float* y, int n) {
    __shared__ float tile[32][32 + PAD];
    const int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) tile[threadIdx.y + j][threadIdx.x] = x[(row + j) * n + column];
    __syncthreads();
    const int to = blockIdx.y * 32 + threadIdx.x, from = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8) y[(from + j) * n + to] = tile[threadIdx.x][threadIdx.y + j];
}
"""
usual = mr.get_device()
mr.set_device("cpu")  # the counters run some blocks thread by thread
n, now = 512, mr.device.current()
x = now.to_device(np.random.default_rng(0).standard_normal((n, n)).astype(np.float32))
with mr.counters() as c:
    for kernel in ("naive", "tile<0>", "tile<1>"):
        y = now.empty((n, n), np.float32)
        mr.RawKernel(CODE, kernel)((n // 32, n // 32), (32, 8), (x, y, n))
        assert np.array_equal(now.to_host(y), now.to_host(x).T)
print(f"{'':8}{'sectors a load':>16}{'sectors a store':>17}{'bank conflicts':>16}")
for launch in c.launches:
    loads, stores = ([a for a in launch.accesses if (a.space, a.kind) == ("global", k)] for k in ("load", "store"))
    shared = launch.total("shared")
    print(
        f"{launch.kernel:8}{sum(a.sectors for a in loads) / sum(a.requests for a in loads):16.1f}"
        f"{sum(a.sectors for a in stores) / sum(a.requests for a in stores):17.1f}"
        f"{(shared.wavefronts - shared.wavefronts_least) / max(shared.requests, 1):16.1f}   a request"
    )

# %% [markdown]
# In a notebook, open a kernel below, and then a count before a line: 32 lanes at one bank, or 32 sectors for 32 floats. Then
# write the exercise `transpose`: its check counts sectors and wavefronts too.

# %%
mr.set_device(usual)
c

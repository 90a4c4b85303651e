// ReLU:  y[i] = max(x[i], 0),  dx[i] = dy[i] where y[i] > 0, else 0.  NaN stays NaN.
//
// Launch: one element a thread, grid (ceil(n / threads)). The simplest kernels here: begin reading with these two.
// Bytes: forward 2, backward 3 elements moved for each one. FLOPs: a comparison. Limit: memory.
#include "common.cuh"

extern "C" __global__ void relu_forward(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] <= 0 ? scalar_t(0) : x[i];
}

extern "C" __global__ void relu_backward(const scalar_t* __restrict__ y, const scalar_t* __restrict__ dy,
                                         scalar_t* __restrict__ dx, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dx[i] = y[i] <= 0 ? scalar_t(0) : dy[i];
}

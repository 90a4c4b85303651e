// What a convolution needs beside im2col and GEMM. With columns = im2col(x), weight as O x (C * KH * KW):
//
//   y[n]       = weight * columns[n] + bias                 gemm_nn, bias_forward
//   d_columns  = weight^T * dy[n], dx = col2im(d_columns)   gemm_tn, col2im
//   d_weight   = sum_n dy[n] * columns[n]^T                 gemm_nt for each image, then sum_over_batch
//   d_bias[o]  = sum_{n,p} dy[n, o, p]                      bias_backward
//
// Here y is N x O x P with P = OH * OW. A linear layer uses the bias kernels too, with P = 1.
// Bytes: each input is read once. Limit: memory.
#include "common.cuh"

// y[n, o, p] += bias[o]. Launch: grid (N * O, ceil(P / threads)), one element a thread.
extern "C" __global__ void bias_forward(scalar_t* __restrict__ y, const scalar_t* __restrict__ bias, int O, int P) {
    const long long plane = blockIdx.x;
    const int p = blockIdx.y * blockDim.x + threadIdx.x;
    if (p < P) y[plane * P + p] += bias[plane % O];
}

// d_bias[o] = sum over n and p of dy[n, o, p]. Launch: grid (O), a block a channel, whose threads stride over p and
// then add up their sums.
extern "C" __global__ void bias_backward(const scalar_t* __restrict__ dy, scalar_t* __restrict__ d_bias, int N, int O,
                                         int P) {
    const int o = blockIdx.x;
    scalar_t sum = 0;
    for (long long i = threadIdx.x; i < (long long)N * P; i += blockDim.x) sum += dy[(i / P * O + o) * P + i % P];
    sum = block_sum(sum);
    if (threadIdx.x == 0) d_bias[o] = sum;
}

// sum[i] = sum over n of parts[n, i], n ascending. Launch: one element a thread.
extern "C" __global__ void sum_over_batch(const scalar_t* __restrict__ parts, scalar_t* __restrict__ sum, int N,
                                          int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    scalar_t total = 0;
    for (int n = 0; n < N; ++n) total += parts[(long long)n * count + i];
    sum[i] = total;
}

// A bias, a number for each channel, added to an M x C matrix: M is the pixels of all images, or the rows of a linear layer.
//
//   y[m, c] += bias[c]          d_bias[c] = sum_m dy[m, c]
//
// The sum of columns also adds up the chunks of gemm.cu and conv3x3.cu: then M is their number, and C all elements of a chunk.
// Launch: in forward a thread has RUN neighbouring channels of a row, runs in x, rows in y; RUN, a power of two, divides C. To
// sum, a block adds up `columns` columns over all rows, as common.cuh's Strip says; grid (ceil(C / columns)).
// Bytes: forward 2, the sum 1 element moved for each one. FLOPs: an addition. Limit: memory.
#include "common.cuh"

template <int RUN>
__global__ void bias_forward(scalar_t* __restrict__ y, const scalar_t* __restrict__ bias, int M, int C) {
    const int m = blockIdx.x * blockDim.y + threadIdx.y, c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (m >= M || c >= C) return;
    Run<RUN> sum = load<RUN>(y + (long long)m * C + c);
    add_to(sum, load<RUN>(bias + c));
    store(y + (long long)m * C + c, sum);
}

template <int RUN>
__global__ void column_sums(const scalar_t* __restrict__ x, scalar_t* __restrict__ sum, long long M, int C, int columns) {
    __shared__ scalar_t sums[1][Strip<RUN>::MOST];
    const Strip<RUN> strip(M, C, columns, 0, M);
    strip.sum(sums, [&](long long, long long i, int) { return Run<1>{x[i]}; });
    for (int c = threadIdx.x; c < strip.columns; c += blockDim.x) sum[strip.c0 + c] = sums[0][c];
}

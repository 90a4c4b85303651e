// The residual connection: addition, and the parameter-free shortcut for blocks that change the shape.
//
//   add:       c[i] = a[i] + b[i]; both gradients are dc. Gradients of a tensor that is used twice are added by it too.
//   sum_over_batch:  sum[i] = sum_n parts[n, i], n ascending
//   shortcut:  y[n, o, oy, ox] = x[n, o - before, oy * stride, ox * stride]   where that channel exists, else 0
//              the transpose: dx[n, c, iy, ix] = dy[n, c + before, iy / stride, ix / stride] where stride divides both
//
// x is N x C x H x W, y is N x O x ceil(H / stride) x ceil(W / stride), and before = (O - C) / 2 of the O - C channels
// of zeros stand in front.
// Launch: add has one element a thread; the shortcut has one plane of what it writes a block in x and one element a thread.
// Bytes: 3 (add) or 2 (shortcut) elements moved for each one. Limit: memory.
// Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.3, option (A).
#include "common.cuh"

extern "C" __global__ void add_forward(const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
                                       scalar_t* __restrict__ c, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
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

// The stride is a template's argument: where divisors are known, a CPU's compiler makes vectors of neighbouring pixels.
template <int STRIDE>
__global__ void shortcut_forward(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int C, int H, int W, int O,
                                 int OH, int OW) {
    const long long plane = blockIdx.x, n = plane / O;  // (n, o)
    const int oy = blockIdx.y * blockDim.y + threadIdx.y, ox = blockIdx.z * blockDim.x + threadIdx.x;
    if (oy >= OH || ox >= OW) return;
    const int c = plane % O - (O - C) / 2;
    const scalar_t* from = x + ((n * C + c) * H + oy * STRIDE) * W;
    y[(plane * OH + oy) * OW + ox] = c >= 0 && c < C ? from[ox * STRIDE] : scalar_t(0);
}

template <int STRIDE>
__global__ void shortcut_backward(const scalar_t* __restrict__ dy, scalar_t* __restrict__ dx, int C, int H, int W, int O,
                                  int OH, int OW) {
    const long long plane = blockIdx.x, n = plane / C, o = plane % C + (O - C) / 2;  // (n, c)
    const int iy = blockIdx.y * blockDim.y + threadIdx.y, ix = blockIdx.z * blockDim.x + threadIdx.x;
    if (iy >= H || ix >= W) return;
    const scalar_t* from = dy + ((n * O + o) * OH + iy / STRIDE) * OW;
    dx[(plane * H + iy) * W + ix] = iy % STRIDE == 0 && ix % STRIDE == 0 ? from[ix / STRIDE] : scalar_t(0);
}

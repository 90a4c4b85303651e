// The residual connection: addition, and the parameter-free shortcut for blocks that change the shape.
//
//   add:       c[i] = a[i] + b[i]; both gradients are dc. Gradients of a tensor that is used twice are added by it too.
//   shortcut:  y[n, oy, ox, o] = x[n, oy * stride, ox * stride, o - before]   where that channel exists, else 0
//              the transpose: dx[n, iy, ix, c] = dy[n, iy / stride, ix / stride, c + before] where stride divides both,
//              plus what is known of dx from elsewhere, if anything is
//
// y is N x ceil(H / stride) x ceil(W / stride) x O, and before = (O - C) / 2 of the channels of zeros stand in front.
// Launch: add has one element a thread. In the shortcut a thread has RUN neighbouring channels of a pixel that it writes: runs
// in x, pixels in y. RUN, a power of two, divides C, O and `before`. Bytes: 3 (add) or 2 (shortcut) an element. Limit: memory.
// Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.3, option (A).
#include "common.cuh"

extern "C" __global__ void add_forward(const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
                                       scalar_t* __restrict__ c, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

template <int RUN>
__global__ void shortcut_forward(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int pixels, int C, int H, int W,
                                 int O, int OH, int OW, int stride) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / OW / OH;  // (n, oy, ox)
    const int o = (blockIdx.y * blockDim.x + threadIdx.x) * RUN, c = o - (O - C) / 2;
    if (p >= pixels || o >= O) return;
    const scalar_t* from = x + (((long long)n * H + p / OW % OH * stride) * W + p % OW * stride) * C + c;
    store(y + (long long)p * O + o, c >= 0 && c < C ? load<RUN>(from) : Run<RUN>{});
}

template <int RUN>
__global__ void shortcut_backward(const scalar_t* __restrict__ dy, const scalar_t* __restrict__ known,
                                  scalar_t* __restrict__ dx, int pixels, int C, int H, int W, int O, int OH, int OW,
                                  int stride) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / W / H;  // (n, iy, ix)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN, iy = p / W % H, ix = p % W;
    if (p >= pixels || c >= C) return;
    const scalar_t* from = dy + (((long long)n * OH + iy / stride) * OW + ix / stride) * O + c + (O - C) / 2;
    const bool was_read = iy % stride == 0 && ix % stride == 0;
    Run<RUN> sum = was_read ? load<RUN>(from) : Run<RUN>{};
    if (known) add_to(sum, load<RUN>(known + (long long)p * C + c));
    store(dx + (long long)p * C + c, sum);
}

// im2col unfolds images into columns, so that a convolution becomes a matrix product; col2im is its transpose.
//
//   columns[(n, oy, ox), (ky, kx, c)] = x[n, oy * stride_h - pad_h + ky, ox * stride_w - pad_w + kx, c]    (0 outside)
//   x[n, iy, ix, c]                   = sum of columns[(n, oy, ox), (ky, kx, c)] over all the places it was copied to
//
// x is N x H x W x C; columns is (N * OH * OW) x (KH * KW * C), with OH = (H + 2 pad_h - KH) / stride_h + 1: a row for each
// output pixel, made of KH * KW runs of C neighbours. With the filters as a (KH * KW * C) x O matrix w:
//
//   y = columns w          d_columns = dy w^T, dx = col2im(d_columns)          dw = columns^T dy          (gemm.cu)
//
// Launch: a thread has RUN neighbouring channels of an output pixel and a tap (im2col) or of a pixel of x (col2im); runs in x,
// pixels in y, the tap in blockIdx.z. In col2im a thread gathers, so that no two threads add to the same place and the order
// of the sum is fixed.
// Bytes: KH * KW elements written (im2col) or read (col2im) for each one of x. Limit: memory.
// Source: K. Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
#include "common.cuh"

template <int RUN>
__global__ void im2col(const scalar_t* __restrict__ x, scalar_t* __restrict__ columns, int pixels, int C, int H, int W,
                       int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / OW / OH;  // (n, oy, ox)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN, tap = blockIdx.z;
    if (p >= pixels || c >= C) return;
    const int iy = p / OW % OH * stride_h - pad_h + tap / KW, ix = p % OW * stride_w - pad_w + tap % KW;
    const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W;
    const scalar_t* from = x + (((long long)n * H + iy) * W + ix) * C + c;
    store(columns + ((long long)p * KH * KW + tap) * C + c, inside ? load<RUN>(from) : Run<RUN>{});
}

template <int RUN>
__global__ void col2im(const scalar_t* __restrict__ columns, scalar_t* __restrict__ x, int pixels, int C, int H, int W,
                       int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / W / H;  // (n, iy, ix)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (p >= pixels || c >= C) return;
    // Output row oy used this pixel's row where oy * stride_h <= iy + pad_h < oy * stride_h + KH.
    const int y = p / W % H + pad_h, x_ = p % W + pad_w;
    const int oy_begin = y < KH ? 0 : (y - KH) / stride_h + 1, oy_end = min(y / stride_h + 1, OH);
    const int ox_begin = x_ < KW ? 0 : (x_ - KW) / stride_w + 1, ox_end = min(x_ / stride_w + 1, OW);
    Run<RUN> sum = {};
    for (int oy = oy_begin; oy < oy_end; ++oy)
        for (int ox = ox_begin; ox < ox_end; ++ox) {
            const int tap = (y - oy * stride_h) * KW + x_ - ox * stride_w;
            add_to(sum, load<RUN>(columns + ((((long long)n * OH + oy) * OW + ox) * KH * KW + tap) * C + c));
        }
    store(x + (long long)p * C + c, sum);
}

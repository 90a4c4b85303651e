// im2col unfolds images into columns, so that a convolution becomes a matrix product; col2im is its transpose.
//
//   columns[(n, oy, ox), (ky, kx, c)] = x[n, oy * stride_h - pad_h + ky, ox * stride_w - pad_w + kx, c]    (0 outside)
//   x[n, iy, ix, c]                   = sum of columns[(n, oy, ox), (ky, kx, c)] over all the places it was copied to
//
// columns is (N * OH * OW) x (KH * KW * C), with OH = (H + 2 pad_h - KH) / stride_h + 1: a row for each output pixel, made of
// KH * KW runs of C neighbours. With the filters as a (KH * KW * C) x O matrix w:
//
//   y = columns w          d_columns = dy w^T, dx = col2im(d_columns)          dw = columns^T dy          (gemm.cu)
// Launch: a thread has RUN neighbouring channels of an output pixel (im2col), or of a pixel of x, which it gathers in a fixed
// order (col2im); runs in x, pixels in y.
// Bytes: KH * KW elements written (im2col) or read (col2im) for each one of x. Limit: memory.
// Source: K. Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
#include "common.cuh"

template <int RUN>
__global__ void im2col(const scalar_t* __restrict__ x, scalar_t* __restrict__ columns, int pixels, int C, int H, int W,
                       int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / OW / OH;  // (n, oy, ox)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (p >= pixels || c >= C) return;
    const int y0 = p / OW % OH * stride_h - pad_h, x0 = p % OW * stride_w - pad_w;
    for (int ky = 0; ky < KH; ++ky)
        for (int kx = 0; kx < KW; ++kx) {
            const int iy = y0 + ky, ix = x0 + kx;
            const scalar_t* from = x + (((long long)n * H + iy) * W + ix) * C + c;
            const Run<RUN> run = iy >= 0 && iy < H && ix >= 0 && ix < W ? load<RUN>(from) : Run<RUN>{};
            store(columns + (((long long)p * KH + ky) * KW + kx) * C + c, run);
        }
}

template <int RUN>
__global__ void col2im(const scalar_t* __restrict__ columns, scalar_t* __restrict__ x, int pixels, int C, int H, int W,
                       int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / W / H;  // (n, iy, ix)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (p >= pixels || c >= C) return;
    const int iy = p / W % H + pad_h, ix = p % W + pad_w;
    const Range rows = windows_of(iy, KH, stride_h, OH), columns_ = windows_of(ix, KW, stride_w, OW);
    Run<RUN> sum = {};
    for (int oy = rows.begin; oy < rows.end; ++oy)
        for (int ox = columns_.begin; ox < columns_.end; ++ox) {
            const int tap = (iy - oy * stride_h) * KW + ix - ox * stride_w;
            add_to(sum, load<RUN>(columns + ((((long long)n * OH + oy) * OW + ox) * KH * KW + tap) * C + c));
        }
    store(x + (long long)p * C + c, sum);
}

// im2col unfolds images into columns, so that a convolution becomes a matrix product; col2im is its transpose.
//
//   columns[n, (c, ky, kx), (oy, ox)] = x[n, c, oy * stride_h - pad_h + ky, ox * stride_w - pad_w + kx]   (0 outside)
//   x[n, c, iy, ix]                   = sum of columns[n, (c, ky, kx), (oy, ox)] over all the places it was copied to
//
// x is N x C x H x W; columns is N x (C * KH * KW) x (OH * OW), with OH = (H + 2 pad_h - KH) / stride_h + 1.
//
// Launch: im2col has one row of `columns` a block in x, so grid (N * C * KH * KW, ceil(OH / rows), ceil(OW / columns))
// and one element a thread: consecutive threads write consecutive elements. col2im has one plane of x a block in x,
// and a thread gathers one pixel, so that no two threads add to the same place and the order of the sum is fixed.
// Bytes: KH * KW values written (im2col) or read (col2im) for each pixel. Limit: memory.
// Source: K. Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
#include "common.cuh"

extern "C" __global__ void im2col(const scalar_t* __restrict__ x, scalar_t* __restrict__ columns, int H, int W, int KH,
                                  int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const long long row = blockIdx.x;  // (n, c, ky, kx)
    const int kx = row % KW, ky = row / KW % KH;
    const long long plane = row / (KH * KW);
    const int oy = blockIdx.y * blockDim.y + threadIdx.y, ox = blockIdx.z * blockDim.x + threadIdx.x;
    if (oy >= OH || ox >= OW) return;
    const int iy = oy * stride_h - pad_h + ky, ix = ox * stride_w - pad_w + kx;
    const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W;
    // Reading the nearest pixel and then choosing keeps the load free of a branch.
    const scalar_t nearest = x[(plane * H + min(max(iy, 0), H - 1)) * W + min(max(ix, 0), W - 1)];
    columns[(row * OH + oy) * OW + ox] = inside ? nearest : scalar_t(0);
}

extern "C" __global__ void col2im(const scalar_t* __restrict__ columns, scalar_t* __restrict__ x, int H, int W, int KH,
                                  int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const long long plane = blockIdx.x;  // (n, c)
    const int iy = blockIdx.y * blockDim.y + threadIdx.y, ix = blockIdx.z * blockDim.x + threadIdx.x;
    if (iy >= H || ix >= W) return;
    // Output row oy used this pixel's row where oy * stride_h <= iy + pad_h < oy * stride_h + KH.
    const int y = iy + pad_h, x_ = ix + pad_w;
    const int oy_begin = y < KH ? 0 : (y - KH) / stride_h + 1, oy_end = min(y / stride_h + 1, OH);
    const int ox_begin = x_ < KW ? 0 : (x_ - KW) / stride_w + 1, ox_end = min(x_ / stride_w + 1, OW);
    scalar_t sum = 0;
    for (int oy = oy_begin; oy < oy_end; ++oy)
        for (int ox = ox_begin; ox < ox_end; ++ox) {
            const int ky = y - oy * stride_h, kx = x_ - ox * stride_w;
            sum += columns[(((plane * KH + ky) * KW + kx) * OH + oy) * OW + ox];
        }
    x[(plane * H + iy) * W + ix] = sum;
}

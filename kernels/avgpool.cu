// Average pooling, zeros of the padding counted:
//
//   y[n, c, oy, ox]  = 1 / (KH * KW) * sum_{ky, kx} x[n, c, oy * stride_h - pad_h + ky, ox * stride_w - pad_w + kx]
//   dx[n, c, iy, ix] = 1 / (KH * KW) * sum of dy[n, c, oy, ox] over the windows (oy, ox) that hold the pixel
//
// Global average pooling is the window that is the whole image.
// Launch: one element of the output (forward) or of the input (backward) a thread, over all `count` of them.
// Bytes: forward reads a pixel once for each window that holds it. FLOPs: KH * KW an output. Limit: memory.
#include "common.cuh"

extern "C" __global__ void avgpool_forward(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long count,
                                           int H, int W, int KH, int KW, int OH, int OW, int stride_h, int stride_w,
                                           int pad_h, int pad_w) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int ox = i % OW, oy = i / OW % OH;
    const scalar_t* plane = x + i / OW / OH * H * W;
    const int y0 = oy * stride_h - pad_h, x0 = ox * stride_w - pad_w;
    scalar_t sum = 0;
    for (int iy = max(y0, 0); iy < min(y0 + KH, H); ++iy)
        for (int ix = max(x0, 0); ix < min(x0 + KW, W); ++ix) sum += plane[(long long)iy * W + ix];
    y[i] = sum / (scalar_t(KH) * KW);
}

extern "C" __global__ void avgpool_backward(const scalar_t* __restrict__ dy, scalar_t* __restrict__ dx, long long count,
                                            int H, int W, int KH, int KW, int OH, int OW, int stride_h, int stride_w,
                                            int pad_h, int pad_w) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    if (KH == H && KW == W && pad_h == 0 && pad_w == 0) {  // global: one window, which spares all divisions but one
        dx[i] = dy[i / (H * W)] / (scalar_t(KH) * KW);
        return;
    }
    // Window row oy holds the pixel's row where oy * stride_h <= iy + pad_h < oy * stride_h + KH; see col2im.
    const int px = i % W + pad_w, py = i / W % H + pad_h;
    const int oy_begin = py < KH ? 0 : (py - KH) / stride_h + 1, oy_end = min(py / stride_h + 1, OH);
    const int ox_begin = px < KW ? 0 : (px - KW) / stride_w + 1, ox_end = min(px / stride_w + 1, OW);
    const scalar_t* plane = dy + i / W / H * OH * OW;
    scalar_t sum = 0;
    for (int oy = oy_begin; oy < oy_end; ++oy)
        for (int ox = ox_begin; ox < ox_end; ++ox) sum += plane[(long long)oy * OW + ox];
    dx[i] = sum / (scalar_t(KH) * KW);
}

// Average pooling, zeros of the padding counted:
//
//   y[n, oy, ox, c]  = 1 / (KH * KW) * sum_{ky, kx} x[n, oy * stride_h - pad_h + ky, ox * stride_w - pad_w + kx, c]
//   dx[n, iy, ix, c] = 1 / (KH * KW) * sum of dy[n, oy, ox, c] over the windows (oy, ox) that hold the pixel
//
// Global average pooling is the window that is the whole image. Launch: a thread has RUN neighbouring channels of a pixel of
// the output (forward) or of the input (backward): runs in x, pixels in y. Bytes: forward reads a pixel once for each window
// that holds it. FLOPs: KH * KW an output. Limit: memory.
#include "common.cuh"

template <int RUN>
__global__ void avgpool_forward(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int pixels, int C, int H, int W,
                                int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / OW / OH;  // (n, oy, ox)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (p >= pixels || c >= C) return;
    const int y0 = p / OW % OH * stride_h - pad_h, x0 = p % OW * stride_w - pad_w;
    Run<RUN> sum = {};
    for (int iy = max(y0, 0); iy < min(y0 + KH, H); ++iy)
        for (int ix = max(x0, 0); ix < min(x0 + KW, W); ++ix)
            add_to(sum, load<RUN>(x + (((long long)n * H + iy) * W + ix) * C + c));
    for (int j = 0; j < RUN; ++j) sum.v[j] /= scalar_t(KH) * KW;
    store(y + (long long)p * C + c, sum);
}

template <int RUN>
__global__ void avgpool_backward(const scalar_t* __restrict__ dy, scalar_t* __restrict__ dx, int pixels, int C, int H, int W,
                                 int KH, int KW, int OH, int OW, int stride_h, int stride_w, int pad_h, int pad_w) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y, n = p / W / H;  // (n, iy, ix)
    const int c = (blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (p >= pixels || c >= C) return;
    const Range rows = windows_of(p / W % H + pad_h, KH, stride_h, OH), columns = windows_of(p % W + pad_w, KW, stride_w, OW);
    Run<RUN> sum = {};
    for (int oy = rows.begin; oy < rows.end; ++oy)
        for (int ox = columns.begin; ox < columns.end; ++ox)
            add_to(sum, load<RUN>(dy + (((long long)n * OH + oy) * OW + ox) * C + c));
    for (int j = 0; j < RUN; ++j) sum.v[j] /= scalar_t(KH) * KW;
    store(dx + (long long)p * C + c, sum);
}

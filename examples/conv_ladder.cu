// Four steps from the formula to the convolution that trains ResNet-20, kernels/conv3x3.cu, which is the fifth:
//
//   y[n, i, j, o] = sum_{ky, kx, c} w[ky, kx, c, o] x[n, i + ky - 1, j + kx - 1, c]          x is 0 outside of the image
//
// x is N x H x W x C, w 3 x 3 x C x O, y N x H x W x O, float, of any size. FLOPs: 18 C O a pixel of y. What the steps change
// is how often a number is fetched, and from where; see kernels/README.md.

// ---------------------------------------------------------------------------------------------------------------
// 1. Direct. One element of y a thread; neighbours in x are neighbouring channels, which share their pixels and read
// neighbouring weights. Two loads for one multiplication.
// Launch: grid (ceil(O / 32), ceil(N H W / 8)), block (32, 8).

extern "C" __global__ void conv_1_direct(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                         int N, int H, int W, int C, int O) {
    const int o = blockIdx.x * blockDim.x + threadIdx.x, p = blockIdx.y * blockDim.y + threadIdx.y;
    const int j = p % W, i = p / W % H, n = p / W / H;
    if (o >= O || n >= N) return;
    float sum = 0;
    for (int tap = 0; tap < 9; ++tap) {
        const int iy = i + tap / 3 - 1, ix = j + tap % 3 - 1;
        if (iy < 0 || iy >= H || ix < 0 || ix >= W) continue;
        for (int c = 0; c < C; ++c) sum += w[(tap * C + c) * O + o] * x[((n * H + iy) * W + ix) * C + c];
    }
    y[p * O + o] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 2. im2col and a matrix product. Each pixel's window becomes a row of 9 C numbers, and y = columns w: a product for which a
// tile in shared memory serves 16 times (step 3 of gemm_ladder.cu). The price: the columns are nine times the size of x.
// Launch: im2col a block a pixel, 32 threads; the product grid (ceil(O / 16), ceil(M / 16)), block (16, 16), M = N H W.

extern "C" __global__ void conv_2_im2col(const float* __restrict__ x, float* __restrict__ columns, int H, int W, int C) {
    const int p = blockIdx.x, j = p % W, i = p / W % H, n = p / W / H;
    for (int k = threadIdx.x; k < 9 * C; k += blockDim.x) {
        const int iy = i + k / C / 3 - 1, ix = j + k / C % 3 - 1;
        const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W;
        columns[(long long)p * 9 * C + k] = inside ? x[((n * H + iy) * W + ix) * C + k % C] : 0.0f;
    }
}

extern "C" __global__ void conv_2_product(const float* __restrict__ columns, const float* __restrict__ w,
                                          float* __restrict__ y, int M, int O, int K) {
    __shared__ float rows[16][16], filters[16][16];
    const int tx = threadIdx.x, ty = threadIdx.y, m = blockIdx.y * 16 + ty, o = blockIdx.x * 16 + tx;
    float sum = 0;
    for (int k0 = 0; k0 < K; k0 += 16) {
        rows[ty][tx] = m < M && k0 + tx < K ? columns[(long long)m * K + k0 + tx] : 0.0f;
        filters[ty][tx] = k0 + ty < K && o < O ? w[(k0 + ty) * O + o] : 0.0f;
        __syncthreads();
        for (int k = 0; k < 16; ++k) sum += rows[ty][k] * filters[k][tx];
        __syncthreads();
    }
    if (m < M && o < O) y[m * O + o] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 3. Tile in shared memory. The columns need not exist: a block keeps 8 x 8 pixels with their halo, 10 x 10, and 16 channels at
// a time, and the nine taps read them nine times at shifted places. Still one element of y a thread.
// Launch: grid (ceil(O / 4), N ceil(H / 8) ceil(W / 8)), block (4, 64).

extern "C" __global__ void conv_3_shared_tile(const float* __restrict__ x, const float* __restrict__ w,
                                              float* __restrict__ y, int N, int H, int W, int C, int O) {
    __shared__ float tile[10][10][17];  // 17: pixels side by side begin in other banks
    const int tiles_x = (W + 7) / 8, tiles = tiles_x * ((H + 7) / 8), n = blockIdx.y / tiles;
    const int i0 = blockIdx.y % tiles / tiles_x * 8, j0 = blockIdx.y % tiles_x * 8, t = threadIdx.y * 4 + threadIdx.x;
    const int o = blockIdx.x * 4 + threadIdx.x, row = threadIdx.y / 8, column = threadIdx.y % 8;
    float sum = 0;
    for (int c0 = 0; c0 < C; c0 += 16) {
        for (int q = t; q < 10 * 10 * 16; q += 256) {
            const int c = q % 16, iy = i0 + q / 160 - 1, ix = j0 + q / 16 % 10 - 1;
            const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W && c0 + c < C;
            tile[q / 160][q / 16 % 10][c] = inside ? x[((n * H + iy) * W + ix) * C + c0 + c] : 0.0f;
        }
        __syncthreads();
        for (int tap = 0; tap < 9 && o < O; ++tap)
            for (int c = 0; c < min(16, C - c0); ++c)
                sum += w[(tap * C + c0 + c) * O + o] * tile[row + tap / 3][column + tap % 3][c];
        __syncthreads();
    }
    if (o < O && i0 + row < H && j0 + column < W) y[((n * H + i0 + row) * W + j0 + column) * O + o] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 4. Sums in registers. A thread computes 8 pixels of a column and 4 channels: a weight serves 8 multiplications, a pixel 4.
// Launch: grid (ceil(O / 16), N ceil(H / 8) ceil(W / 8)), block (4, 8).

extern "C" __global__ void conv_4_register_sums(const float* __restrict__ x, const float* __restrict__ w,
                                                float* __restrict__ y, int N, int H, int W, int C, int O) {
    __shared__ float tile[10][10][17];
    const int tiles_x = (W + 7) / 8, tiles = tiles_x * ((H + 7) / 8), n = blockIdx.y / tiles;
    const int i0 = blockIdx.y % tiles / tiles_x * 8, j0 = blockIdx.y % tiles_x * 8, t = threadIdx.y * 4 + threadIdx.x;
    const int o0 = blockIdx.x * 16 + threadIdx.x * 4, column = threadIdx.y;
    float sum[8][4] = {};
    for (int c0 = 0; c0 < C; c0 += 16) {
        for (int q = t; q < 10 * 10 * 16; q += 32) {
            const int c = q % 16, iy = i0 + q / 160 - 1, ix = j0 + q / 16 % 10 - 1;
            const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W && c0 + c < C;
            tile[q / 160][q / 16 % 10][c] = inside ? x[((n * H + iy) * W + ix) * C + c0 + c] : 0.0f;
        }
        __syncthreads();
        for (int tap = 0; tap < 9; ++tap)
            for (int c = 0; c < min(16, C - c0); ++c) {
                float right[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) right[k] = o0 + k < O ? w[(tap * C + c0 + c) * O + o0 + k] : 0.0f;
#pragma unroll
                for (int p = 0; p < 8; ++p) {
                    const float left = tile[p + tap / 3][column + tap % 3][c];
#pragma unroll
                    for (int k = 0; k < 4; ++k) sum[p][k] += left * right[k];
                }
            }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < 8; ++p)
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (o0 + k < O && i0 + p < H && j0 + column < W) y[((n * H + i0 + p) * W + j0 + column) * O + o0 + k] = sum[p][k];
}

// Convolution of 3 x 3 with stride S, 1 or 2, and its gradients, without im2col's columns: an implicit GEMM.
//   y[n, oy, ox, o]   = sum_{ky, kx, c} w[ky, kx, c, o] x[n, oy * S - pad_h + ky, ox * S - pad_w + kx, c]
//   dx[n, iy, ix, c]  = the same with S = 1 over dy, the filters turned:  turned[ky, kx, o, c] = w[2 - ky, 2 - kx, c, o]
//   dw[ky, kx, c, o]  = sum_{n, oy, ox} x[n, oy * S - pad_h + ky, ox * S - pad_w + kx, c] dy[n, oy, ox, o]
//
// x is N x H x W x C, y and dy N x OH x OW x O, w 3 x 3 x C x O; images are 0 outside.
// A block keeps a tile of pixels, with its halo and all of its channels, in shared memory, and the nine taps read it nine
// times at shifted places. A part is TP pixels of a column and TO neighbouring channels of the result, TP * TO sums in
// registers; a thread takes every blockDim.x-th part. A weight then serves TP multiply-adds, and a pixel 3 * TO, since the
// three rows of taps that meet it are done while it is at hand. Weights are read from memory: they lie as the loop wants them.
// Bytes: x is read once, with the tiles' halo, y written once. FLOPs: 18 C O a pixel of y. Limit: arithmetic.
// Source: NVIDIA, CUDA C++ Programming Guide, "Shared Memory"; A. Lavin, "maxDNN", 2015.
#include "common.cuh"

// The convolution. In evaluation what follows is done before y is written: with NORMALISE, relu(batchnorm(y)), with ADD too
// relu(batchnorm(y) + added), by the formula of batchnorm.cu. ADD alone gives y + added, for gradients that are added up.
// Launch: grid (N * ceil(OH / ROWS) * ceil(OW / COLUMNS)), at most a thread for each part.
template <int ROWS, int COLUMNS, int TP, int TO, int C, int O, int S, bool NORMALISE, bool ADD>
__global__ void conv3x3(const scalar_t* __restrict__ x, const scalar_t* __restrict__ w, scalar_t* __restrict__ y, int H,
                        int W, int OH, int OW, int pad_h, int pad_w, const scalar_t* __restrict__ mean,
                        const scalar_t* __restrict__ variance, const scalar_t* __restrict__ weight,
                        const scalar_t* __restrict__ bias, const scalar_t* __restrict__ added, scalar_t eps) {
    constexpr int DEPTH = run_of(C, 4), GROUPS = O / TO;
    __shared__ __align__(64) scalar_t xs[(ROWS - 1) * S + 3][(COLUMNS - 1) * S + 3][C + DEPTH / 4 * 4];  // + 4: other banks
    __shared__ __align__(16) scalar_t scale[O];
    const int tiles_x = (OW + COLUMNS - 1) / COLUMNS, tiles = tiles_x * ((OH + ROWS - 1) / ROWS);
    const int y0 = blockIdx.x % tiles / tiles_x * ROWS, x0 = blockIdx.x % tiles_x * COLUMNS;
    const long long n = blockIdx.x / tiles;
    load_tile<C, run_of(C, TO)>(xs, x + n * H * W * C, y0 * S - pad_h, x0 * S - pad_w, H, W, C);
    for (int o = threadIdx.x; NORMALISE && o < O; o += blockDim.x) scale[o] = 1 / sqrt(variance[o] + eps) * weight[o];
    __syncthreads();
    for (int part = threadIdx.x; part < ROWS / TP * COLUMNS * GROUPS; part += blockDim.x) {
        const int o = part % GROUPS * TO, column = part / GROUPS % COLUMNS, row = part / (GROUPS * COLUMNS) * TP;
        Run<TO> sum[TP] = {};
#pragma unroll 1
        for (int kx = 0; kx < 3; ++kx)
#pragma unroll 1
            for (int c = 0; c < C; c += DEPTH)
#pragma unroll
                for (int i = c; i < c + DEPTH; ++i) {
                    scalar_t left[(TP - 1) * S + 3];
#pragma unroll
                    for (int k = 0; k < (TP - 1) * S + 3; ++k) left[k] = xs[row * S + k][column * S + kx][i];
#pragma unroll
                    for (int ky = 0; ky < 3; ++ky) {
                        const Run<TO> right = load<TO>(w + ((ky * 3 + kx) * C + i) * O + o);
#pragma unroll
                        for (int p = 0; p < TP; ++p)
                            for (int j = 0; j < TO; ++j) sum[p].v[j] += left[p * S + ky] * right.v[j];
                    }
                }
        Run<TO> mid = {}, factor = {}, shift = {};
        if (NORMALISE) mid = load<TO>(mean + o), factor = load<TO>(scale + o), shift = load<TO>(bias + o);
#pragma unroll
        for (int p = 0; p < TP; ++p) {
            const int oy = y0 + row + p, ox = x0 + column;
            if (oy >= OH || ox >= OW) continue;
            const long long at = ((n * OH + oy) * OW + ox) * O + o;
            for (int j = 0; NORMALISE && j < TO; ++j) sum[p].v[j] = normalised(sum[p].v[j], mid.v[j], factor.v[j], shift.v[j]);
            if (ADD) add_to(sum[p], load<TO>(added + at));
            for (int j = 0; NORMALISE && j < TO; ++j) sum[p].v[j] = sum[p].v[j] <= 0 ? scalar_t(0) : sum[p].v[j];
            store(y + at, sum[p]);
        }
    }
}

// The gradient of x with stride 2 and padding 1. Of the nine taps, 1, 2, 2 or 4 reach a pixel, as its row and column are even
// or odd: in each direction tap 1 reaches the even pixel 2a from a, taps 0 and 2 the odd one 2a + 1 from a + 1 and a. So
//
//   dx[n, 2a + p, 2b + q, c] = sum_o of w[ky, kx, c, o] dy[n, a + (ky == 0), b + (kx == 0), o],  ky = 1 where p is 0, else 0, 2
//
// and kx likewise. A part is TP places (a, b) of a column, with the four pixels of each, and TO channels. Launch: as conv3x3,
// for ceil(H / 2) x ceil(W / 2) places. FLOPs: 18 C O a place. Limit: arithmetic.
template <int ROWS, int COLUMNS, int TP, int TO, int O, int C>
__global__ void conv3x3_strided_gradient(const scalar_t* __restrict__ dy, const scalar_t* __restrict__ turned,
                                         scalar_t* __restrict__ dx, int OH, int OW, int H, int W) {
    constexpr int DEPTH = run_of(O, 4), GROUPS = C / TO;
    __shared__ __align__(64) scalar_t dys[ROWS + 1][COLUMNS + 1][O + DEPTH / 4 * 4];
    const int tiles_x = ((W + 1) / 2 + COLUMNS - 1) / COLUMNS, tiles = tiles_x * (((H + 1) / 2 + ROWS - 1) / ROWS);
    const int a0 = blockIdx.x % tiles / tiles_x * ROWS, b0 = blockIdx.x % tiles_x * COLUMNS;
    const long long n = blockIdx.x / tiles;
    load_tile<O, run_of(O, TO)>(dys, dy + n * OH * OW * O, a0, b0, OH, OW, O);
    __syncthreads();
    for (int part = threadIdx.x; part < ROWS / TP * COLUMNS * GROUPS; part += blockDim.x) {
        const int c = part % GROUPS * TO, column = part / GROUPS % COLUMNS, row = part / (GROUPS * COLUMNS) * TP;
        Run<TO> sum[TP][4] = {};
#pragma unroll 1
        for (int o = 0; o < O; o += DEPTH)
#pragma unroll
            for (int i = o; i < o + DEPTH; ++i)
#pragma unroll
                for (int tap = 0; tap < 9; ++tap) {
                    const int ky = tap / 3, kx = tap % 3, kind = (1 - ky % 2) * 2 + 1 - kx % 2;
                    const Run<TO> right = load<TO>(turned + ((8 - tap) * O + i) * C + c);
#pragma unroll
                    for (int p = 0; p < TP; ++p) {
                        const scalar_t left = dys[row + p + (ky == 0)][column + (kx == 0)][i];
                        for (int j = 0; j < TO; ++j) sum[p][kind].v[j] += left * right.v[j];
                    }
                }
#pragma unroll
        for (int p = 0; p < TP; ++p)
#pragma unroll
            for (int kind = 0; kind < 4; ++kind) {
                const int iy = 2 * (a0 + row + p) + kind / 2, ix = 2 * (b0 + column) + kind % 2;
                if (iy < H && ix < W) store(dx + ((n * H + iy) * W + ix) * C + c, sum[p][kind]);
            }
    }
}

// The gradient of the filters. All images are cut into tiles of ROWS x COLUMNS pixels of dy, and the tiles into chunks. A block
// sums BC x BO pairs of channels over a chunk, tile by tile; a part is all nine taps of TC x TO pairs, in registers, so that a
// value of dy serves 9 * TC multiply-adds; TP pixels of a row are done together, which share pixels of x. Then bias.cu's
// column_sums adds up the chunks: as many as the shapes say, whatever number of blocks runs at once. The first chunk's blocks
// also turn their filters, which the gradient of x wants, if `turned` is given; with N = 0 they do nothing else.
// Launch: grid (C / BC, O / BO, chunks), at most a thread for each part. Bytes: x is read once for each BO channels of dy, dy
// once for each BC of x. FLOPs: 18 C O a pixel of dy. Limit: arithmetic.
template <int ROWS, int COLUMNS, int TP, int BC, int BO, int TC, int TO, int S>
__global__ void conv3x3_weight(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                               scalar_t* __restrict__ parts, const scalar_t* __restrict__ w, scalar_t* __restrict__ turned,
                               int N, int C, int H, int W, int O, int OH, int OW, int pad_h, int pad_w,
                               int tiles_per_chunk) {
    __shared__ __align__(64) scalar_t xs[(ROWS - 1) * S + 3][(COLUMNS - 1) * S + 3][BC], dys[ROWS][COLUMNS][BO];
    const int tiles_x = (OW + COLUMNS - 1) / COLUMNS, tiles = tiles_x * ((OH + ROWS - 1) / ROWS);
    const int c0 = blockIdx.x * BC, o0 = blockIdx.y * BO;
    const int begin = blockIdx.z * tiles_per_chunk, end = min(begin + tiles_per_chunk, N * tiles);
    for (int q = threadIdx.x; turned && blockIdx.z == 0 && q < 9 * BO * BC; q += blockDim.x) {
        const int tap = q / (BO * BC), out = o0 + q / BC % BO, in = c0 + q % BC;
        turned[((8 - tap) * O + out) * C + in] = w[(tap * C + in) * O + out];
    }
    for (int tile = begin; tile < end; ++tile) {
        const int y0 = tile % tiles / tiles_x * ROWS, x0 = tile % tiles_x * COLUMNS;
        const long long n = tile / tiles;
        load_tile<BC, run_of(BC, TO)>(xs, x + n * H * W * C + c0, y0 * S - pad_h, x0 * S - pad_w, H, W, C);
        load_tile<BO, TO>(dys, dy + n * OH * OW * O + o0, y0, x0, OH, OW, O);
        __syncthreads();
        for (int part = threadIdx.x; part < BC / TC * (BO / TO); part += blockDim.x) {
            const int c = part % (BC / TC) * TC, o = part / (BC / TC) * TO;
            scalar_t* to = parts + (blockIdx.z * 9ll * C + c0 + c) * O + o0 + o;
            Run<TO> sum[TC][9] = {};
            for (int row = 0; row < ROWS; ++row)
                for (int column = 0; column < COLUMNS; column += TP)
#pragma unroll
                    for (int i = 0; i < TC; ++i) {
                        scalar_t left[3][(TP - 1) * S + 3];
#pragma unroll
                        for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                            for (int k = 0; k < (TP - 1) * S + 3; ++k)
                                left[ky][k] = xs[row * S + ky][column * S + k][c + i];
#pragma unroll
                        for (int p = 0; p < TP; ++p) {
                            const Run<TO> right = load<TO>(&dys[row][column + p][o]);
#pragma unroll
                            for (int t = 0; t < 9; ++t)
                                for (int j = 0; j < TO; ++j) sum[i][t].v[j] += left[t / 3][p * S + t % 3] * right.v[j];
                        }
                    }
#pragma unroll
            for (int i = 0; i < TC; ++i)
#pragma unroll
                for (int tap = 0; tap < 9; ++tap) {
                    if (tile > begin) add_to(sum[i][tap], load<TO>(to + (tap * C + i) * O));
                    store(to + (tap * C + i) * O, sum[i][tap]);
                }
        }
        __syncthreads();
    }
}

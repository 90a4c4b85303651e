// Convolution, twice: with a column buffer out of im2col and GEMM, and 3 x 3 without one.
//
// Readable, for any kernel size and stride. With columns = im2col(x) and weight as O x (C * KH * KW):
//
//   y[n]       = weight * columns[n] + bias                 gemm_nn, bias_forward
//   d_columns  = weight^T * dy[n], dx = col2im(d_columns)   gemm_tn, col2im
//   d_weight   = sum_n dy[n] * columns[n]^T                 gemm_nt for each image, then sum_over_batch
//   d_bias[o]  = sum_{n,p} dy[n, o, p]                      bias_backward
//
// Here y is N x O x P with P = OH * OW. A linear layer uses the bias kernels too, with P = 1.
// Bytes of the kernels here: each input is read once. Limit: memory. The fast kernels stand under the ruled line.
#include "common.cuh"

// y[n, o, p] += bias[o]. Launch: grid (N * O, ceil(P / threads)), one element a thread.
extern "C" __global__ void bias_forward(scalar_t* __restrict__ y, const scalar_t* __restrict__ bias, int O, int P) {
    const long long plane = blockIdx.x;
    const int p = blockIdx.y * blockDim.x + threadIdx.x;
    if (p < P) y[plane * P + p] += bias[plane % O];
}

// d_bias[o] = sum over n and p of dy[n, o, p]. Launch: grid (O), a block a channel, whose threads stride over p and
// then add up their sums.
extern "C" __global__ void bias_backward(const scalar_t* __restrict__ dy, scalar_t* __restrict__ d_bias, int N, int O,
                                         int P) {
    const int o = blockIdx.x;
    scalar_t sum = 0;
    for (long long i = threadIdx.x; i < (long long)N * P; i += blockDim.x) sum += dy[(i / P * O + o) * P + i % P];
    sum = block_sum(sum);
    if (threadIdx.x == 0) d_bias[o] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// Fast: 3 x 3 with stride 1 or 2 and no column buffer, which would be nine times the size of x, written and read.
//
//   y[n, o, oy, ox] = sum_{c, ky, kx} w[o, c, ky, kx] x[n, c, oy * S - pad_h + ky, ox * S - pad_w + kx]
//
// What changes against im2col and GEMM: the columns are never stored. A block keeps a slice of BC channels of x, with
// its halo, in shared memory, and the nine taps read it nine times at shifted places. A thread computes TO channels of
// 16 pixels in registers, so that a weight serves 16 multiplications and a pixel TO.
//
// The gradient of x is the same sum over dy with the weights turned by 180 degrees and in and out exchanged, and with
// D - 1 zeros between the pixels of dy where the forward's stride was D. So conv3x3 computes it too: only the order
// in which conv3x3_pack_weight lays down the weights differs.
//
// Launch: a block of 32 threads computes BO channels x 8 rows x BW columns of one image: grid (N * ceil(OH / 8) *
// ceil(OW / BW), ceil(O / BO)). FLOPs: 18 C an element of y. Bytes: x is read once for each BO channels, 1 + halo times.
// Limit: arithmetic. Gained, forward and both gradients of ResNet-20's layers at batch 128 on 2 cores of a CPU: 3.8 to
// 7.9 times the speed of im2col and GEMM with stride 1, 2.1 to 2.5 times with stride 2 (examples/benchmark.py).

// packed[c, tap, o] = w[o, c, tap] or, for the gradient, packed[o, tap, c] = w[o, c, 8 - tap]: a block then reads the
// weights of neighbouring channels from neighbouring addresses. Launch: one element a thread.
extern "C" __global__ void conv3x3_pack_weight(const scalar_t* __restrict__ w, scalar_t* __restrict__ packed, int O,
                                               int C, int gradient) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= O * C * 9) return;
    const int o = i / (C * 9), c = i / 9 % C, tap = i % 9;
    packed[gradient ? (o * 9 + 8 - tap) * C + c : (c * 9 + tap) * O + o] = w[i];
}

template <int BO, int BW, int S, int D>
__global__ void conv3x3(const scalar_t* __restrict__ x, const scalar_t* __restrict__ packed, scalar_t* __restrict__ y,
                        int C, int H, int W, int O, int OH, int OW, int pad_h, int pad_w) {
    constexpr int BC = 32 / sizeof(scalar_t), BR = 8, THREADS = 32;
    // A thread's pixels are neighbours in a row on a CPU, and spread over the tile on a GPU: see common.cuh.
    constexpr int TO = 8, TW = BLOCKED ? (BW < 16 ? BW : 16) : 2, TR = 16 / TW;
    constexpr int ROW_GROUPS = BR / TR, COLUMN_GROUPS = BW / TW;
    constexpr int ROW_STEP = BLOCKED ? 1 : ROW_GROUPS, COLUMN_STEP = BLOCKED ? 1 : COLUMN_GROUPS;
    static_assert(BO / TO * ROW_GROUPS * COLUMN_GROUPS == THREADS, "32 threads share the tile");
    // Column j * S + phase of the tile is at [phase][j]: what the taps read then lies side by side for any stride.
    constexpr int ROWS = (BR - 1) * S + 3, RUN = BW + 2 / S;
    __shared__ scalar_t xs[BC][ROWS][S][RUN];
    __shared__ __align__(64) scalar_t ws[BC * 9][BO];

    const int tiles_x = (OW + BW - 1) / BW, tiles_y = (OH + BR - 1) / BR;
    const int tile_x = blockIdx.x % tiles_x * BW, tile_y = blockIdx.x / tiles_x % tiles_y * BR;
    const int tile_o = blockIdx.y * BO, x0 = tile_x * S - pad_w, y0 = tile_y * S - pad_h;
    const long long n = blockIdx.x / (tiles_x * tiles_y);
    const int t = threadIdx.x, column_group = t % COLUMN_GROUPS, row_group = t / COLUMN_GROUPS % ROW_GROUPS;
    const int column = BLOCKED ? column_group * TW : column_group, row = BLOCKED ? row_group * TR : row_group;
    const int o = t / (COLUMN_GROUPS * ROW_GROUPS) * TO;
    constexpr int LANES = BLOCKED ? 1 : THREADS;  // that load one row of shared memory together

    scalar_t sum[TO][TR][TW] = {};
    for (int c0 = 0; c0 < C; c0 += BC) {
        const int depth = min(BC, C - c0);
        for (int r = t / LANES; r < depth * ROWS; r += THREADS / LANES) {
            const int c = r / ROWS, iy = y0 + r % ROWS;
            const bool in_row = iy >= 0 && iy < H * D && iy % D == 0;
            const scalar_t* from = x + ((n * C + c0 + c) * H + iy / D) * W;
            for (int phase = 0; phase < S; ++phase) {
                scalar_t* to = xs[c][r % ROWS][phase];
                for (int j = t % LANES; j < RUN; j += LANES) {
                    const int ix = x0 + j * S + phase;
                    const bool inside = in_row && ix >= 0 && ix < W * D && ix % D == 0;
                    to[j] = inside ? from[ix / D] : scalar_t(0);
                }
            }
        }
        for (int r = t / LANES; r < depth * 9; r += THREADS / LANES)
            for (int j = t % LANES; j < BO; j += LANES)
                ws[r][j] = tile_o + j < O ? packed[((long long)c0 * 9 + r) * O + tile_o + j] : scalar_t(0);
        __syncthreads();
        for (int c = 0; c < depth; ++c)
#pragma unroll
            for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) {
                    scalar_t right[TR][TW];
#pragma unroll
                    for (int i = 0; i < TR; ++i)
                        for (int j = 0; j < TW; ++j)
                            right[i][j] =
                                xs[c][(row + i * ROW_STEP) * S + ky][kx % S][column + j * COLUMN_STEP + kx / S];
#pragma unroll
                    for (int k = 0; k < TO; ++k) {
                        const scalar_t left = ws[c * 9 + ky * 3 + kx][o + k];
#pragma unroll
                        for (int i = 0; i < TR; ++i)
                            // No pragma here: g++ makes vectors of this loop only while it still is one.
                            for (int j = 0; j < TW; ++j) sum[k][i][j] += left * right[i][j];
                    }
                }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < TO; ++k)
#pragma unroll
        for (int i = 0; i < TR; ++i) {
            const int channel = tile_o + o + k, oy = tile_y + row + i * ROW_STEP, ox = tile_x + column;
            if (channel >= O || oy >= OH) continue;
            scalar_t* to = y + ((n * O + channel) * OH + oy) * OW + ox;
            if (ox + (TW - 1) * COLUMN_STEP < OW) {
                for (int j = 0; j < TW; ++j) to[j * COLUMN_STEP] = sum[k][i][j];
            } else {
                for (int j = 0; j < TW; ++j)
                    if (ox + j * COLUMN_STEP < OW) to[j * COLUMN_STEP] = sum[k][i][j];
            }
        }
}

// to[j] = from[first + j] for j = 0 .. n - 1, and 0 where that lies outside of 0 .. length - 1. No loop has a condition
// inside, so that a CPU's compiler makes vectors of them.
__device__ inline void copy_clipped(scalar_t* __restrict__ to, const scalar_t* __restrict__ from, int first, int n,
                                    int length) {
    const int lo = min(max(-first, 0), n), hi = max(min(length - first, n), lo);
    for (int j = 0; j < lo; ++j) to[j] = 0;
    for (int j = lo; j < hi; ++j) to[j] = from[first + j];
    for (int j = hi; j < n; ++j) to[j] = 0;
}

// The gradient of the weights:
//
//   dw[o, c, ky, kx] = sum_{n, oy, ox} dy[n, o, oy, ox] x[n, c, oy * S - pad_h + ky, ox * S - pad_w + kx]
//
// All images are cut into tiles of BR x BW pixels, and the tiles into as many chunks as the grid is deep. A block sums
// 16 x 16 pairs of channels over a chunk; a thread has one tap and 8 x 16 pairs. Then the chunks are summed in their order, as many as the shapes say, so the result
// does not depend on how many blocks run at once.
// Launch: grid (ceil(C / 16), ceil(O / 16), chunks), 18 threads. Limit: arithmetic.
template <int BW, int S>
__global__ void conv3x3_weight(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                               scalar_t* __restrict__ parts, int N, int C, int H, int W, int O, int OH, int OW,
                               int pad_h, int pad_w) {
    // A larger tile loads fewer halos, but on a GPU takes the shared memory of other blocks.
    constexpr int BR = BLOCKED && BW > 8 ? 256 / BW : 64 / BW, BC = 16, BO = 16, TC = 8, THREADS = 9 * BC / TC;
    constexpr int ROWS = (BR - 1) * S + 3, COLUMNS = (BW - 1) * S + 3;
    __shared__ scalar_t xs[BC][ROWS][COLUMNS];
    __shared__ __align__(64) scalar_t dys[BR][BW][BO];  // transposed: the channels of a pixel side by side

    const int tiles_x = (OW + BW - 1) / BW, tiles = tiles_x * ((OH + BR - 1) / BR);
    const int c0 = blockIdx.x * BC, o0 = blockIdx.y * BO;
    const int t = threadIdx.x, tap = t % 9, ky = tap / 3, kx = tap % 3, c = t / 9 * TC;
    const int tiles_per_chunk = (N * tiles + gridDim.z - 1) / gridDim.z;
    const int begin = min(int(blockIdx.z) * tiles_per_chunk, N * tiles), end = min(begin + tiles_per_chunk, N * tiles);

    scalar_t sum[TC][BO] = {};
    for (int tile = begin; tile < end; ++tile) {
        const long long n = tile / tiles;
        const int tile_y = tile % tiles / tiles_x * BR, tile_x = tile % tiles_x * BW;
        for (int r = t; r < BC * ROWS; r += THREADS) {
            const int channel = c0 + r / ROWS, iy = tile_y * S - pad_h + r % ROWS;
            const bool in_row = channel < C && iy >= 0 && iy < H;
            copy_clipped(xs[r / ROWS][r % ROWS], x + ((n * C + channel) * H + iy) * W, tile_x * S - pad_w, COLUMNS,
                         in_row ? W : 0);
        }
        for (int r = t; r < BO * BR; r += THREADS) {
            const int o = r % BO, oy = tile_y + r / BO;
            const int inside = o0 + o < O && oy < OH ? min(BW, OW - tile_x) : 0;
            const scalar_t* from = dy + ((n * O + o0 + o) * OH + oy) * OW + tile_x;
            for (int j = 0; j < inside; ++j) dys[r / BO][j][o] = from[j];
            for (int j = inside; j < BW; ++j) dys[r / BO][j][o] = 0;
        }
        __syncthreads();
        for (int y = 0; y < BR; ++y)
            for (int p0 = 0; p0 < BW; p0 += 4)
                // Four pixels a turn: g++ loads and stores the sums once a turn.
#pragma unroll
                for (int p = p0; p < p0 + 4; ++p) {
                    scalar_t right[BO];
                    for (int j = 0; j < BO; ++j) right[j] = dys[y][p][j];
#pragma unroll
                    for (int k = 0; k < TC; ++k) {
                        const scalar_t left = xs[c + k][y * S + ky][p * S + kx];
                        for (int j = 0; j < BO; ++j) sum[k][j] += left * right[j];
                    }
                }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < TC; ++k)
#pragma unroll
        for (int j = 0; j < BO; ++j)
            if (c0 + c + k < C && o0 + j < O)
                parts[((blockIdx.z * (long long)C + c0 + c + k) * 9 + tap) * O + o0 + j] = sum[k][j];
}

// dw[o, c, tap] = sum over the chunks of parts[chunk, c, tap, o]. Launch: one element of dw a thread; on a CPU a
// sixteenth of the threads do the work, 16 neighbours each.
extern "C" __global__ void conv3x3_weight_sum(const scalar_t* __restrict__ parts, scalar_t* __restrict__ dw, int chunks,
                                              int C, int O) {
    constexpr int RUN = BLOCKED ? 16 : 1;
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * RUN, count = C * 9 * O, run = min(RUN, count - first);
    scalar_t total[RUN] = {};
    for (int chunk = 0; chunk < chunks; ++chunk)
        for (int j = 0; j < run; ++j) total[j] += parts[(long long)chunk * count + first + j];
    for (int i = first; i < first + run; ++i) dw[i % O * (C * 9) + i / O] = total[i - first];
}

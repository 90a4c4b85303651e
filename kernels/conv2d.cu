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
// What changes against im2col and GEMM: the columns are never stored. A block computes BO channels of a tile of BR x BW
// pixels of BN images. It keeps a slice of BC channels of x, with its halo, in shared memory, and the nine taps read it
// nine times at shifted places. A thread computes TO channels of TR rows of TW pixels in registers: a weight serves
// TR * TW multiplications, and a pixel 3 * TO, since the three rows of taps that meet it are done while it is at hand.
//
// The gradient of x with stride 1 is the same sum over dy, with the weights turned by 180 degrees and in and out
// exchanged (TURNED). With stride 2 see below.
//
// One body, two kinds of tile. On a GPU TW is 1: lanes are neighbouring columns, which meet different banks, and 4 x 8
// sums feed 288 multiply-adds with 66 loads from shared memory, more than the four that a wavefront must feed. On a CPU TW
// is 16: a row of a part's pixels fills a vector register, and where an image is only 8 wide, two rows do (SPAN). A part is
// what a thread has in registers, TO x TR x TW. On a GPU each has a thread of its own; on a CPU one thread does all parts of
// a block in turn, and waits at no barrier.
// Launch: grid (ceil(N / BN) * ceil(OH / BR) * ceil(OW / BW), ceil(O / BO)), a thread for each part, or one.
// FLOPs: 18 C an element of y. Bytes: x is read once for each BO channels, with its halo; w once a block. Limit:
// arithmetic. Source: NVIDIA, CUDA C++ Programming Guide, "Shared Memory"; A. Lavin, "maxDNN", 2015.

// Fills to[HEIGHT * PARTS][PART] from a plane of H x W: element j of part p of row r is the pixel (y0 + r, x0 + p + j *
// STEP), 0 outside. PARTS is 1 or STEP; or, SHIFTED, the parts are three copies of all rows, from x0, x0 + 1 and x0 + 2 on.
// LANES threads share the work. On a GPU, 32: first the INNER columns from `inner` on, which lie under the tile's pixels,
// so that a warp reads whole sectors, then the halo. On a CPU one thread takes a part at a time, as vectors.
template <int LANES, int HEIGHT, int PART, int STEP, bool SHIFTED, int INNER>
__device__ inline void load_plane(scalar_t* __restrict__ to, const scalar_t* __restrict__ from, int lane, int y0, int x0,
                                  int inner, int H, int W) {
    constexpr int LENGTH = LANES == 1 ? PART : 1, PARTS = HEIGHT * (SHIFTED ? 3 : STEP);
    constexpr int FIRST = LENGTH == 1 && STEP == 1 ? PARTS * INNER : 0, HALO = PART - INNER > 0 ? PART - INNER : 1;
    for (int q = lane; q < PARTS * PART / LENGTH; q += LANES) {
        int part = q * LENGTH / PART, first = q * LENGTH % PART;
        if (FIRST > 0) {
            part = q < FIRST ? q / INNER : (q - FIRST) / HALO;
            first = (inner + (q < FIRST ? q % INNER : INNER + (q - FIRST) % HALO)) % PART;
        }
        const int y = y0 + (SHIFTED ? part % HEIGHT : part / STEP), x = x0 + (SHIFTED ? part / HEIGHT : part % STEP);
        const int width = y >= 0 && y < H ? W : 0;
        const scalar_t* row = from + (long long)y * W;
        for (int j = first; j < first + LENGTH; ++j)
            to[part * PART + j] = x + j * STEP >= 0 && x + j * STEP < width ? row[x + j * STEP] : scalar_t(0);
    }
}

// Fills ws[c * 9 + tap][k] with the weights of BC x BO pairs of channels: of w[o0 + k, c0 + c], O x C filters, or, TURNED,
// of w[c0 + c, o0 + k], C x O filters turned by 180 degrees. ROW elements lie between two rows of ws. On a GPU (BY_LANE)
// neighbouring lanes read neighbouring weights, of which a filter has nine; a CPU writes a row of ws at a time.
template <int BC, int BO, int ROW, int THREADS, bool BY_LANE, bool TURNED>
__device__ inline void load_weights(scalar_t* __restrict__ ws, const scalar_t* __restrict__ w, int c0, int o0, int depth,
                                    int C, int O) {
    constexpr int RUN = BY_LANE ? 1 : BO;
    const int stride = TURNED ? 9 : 9 * C;  // from one k to the next
    for (int q = threadIdx.x; q < BC * 9 * BO / RUN; q += THREADS) {
        const int tap = TURNED ? 8 - q % 9 : q % 9, c = !BY_LANE ? q / 9 : TURNED ? q / (9 * BO) : q / 9 % BC;
        const int first = !BY_LANE ? 0 : TURNED ? q / 9 % BO : q / (9 * BC), end = c < depth ? O - o0 : 0;
        const scalar_t* from = w + (long long)o0 * stride + (TURNED ? (c0 + c) * 9ll * O + 8 - tap : (c0 + c) * 9ll + tap);
        for (int k = first; k < first + RUN; ++k)
            ws[(c * 9 + tap) * ROW + k] = k < end ? from[(long long)k * stride] : scalar_t(0);
    }
}

// In evaluation, FUSED, what follows is done before y is written: 1 relu(batchnorm(y)), 2 relu(batchnorm(y) + residual), by
// the formula of batchnorm.cu. Otherwise the arguments from mean on are not read.
template <int BN, int BO, int BR, int BW, int TO, int TR, int TW, int S, bool TURNED, int FUSED>
__global__ void conv3x3(const scalar_t* __restrict__ x, const scalar_t* __restrict__ w, scalar_t* __restrict__ y, int N,
                        int C, int H, int W, int O, int OH, int OW, int pad_h, int pad_w,
                        const scalar_t* __restrict__ mean, const scalar_t* __restrict__ variance,
                        const scalar_t* __restrict__ weight, const scalar_t* __restrict__ bias,
                        const scalar_t* __restrict__ residual, scalar_t eps) {
    constexpr int BC = 32 / sizeof(scalar_t), SPAN = TW > BW ? TW / BW : 1, LANES = TW == 1 ? 32 : 1;
    constexpr int COLUMNS = BW * SPAN / TW, ROWS = BR / TR / SPAN, PARTS = BN * BO / TO * ROWS * COLUMNS;
    constexpr int THREADS = TW == 1 ? PARTS : 1, EACH = PARTS / THREADS;
    // A row of the tile of x is kept as S parts, of the columns j * S + part: what a tap reads then lies side by side for
    // any stride. Where a vector spans rows, the rows are kept without halo, three times, shifted by 0, 1 and 2.
    constexpr int HEIGHT = (BR - 1) * S + 3, PART = SPAN > 1 ? BW : BW + 2 / S, LINE = SPAN > 1 ? BW : S * PART;
    static_assert(SPAN == 1 || S == 1, "rows that are two apart do not lie side by side");
    __shared__ scalar_t xs[BC][BN][(SPAN > 1 ? 3 : 1) * HEIGHT * LINE];
    // Lanes that write neighbouring weights of a filter into a column meet different banks.
    constexpr int ROW = BO + (TW > 1 ? 0 : TURNED ? 4 : 1);
    __shared__ __align__(64) scalar_t ws[BC * 9][ROW];

    const int tiles_x = (OW + BW - 1) / BW, tiles_y = (OH + BR - 1) / BR;
    const int tile_x = blockIdx.x % tiles_x * BW, tile_y = blockIdx.x / tiles_x % tiles_y * BR;
    const int n0 = blockIdx.x / (tiles_x * tiles_y) * BN, o0 = blockIdx.y * BO, t = threadIdx.x;

    struct Sums {
        scalar_t of[TO][TR][TW];
    } sums[EACH] = {};
    for (int c0 = 0; c0 < C; c0 += BC) {
        const int depth = min(BC, C - c0);
        for (int plane = t / LANES; plane < depth * BN; plane += THREADS / LANES) {
            const int c = plane / BN, image = n0 + plane % BN;
            const scalar_t* from = x + ((long long)image * C + c0 + c) * H * W;
            load_plane<LANES, HEIGHT, PART, S, (SPAN > 1), BW>(xs[c][plane % BN], from, t % LANES, tile_y * S - pad_h,
                                                               tile_x * S - pad_w, pad_w, image < N ? H : 0, W);
        }
        load_weights<BC, BO, ROW, THREADS, TW == 1, TURNED>(ws[0], w, c0, o0, depth, C, O);
        __syncthreads();
        for (int e = 0, part = t; e < EACH; ++e, part += THREADS) {
            const int column = SPAN > 1 ? 0 : part % COLUMNS * TW, row = part / COLUMNS % ROWS * TR * SPAN;
            const int o = part / (COLUMNS * ROWS) % (BO / TO) * TO, n = part / (COLUMNS * ROWS * (BO / TO));
            Sums sum = sums[e];
            for (int c = 0; c < depth; ++c)
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) {
                    constexpr int REACH = (TR - 1) * SPAN * S + 3;
                    const int first =
                        SPAN > 1 ? (kx * HEIGHT + row) * LINE : row * S * LINE + kx % S * PART + column + kx / S;
                    const scalar_t* from = &xs[c][n][first];
                    scalar_t right[REACH][TW];
#pragma unroll
                    for (int i = 0; i < REACH; ++i)
                        for (int j = 0; j < TW; ++j) right[i][j] = from[i * LINE + j];
#pragma unroll
                    for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                        for (int k = 0; k < TO; ++k) {
                            const scalar_t left = ws[c * 9 + ky * 3 + kx][o + k];
#pragma unroll
                            for (int i = 0; i < TR; ++i)
                                // No pragma here: g++ makes vectors of this loop only while it still is one.
                                for (int j = 0; j < TW; ++j) sum.of[k][i][j] += left * right[i * SPAN * S + ky][j];
                        }
                }
            sums[e] = sum;
        }
        __syncthreads();
    }
    for (int e = 0, part = t; e < EACH; ++e, part += THREADS) {
        const int column = SPAN > 1 ? 0 : part % COLUMNS * TW, row = part / COLUMNS % ROWS * TR * SPAN;
        const int o = part / (COLUMNS * ROWS) % (BO / TO) * TO, n = part / (COLUMNS * ROWS * (BO / TO));
        if (n0 + n >= N) continue;
#pragma unroll
        for (int k = 0; k < TO; ++k) {
            const int channel = o0 + o + k;
            if (channel >= O) continue;
            const scalar_t m = FUSED ? mean[channel] : scalar_t(0), shift = FUSED ? bias[channel] : scalar_t(0);
            const scalar_t scale = FUSED ? 1 / sqrt(variance[channel] + eps) * weight[channel] : scalar_t(1);
#pragma unroll
            for (int i = 0; i < TR; ++i) {
                const int oy = tile_y + row + i * SPAN, ox = tile_x + column;
                const long long at = (((long long)(n0 + n) * O + channel) * OH + oy) * OW + ox;
                const auto store = [&](int j, int place) {
                    scalar_t z = sums[e].of[k][i][j];
                    if (FUSED) z = normalised(z, m, scale, shift);
                    if (FUSED == 2) z += residual[at + place];
                    y[at + place] = FUSED && z <= 0 ? scalar_t(0) : z;
                };
                if (SPAN > 1 ? OW == BW && oy + SPAN <= OH : oy < OH && ox + TW <= OW) {
                    for (int j = 0; j < TW; ++j) store(j, j);
                } else {
                    for (int j = 0; j < TW; ++j)
                        if (oy + j / BW < OH && ox + j % BW < OW) store(j, j / BW * OW + j % BW);
                }
            }
        }
    }
}

// The gradient of x with stride 2 and padding 1. Of the nine taps, 1, 2, 2 or 4 reach a pixel, as its row and column are even
// or odd: in each direction tap 1 reaches the even pixel 2a from a, taps 0 and 2 the odd one 2a + 1 from a + 1 and a. So
//
//   dx[n, c, 2a + p, 2b + q] = sum_o of w[o, c, ky, kx] dy[n, o, a + (ky == 0), b + (kx == 0)],  ky = 1 where p is 0, else 0, 2
//
// and kx likewise. A thread computes TO channels of TR x TW fours of pixels, p and q 0 or 1. Launch: as conv3x3 with BN = 1,
// for ceil(H / 2) x ceil(W / 2) places (a, b). FLOPs: 18 O a place and channel. Limit: arithmetic.
template <int BO, int BR, int BW, int TO, int TR, int TW>
__global__ void conv3x3_strided_gradient(const scalar_t* __restrict__ dy, const scalar_t* __restrict__ w,
                                         scalar_t* __restrict__ dx, int O, int OH, int OW, int C, int H, int W) {
    constexpr int BC = 32 / sizeof(scalar_t), LANES = TW == 1 ? 32 : 1, LINE = BW + 1, ROW = BO + (TW > 1 ? 0 : 4);
    constexpr int COLUMNS = BW / TW, ROWS = BR / TR, PARTS = BO / TO * ROWS * COLUMNS;
    constexpr int THREADS = TW == 1 ? PARTS : 1, EACH = PARTS / THREADS;
    __shared__ scalar_t dys[BC][(BR + 1) * LINE];
    __shared__ __align__(64) scalar_t ws[BC * 9][ROW];

    const int tiles_x = ((W + 1) / 2 + BW - 1) / BW, tiles_y = ((H + 1) / 2 + BR - 1) / BR;
    const int b0 = blockIdx.x % tiles_x * BW, a0 = blockIdx.x / tiles_x % tiles_y * BR, c0 = blockIdx.y * BO;
    const int t = threadIdx.x;
    const long long n = blockIdx.x / (tiles_x * tiles_y);

    struct Sums {
        scalar_t of[4][TO][TR][TW];
    } sums[EACH] = {};
    for (int o0 = 0; o0 < O; o0 += BC) {
        const int depth = min(BC, O - o0);
        for (int o = t / LANES; o < depth; o += THREADS / LANES)
            load_plane<LANES, BR + 1, LINE, 1, false, BW>(dys[o], dy + (n * O + o0 + o) * OH * OW, t % LANES, a0, b0, 0, OH, OW);
        load_weights<BC, BO, ROW, THREADS, TW == 1, true>(ws[0], w, o0, c0, depth, O, C);
        __syncthreads();
        for (int e = 0, part = t; e < EACH; ++e, part += THREADS) {
            const int column = part % COLUMNS * TW, row = part / COLUMNS % ROWS * TR, c = part / (COLUMNS * ROWS) * TO;
            Sums sum = sums[e];
            for (int o = 0; o < depth; ++o)
#pragma unroll
                for (int tap = 0; tap < 9; ++tap) {
                    const int ky = tap / 3, kx = tap % 3, kind = (1 - ky % 2) * 2 + 1 - kx % 2;
                    const scalar_t* from = &dys[o][(row + (ky == 0)) * LINE + column + (kx == 0)];
                    scalar_t right[TR][TW];
#pragma unroll
                    for (int i = 0; i < TR; ++i)
                        for (int j = 0; j < TW; ++j) right[i][j] = from[i * LINE + j];
#pragma unroll
                    for (int k = 0; k < TO; ++k) {
                        const scalar_t left = ws[o * 9 + 8 - tap][c + k];
#pragma unroll
                        for (int i = 0; i < TR; ++i)
                            for (int j = 0; j < TW; ++j) sum.of[kind][k][i][j] += left * right[i][j];
                    }
                }
            sums[e] = sum;
        }
        __syncthreads();
    }
    for (int e = 0, part = t; e < EACH; ++e, part += THREADS) {
        const int column = part % COLUMNS * TW, row = part / COLUMNS % ROWS * TR, c = part / (COLUMNS * ROWS) * TO;
#pragma unroll
        for (int kind = 0; kind < 4; ++kind)
#pragma unroll
            for (int k = 0; k < TO; ++k)
#pragma unroll
                for (int i = 0; i < TR; ++i) {
                    const int channel = c0 + c + k, y = 2 * (a0 + row + i) + kind / 2, first = 2 * (b0 + column) + kind % 2;
                    if (channel >= C || y >= H) continue;
                    scalar_t* to = dx + ((n * C + channel) * H + y) * W + first;
                    for (int j = 0; j < TW && first + 2 * j < W; ++j) to[2 * j] = sums[e].of[kind][k][i][j];
                }
    }
}

// The gradient of the weights:
//
//   dw[o, c, ky, kx] = sum_{n, oy, ox} dy[n, o, oy, ox] x[n, c, oy * S - pad_h + ky, ox * S - pad_w + kx]
//
// All images are cut into tiles of BR x BW pixels, and the tiles into as many chunks as the grid is deep. A block sums
// 16 x 16 pairs of channels over a chunk; a thread has all nine taps of TC x TO pairs, so that a pixel of x, which up to
// nine taps meet, is loaded once for TP pixels of a row. Then the chunks are summed in their order, as many as the shapes
// say, so the result does not depend on how many blocks run at once.
// Launch: grid (ceil(C / 16), ceil(O / 16), chunks), 256 / (TC * TO) threads. FLOPs: 18 C O a pixel of dy. Bytes: x and dy
// are read once for each 16 channels of the other. Limit: arithmetic.
template <int BR_OF_FLOATS, int BW, int TC, int TO, int TP, int S>
__global__ void conv3x3_weight(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                               scalar_t* __restrict__ parts, int N, int C, int H, int W, int O, int OH, int OW,
                               int pad_h, int pad_w) {
    constexpr int BR = BR_OF_FLOATS * 4 / sizeof(scalar_t), BC = 16, BO = 16, THREADS = BC / TC * (BO / TO);
    constexpr bool GPU = TO < 16;
    constexpr int LANES = GPU ? 32 : 1, HEIGHT = (BR - 1) * S + 3, WIDTH = (BW - 1) * S + 3;
    __shared__ scalar_t xs[BC][HEIGHT * WIDTH + (GPU ? 1 - HEIGHT * WIDTH % 2 : 0)];  // odd: lanes of other channels
    __shared__ __align__(64) scalar_t dys[BR][BW][BO + (GPU ? 1 : 0)];               // transposed: channels side by side

    const int tiles_x = (OW + BW - 1) / BW, tiles = tiles_x * ((OH + BR - 1) / BR);
    const int c0 = blockIdx.x * BC, o0 = blockIdx.y * BO, t = threadIdx.x, c = t % (BC / TC) * TC, o = t / (BC / TC) * TO;
    const int tiles_per_chunk = (N * tiles + gridDim.z - 1) / gridDim.z;
    const int begin = min(int(blockIdx.z) * tiles_per_chunk, N * tiles), end = min(begin + tiles_per_chunk, N * tiles);

    scalar_t sum[TC][9][TO] = {};
    for (int tile = begin; tile < end; ++tile) {
        const long long n = tile / tiles;
        const int tile_y = tile % tiles / tiles_x * BR, tile_x = tile % tiles_x * BW;
        for (int plane = t / LANES; plane < BC; plane += THREADS / LANES)
            load_plane<LANES, HEIGHT, WIDTH, 1, false, BW * S>(xs[plane], x + (n * C + c0 + plane) * H * W, t % LANES,
                                                               tile_y * S - pad_h, tile_x * S - pad_w, pad_w,
                                                               c0 + plane < C ? H : 0, W);
        constexpr int LENGTH = GPU ? 1 : BW;
        for (int q = t; q < BO * BR * BW / LENGTH; q += THREADS) {
            const int first = q * LENGTH % BW, r = q * LENGTH / BW, k = GPU ? r / BR : r % BO, row = GPU ? r % BR : r / BO;
            const int width = o0 + k < O && tile_y + row < OH ? OW - tile_x : 0;
            const scalar_t* from = dy + ((n * O + o0 + k) * OH + tile_y + row) * OW + tile_x;
            for (int j = first; j < first + LENGTH; ++j) dys[row][j][k] = j < width ? from[j] : scalar_t(0);
        }
        __syncthreads();
        for (int y = 0; y < (c0 + c < C ? BR : 0); ++y)
            for (int p0 = 0; p0 < BW; p0 += TP)
#pragma unroll
                for (int k = 0; k < TC; ++k) {
                    scalar_t left[3][(TP - 1) * S + 3];
#pragma unroll
                    for (int ky = 0; ky < 3; ++ky)
#pragma unroll
                        for (int j = 0; j < (TP - 1) * S + 3; ++j) left[ky][j] = xs[c + k][(y * S + ky) * WIDTH + p0 * S + j];
#pragma unroll
                    for (int p = 0; p < TP; ++p) {
                        scalar_t right[TO];
                        for (int j = 0; j < TO; ++j) right[j] = dys[y][p0 + p][o + j];
#pragma unroll
                        for (int tap = 0; tap < 9; ++tap)
                            for (int j = 0; j < TO; ++j) sum[k][tap][j] += left[tap / 3][p * S + tap % 3] * right[j];
                    }
                }
        __syncthreads();
    }
    // Lanes, or a vector's elements, go to neighbouring places: parts is chunks x 9 x O x C on a GPU, chunks x 9 x C x O on a
    // CPU. With a loop of its own for whole runs: g++ keeps the sums in registers only if they leave them as vectors.
#pragma unroll
    for (int k = 0; k < TC; ++k)
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) {
            const int channel = c0 + c + k, first = o0 + o, step = GPU ? C : 1;
            if (channel >= C) continue;
            scalar_t* to = parts + (blockIdx.z * 9ll + tap) * C * O + (GPU ? first * C + channel : channel * O + first);
            if (first + TO <= O) {
                for (int j = 0; j < TO; ++j) to[j * step] = sum[k][tap][j];
            } else {
                for (int j = 0; j < TO; ++j)
                    if (first + j < O) to[j * step] = sum[k][tap][j];
            }
        }
}

// dw[o, c, tap] = sum of parts over the chunks, in their order. Launch: RUN neighbours a thread, 1 on a GPU, 16 on a CPU.
template <int RUN>
__global__ void conv3x3_weight_sum(const scalar_t* __restrict__ parts, scalar_t* __restrict__ dw, int chunks, int C,
                                   int O) {
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * RUN, count = C * 9 * O, run = min(RUN, count - first);
    scalar_t total[RUN] = {};
    for (int chunk = 0; chunk < chunks; ++chunk)
        for (int j = 0; j < run; ++j) total[j] += parts[(long long)chunk * count + first + j];
    for (int i = first; i < first + run; ++i) {
        const int tap = i / (C * O), c = RUN == 1 ? i % C : i / O % C, o = RUN == 1 ? i / C % O : i % O;
        dw[(o * C + c) * 9 + tap] = total[i - first];
    }
}

// General matrix multiplication, batched:  C[b,m,n] = sum_k op(A)[b,m,k] * op(B)[b,k,n]
//
// Row-major matrices; C is M x N. The name says what is stored transposed: in gemm_nn, A is M x K and B is K x N; in
// gemm_nt, B is N x K; in gemm_tn, A is K x M. Matrix b of a batch begins b * stride elements after the first; a
// stride of 0 uses one matrix for the whole batch.
//
// Launch: grid (ceil(N / tile width), ceil(M / tile height), batch); a block computes one tile of C, of each matrix b =
// blockIdx.z, blockIdx.z + gridDim.z, ... It moves along k
// in steps: all threads copy a slice of A and of B into shared memory, then each multiplies out of it. An element of
// A is then read from global memory once per tile of C in its row instead of once per element of C.
//
// FLOPs: 2 M N K. Bytes, with tiles of m x n: about (1/m + 1/n) M N K elements read and M N written. Limit:
// arithmetic once tiles are large enough; for K as small as 16, the writing of C.
// Source: NVIDIA, CUDA C++ Programming Guide, "Shared Memory"; S. Boehm, "How to Optimize a CUDA Matmul Kernel".
#include "common.cuh"

// ---------------------------------------------------------------------------------------------------------------
// Readable: a tile of 16 x 16, a block of 16 x 16 threads, one element of C a thread.

template <bool A_TRANSPOSED, bool B_TRANSPOSED>
__global__ void gemm_tiled(const scalar_t* A, const scalar_t* B, scalar_t* C, int M, int N, int K, long long stride_a,
                           long long stride_b, long long stride_c, int batch) {
    constexpr int TILE = 16;
    __shared__ scalar_t As[TILE][TILE];  // [m][k]
    __shared__ scalar_t Bs[TILE][TILE];  // [k][n]
    const int m = blockIdx.y * TILE + threadIdx.y;
    const int n = blockIdx.x * TILE + threadIdx.x;
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        const scalar_t* a = A + b * stride_a;
        const scalar_t* bb = B + b * stride_b;
        scalar_t sum = 0;
        for (int k0 = 0; k0 < K; k0 += TILE) {
            const int ka = k0 + threadIdx.x, kb = k0 + threadIdx.y;
            As[threadIdx.y][threadIdx.x] =
                m < M && ka < K ? (A_TRANSPOSED ? a[(long long)ka * M + m] : a[(long long)m * K + ka]) : scalar_t(0);
            Bs[threadIdx.y][threadIdx.x] =
                kb < K && n < N ? (B_TRANSPOSED ? bb[(long long)n * K + kb] : bb[(long long)kb * N + n]) : scalar_t(0);
            __syncthreads();
            for (int k = 0; k < TILE; ++k) sum += As[threadIdx.y][k] * Bs[k][threadIdx.x];
            __syncthreads();
        }
        if (m < M && n < N) C[b * stride_c + (long long)m * N + n] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Fast: a tile of BM x BN, of which each thread computes TM x TN elements in registers, so that a value read from
// shared memory serves TM or TN multiplications instead of one. Zeros fill up the tiles at the edges. On a GPU a thread's
// elements are spread over the tile (STRIPED): its lanes then read neighbouring words. On a CPU they are neighbours, which
// fill vector registers. Gained, 512 x 512 matrices on a core of a CPU: 0.14 to 10 GFLOP/s, most of it by 8 times fewer
// threads that wait at each barrier.

// Copies the ROWS x COLUMNS elements that start at (row0, column0) of a matrix of height x width into shared memory, PITCH
// elements a row; transposed, so that element (r, c) goes to tile[c][r], where asked. A thread copies runs of RUN elements
// of a row, as vectors of 16 bytes where it can; consecutive threads copy consecutive runs.
struct alignas(16) gemm_vector {
    scalar_t v[16 / sizeof(scalar_t)];
};

template <int ROWS, int COLUMNS, int PITCH, int THREADS, int RUN, bool TRANSPOSE>
__device__ inline void gemm_load(scalar_t* __restrict__ tile, const scalar_t* __restrict__ matrix, int row0,
                                 int column0, int height, int width) {
    constexpr int RUNS = COLUMNS / RUN, LANES = RUN * sizeof(scalar_t) % 16 == 0 ? 16 / sizeof(scalar_t) : RUN;
    const bool aligned = RUN % LANES == 0 && RUN > 1 && width % LANES == 0;
    for (int q = threadIdx.x; q < ROWS * RUNS; q += THREADS) {
        const int r = q / RUNS, c = q % RUNS * RUN, column = column0 + c;
        const scalar_t* from = matrix + (long long)(row0 + r) * width + column;
        alignas(16) scalar_t value[RUN];
        if (aligned && column + RUN <= width && row0 + r < height) {
#pragma unroll
            for (int j = 0; j < RUN; j += LANES)
                *reinterpret_cast<gemm_vector*>(value + j) = *reinterpret_cast<const gemm_vector*>(from + j);
        } else {
#pragma unroll
            for (int j = 0; j < RUN; ++j) value[j] = row0 + r < height && column + j < width ? from[j] : scalar_t(0);
        }
#pragma unroll
        for (int j = 0; j < RUN; ++j) tile[TRANSPOSE ? (c + j) * PITCH + r : r * PITCH + c + j] = value[j];
    }
}

template <int BM, int BN, int BK_OF_FLOATS, int TM, int TN, bool STRIPED, bool A_TRANSPOSED, bool B_TRANSPOSED>
__global__ void gemm_blocked(const scalar_t* A, const scalar_t* B, scalar_t* C, int M, int N, int K, long long stride_a,
                             long long stride_b, long long stride_c, int batch) {
    constexpr int BK = BK_OF_FLOATS * 4 / sizeof(scalar_t), MS = BM / TM, NS = BN / TN, THREADS = MS * NS, PAD = STRIPED ? 1 : 0;
    constexpr int RUN_M = STRIPED ? 1 : BM < 4 * THREADS ? 4 : BM / THREADS, RUN_K = STRIPED ? 1 : 4;
    constexpr int RUN_N = STRIPED ? 1 : BN < 4 * THREADS ? 4 : BN / THREADS;
    __shared__ __align__(16) scalar_t As[BK * (BM + PAD)];  // [k][m]
    __shared__ __align__(16) scalar_t Bs[BK * (BN + PAD)];  // [k][n]
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    constexpr int M_STEP = STRIPED ? MS : 1, N_STEP = STRIPED ? NS : 1;  // between the elements of a thread
    const int thread_m = threadIdx.x / NS * (STRIPED ? 1 : TM), thread_n = threadIdx.x % NS * (STRIPED ? 1 : TN);
    for (long long b = blockIdx.z; b < batch; b += gridDim.z) {
        const scalar_t* a = A + b * stride_a;
        const scalar_t* bb = B + b * stride_b;
        scalar_t sum[TM][TN] = {};
        for (int k0 = 0; k0 < K; k0 += BK) {
            if (A_TRANSPOSED) gemm_load<BK, BM, BM + PAD, THREADS, RUN_M, false>(As, a, k0, m0, K, M);
            else gemm_load<BM, BK, BM + PAD, THREADS, RUN_K, true>(As, a, m0, k0, M, K);
            if (B_TRANSPOSED) gemm_load<BN, BK, BN + PAD, THREADS, RUN_K, true>(Bs, bb, n0, k0, N, K);
            else gemm_load<BK, BN, BN + PAD, THREADS, RUN_N, false>(Bs, bb, k0, n0, K, N);
            __syncthreads();
            const int depth = min(BK, K - k0);
            for (int k = 0; k < depth; ++k) {
                scalar_t right[TN];
#pragma unroll
                for (int j = 0; j < TN; ++j) right[j] = Bs[k * (BN + PAD) + thread_n + j * N_STEP];
#pragma unroll
                for (int i = 0; i < TM; ++i) {
                    const scalar_t left = As[k * (BM + PAD) + thread_m + i * M_STEP];
#pragma unroll
                    for (int j = 0; j < TN; ++j) sum[i][j] += left * right[j];
                }
            }
            __syncthreads();
        }
        scalar_t* c = C + b * stride_c;
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
            for (int j = 0; j < TN; ++j) {
                const int m = m0 + thread_m + i * M_STEP, n = n0 + thread_n + j * N_STEP;
                if (m < M && n < N) c[(long long)m * N + n] = sum[i][j];
            }
    }
}

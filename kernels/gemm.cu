// General matrix multiplication:  C[m, n] = sum_k op(A)[m, k] * op(B)[k, n]
//
// Row-major matrices: C is M x N; A is M x K, or K x M where A_TRANSPOSED; B is K x N, or N x K where B_TRANSPOSED. Where K is
// long and C small, there would be few blocks: so K is cut into gridDim.z chunks of `depth`, the products of chunk z go to
// C + z * M * N, and column_sums adds them up.
// A block computes a tile of BM x BN of C. It moves along k in steps of BK: all threads copy a slice of A and of B into shared
// memory, then each multiplies out of it. An element of A is then read from memory once per tile of C in its row instead of
// once per element. A thread has TM x TN neighbouring elements of C in registers, so that a value read from shared memory
// serves TM or TN multiply-adds. Zeros fill up the tiles at the edges.
//
// Launch: grid (ceil(N / BN), ceil(M / BM), chunks), BM / TM * BN / TN threads. FLOPs: 2 M N K. Bytes: about (1 / BM + 1 / BN)
// M N K elements read and M N written. Limit: arithmetic; for K as small as 16, the writing of C.
// Source: NVIDIA, CUDA C++ Programming Guide, "Shared Memory"; S. Boehm, "How to Optimize a CUDA Matmul Kernel".
#include "common.cuh"

// Copies ROWS x COLUMNS elements from (row0, column0) on of a matrix with rows of `width` into tile, 0 behind the last row and
// column; transposed where asked, so that element (r, c) goes to tile[c][r]. A thread takes RUN neighbours of a row at a time.
template <bool TRANSPOSE, int ROWS, int COLUMNS, int RUN, int HEIGHT, int PITCH>
__device__ inline void load_slice(scalar_t (&tile)[HEIGHT][PITCH], const scalar_t* __restrict__ matrix, int width, int row0,
                                  int rows, int column0, int columns) {
    for (int q = threadIdx.x; q < ROWS * COLUMNS / RUN; q += blockDim.x) {
        const int r = q / (COLUMNS / RUN), c = q % (COLUMNS / RUN) * RUN, row = row0 + r, column = column0 + c;
        const scalar_t* from = matrix + (long long)row * width + column;
        Run<RUN> value = {};
        if (row < rows && width % RUN == 0 && column + RUN <= columns) value = load<RUN>(from);
        else
            for (int j = 0; j < RUN; ++j)
                if (row < rows && column + j < columns) value.v[j] = from[j];
        if (!TRANSPOSE) store(&tile[r][c], value);
        else
            for (int j = 0; j < RUN; ++j) tile[c + j][r] = value.v[j];
    }
}

template <int BM, int BN, int BK, int TM, int TN, bool A_TRANSPOSED, bool B_TRANSPOSED>
__global__ void gemm_blocked(const scalar_t* __restrict__ A, const scalar_t* __restrict__ B, scalar_t* __restrict__ C, int M,
                             int N, int K, int depth) {
    // Slices of A lie as A does; those of B with columns side by side, as a thread wants them. + 4: other banks.
    __shared__ __align__(16) scalar_t As[A_TRANSPOSED ? BK : BM][A_TRANSPOSED ? BM : BK + 4], Bs[BK][BN + 4];
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, begin = blockIdx.z * depth, end = min(begin + depth, K);
    const int thread_m = threadIdx.x / (BN / TN) * TM, thread_n = threadIdx.x % (BN / TN) * TN;
    Run<TN> sum[TM] = {};
    for (int k0 = begin; k0 < end; k0 += BK) {
        if (A_TRANSPOSED) load_slice<false, BK, BM, run_of(BM, TN)>(As, A, M, k0, end, m0, M);
        else load_slice<false, BM, BK, run_of(BK, TN)>(As, A, K, m0, M, k0, end);
        if (B_TRANSPOSED) load_slice<true, BN, BK, 4>(Bs, B, K, n0, N, k0, end);
        else load_slice<false, BK, BN, TN>(Bs, B, N, k0, end, n0, N);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < BK; k += 4)
#pragma unroll
            for (int i = k; i < k + 4; ++i) {
                const Run<TN> right = load<TN>(&Bs[i][thread_n]);
#pragma unroll
                for (int p = 0; p < TM; ++p) {
                    const scalar_t left = A_TRANSPOSED ? As[i][thread_m + p] : As[thread_m + p][i];
                    for (int j = 0; j < TN; ++j) sum[p].v[j] += left * right.v[j];
                }
            }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < TM; ++p) {
        const int m = m0 + thread_m + p, n = n0 + thread_n;
        if (m >= M) continue;
        scalar_t* to = C + (blockIdx.z * (long long)M + m) * N + n;
        if (N % TN == 0 && n < N) store(to, sum[p]);
        else
            for (int j = 0; j < TN && n + j < N; ++j) to[j] = sum[p].v[j];
    }
}

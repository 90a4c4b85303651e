// General matrix multiplication:  C[m, n] = sum_k op(A)[m, k] * op(B)[k, n]
//
// Row-major matrices: C is M x N; A is M x K, or K x M where TRANSPOSED; B is K x N. Where C is small and K long, K is cut into
// gridDim.z chunks of `depth`: the products of chunk z go to C + z * M * N, and column_sums adds them up.
// A block computes a tile of BM x BN of C. It moves along k in steps of BK: all threads copy a slice of A and of B into shared
// memory, then each multiplies out of it. An element of A is then read from memory once per tile of C in its row instead of
// once per element. A part is TM rows, BM / TM apart, and TN neighbouring columns of C: a value from shared memory serves TM or
// TN multiply-adds. A thread keeps the sums of every THREADS-th part, in registers if that is one. Zeros fill up the edges.
// Launch: grid (ceil(N / BN), ceil(M / BM), chunks), THREADS threads. FLOPs: 2 M N K. Bytes: about (1 / BM + 1 / BN) M N K
// elements read and M N written. Limit: arithmetic; for K as small as 16, the writing of C.
// Source: NVIDIA, CUDA C++ Programming Guide, "Shared Memory"; S. Boehm, "How to Optimize a CUDA Matmul Kernel".
#include "common.cuh"

// y[c, r] = x[r, c], an element of y a thread.
extern "C" __global__ void transpose(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int rows, int columns) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * columns) y[i] = x[i % rows * columns + i / rows];
}

// Copies ROWS x COLUMNS elements from (row0, column0) on of a matrix with rows of `width` into tile, 0 behind the last row and
// column. A thread takes RUN neighbours of a row at a time.
template <int ROWS, int COLUMNS, int RUN, int HEIGHT, int PITCH>
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
        store(&tile[r][c], value);
    }
}

template <int BM, int BN, int BK, int TM, int TN, int THREADS, bool TRANSPOSED>
__global__ void gemm_blocked(const scalar_t* __restrict__ A, const scalar_t* __restrict__ B, scalar_t* __restrict__ C, int M,
                             int N, int K, int depth) {
    __shared__ __align__(64) scalar_t As[TRANSPOSED ? BK : BM][TRANSPOSED ? BM : BK + 4], Bs[BK][BN];  // + 4: other banks
    constexpr int PARTS = BM / TM * (BN / TN);
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, begin = blockIdx.z * depth, end = min(begin + depth, K);
    struct { Run<TN> of[TM]; } kept[PARTS / THREADS] = {};
    for (int k0 = begin; k0 < end; k0 += BK) {
        if (TRANSPOSED) load_slice<BK, BM, run_of(BM, TN)>(As, A, M, k0, end, m0, M);
        else load_slice<BM, BK, run_of(BK, TN)>(As, A, K, m0, M, k0, end);
        load_slice<BK, BN, TN>(Bs, B, N, k0, end, n0, N);
        __syncthreads();
        for (int i = 0; i < PARTS / THREADS; ++i) {
            const int part = threadIdx.x + i * THREADS, m = part / (BN / TN), n = part % (BN / TN) * TN;
            auto sum = kept[i];
#pragma unroll 1
            for (int k = 0; k < BK; k += 4)
#pragma unroll
                for (int l = k; l < k + 4; ++l) {
                    const Run<TN> right = load<TN>(&Bs[l][n]);
#pragma unroll
                    for (int p = 0; p < TM; ++p) {
                        const scalar_t left = TRANSPOSED ? As[l][m + p * (BM / TM)] : As[m + p * (BM / TM)][l];
                        for (int j = 0; j < TN; ++j) sum.of[p].v[j] += left * right.v[j];
                    }
                }
            kept[i] = sum;
        }
        __syncthreads();
    }
    for (int part = threadIdx.x, i = 0; i < PARTS / THREADS; part += THREADS, ++i)
#pragma unroll
        for (int p = 0; p < TM; ++p) {
            const int m = m0 + part / (BN / TN) + p * (BM / TM), n = n0 + part % (BN / TN) * TN;
            if (m >= M) continue;
            scalar_t* to = C + (blockIdx.z * (long long)M + m) * N + n;
            if (N % TN == 0 && n < N) store(to, kept[i].of[p]);
            else
                for (int j = 0; j < TN && n + j < N; ++j) to[j] = kept[i].of[p].v[j];
        }
}

// Five steps from three nested loops to a matrix product that is as fast as the one in kernels/gemm.cu:
//
//   C[m, n] = sum_k A[m, k] * B[k, n]       row-major float, A is M x K, B is K x N, C is M x N, of any size
//
// FLOPs: 2 M N K. What the steps change is how often the numbers are fetched, and from where; see kernels/README.md.
// Source: S. Boehm, "How to Optimize a CUDA Matmul Kernel for cuBLAS-like Performance", 2022.

// ---------------------------------------------------------------------------------------------------------------
// 1. Naive. One element of C a thread; neighbours in x are neighbours in a column. Two loads for one multiplication,
// and at each k a warp reads from 16 rows of A: 16 memory transactions, each of which brings far more than is used.
// Launch: grid (ceil(M / 16), ceil(N / 16)), block (16, 16).

extern "C" __global__ void gemm_1_naive(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ C,
                                        int M, int N, int K) {
    const int m = blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y * blockDim.y + threadIdx.y;
    if (m >= M || n >= N) return;
    float sum = 0;
    for (int k = 0; k < K; ++k) sum += A[(long long)m * K + k] * B[(long long)k * N + n];
    C[(long long)m * N + n] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 2. Coalesced. The same, with x and y exchanged: neighbours in x are neighbours in a row of B and C. At each k a warp
// now reads 16 neighbours of B, in one transaction, and two elements of A, which its threads share.
// Launch: grid (ceil(N / 16), ceil(M / 16)), block (16, 16).

extern "C" __global__ void gemm_2_coalesced(const float* __restrict__ A, const float* __restrict__ B,
                                            float* __restrict__ C, int M, int N, int K) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y * blockDim.y + threadIdx.y;
    if (m >= M || n >= N) return;
    float sum = 0;
    for (int k = 0; k < K; ++k) sum += A[(long long)m * K + k] * B[(long long)k * N + n];
    C[(long long)m * N + n] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 3. Shared-memory tile. A block's 256 threads need the same 16 rows of A and 16 columns of B: they fetch a tile of
// each together, one element a thread, and read it 16 times from shared memory. Traffic to global memory: a sixteenth.
// Launch: as 2.

extern "C" __global__ void gemm_3_shared_tile(const float* __restrict__ A, const float* __restrict__ B,
                                              float* __restrict__ C, int M, int N, int K) {
    constexpr int TILE = 16;
    __shared__ float As[TILE][TILE], Bs[TILE][TILE];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int n = blockIdx.x * TILE + tx, m = blockIdx.y * TILE + ty;
    float sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        As[ty][tx] = m < M && k0 + tx < K ? A[(long long)m * K + k0 + tx] : 0;
        Bs[ty][tx] = k0 + ty < K && n < N ? B[(long long)(k0 + ty) * N + n] : 0;
        __syncthreads();  // the tile is whole
        for (int k = 0; k < TILE; ++k) sum += As[ty][k] * Bs[k][tx];
        __syncthreads();  // it has been used up
    }
    if (m < M && n < N) C[(long long)m * N + n] = sum;
}

// ---------------------------------------------------------------------------------------------------------------
// 4. Register blocks. Shared memory is now what limits: two reads for one multiplication. So a thread computes 8 x 16
// elements: 8 + 16 reads serve 128 multiplications. The tile of a block grows to 64 x 64, its threads shrink to 32.
// Launch: grid (ceil(N / 64), ceil(M / 64)), block (32).

constexpr int BM = 64, BN = 64, BK = 32, TM = 8, TN = 16, THREADS = (BM / TM) * (BN / TN);

// sum += the part of this thread, whose first row and column are m and n, of the product of the two tiles.
__device__ inline void multiply_tiles(const float (&As)[BK][BM], const float (&Bs)[BK][BN], float (&sum)[TM][TN], int m,
                                      int n) {
    for (int k = 0; k < BK; ++k) {
        float right[TN];
#pragma unroll
        for (int j = 0; j < TN; ++j) right[j] = Bs[k][n + j];
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            const float left = As[k][m + i];
#pragma unroll
            for (int j = 0; j < TN; ++j) sum[i][j] += left * right[j];
        }
    }
}

__device__ inline void store_block(float* __restrict__ C, const float (&sum)[TM][TN], int m, int n, int M, int N) {
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j)
            if (m + i < M && n + j < N) C[(long long)(m + i) * N + n + j] = sum[i][j];
}

extern "C" __global__ void gemm_4_register_blocks(const float* __restrict__ A, const float* __restrict__ B,
                                                  float* __restrict__ C, int M, int N, int K) {
    __shared__ __align__(16) float As[BK][BM];  // transposed: what a thread reads lies side by side
    __shared__ __align__(16) float Bs[BK][BN];
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int m = threadIdx.x / (BN / TN) * TM, n = threadIdx.x % (BN / TN) * TN;
    float sum[TM][TN] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        for (int i = threadIdx.x; i < BM * BK; i += THREADS) {
            const int row = m0 + i / BK, column = k0 + i % BK;
            As[i % BK][i / BK] = row < M && column < K ? A[(long long)row * K + column] : 0;
        }
        for (int i = threadIdx.x; i < BK * BN; i += THREADS) {
            const int row = k0 + i / BN, column = n0 + i % BN;
            Bs[i / BN][i % BN] = row < K && column < N ? B[(long long)row * N + column] : 0;
        }
        __syncthreads();
        multiply_tiles(As, Bs, sum, m, n);
        __syncthreads();
    }
    store_block(C, sum, m0 + m, n0 + n, M, N);
}

// ---------------------------------------------------------------------------------------------------------------
// 5. Vector loads. The same, but the tiles are fetched four elements at a time: a quarter of the load instructions,
// and of the tests for the matrix's edge. Where a row's length is no multiple of 4, one by one as before.
// Launch: as 4.

// Elements column .. column + 3 of a row of a matrix of `height` rows and `width` columns; 0 outside.
__device__ inline float4 load_four(const float* __restrict__ matrix, int row, int column, int height, int width) {
    const float* from = matrix + (long long)row * width + column;
    if (row < height && column + 3 < width && width % 4 == 0) return *reinterpret_cast<const float4*>(from);
    float v[4];
    for (int j = 0; j < 4; ++j) v[j] = row < height && column + j < width ? from[j] : 0;
    return make_float4(v[0], v[1], v[2], v[3]);
}

extern "C" __global__ void gemm_5_vector_loads(const float* __restrict__ A, const float* __restrict__ B,
                                               float* __restrict__ C, int M, int N, int K) {
    __shared__ __align__(16) float As[BK][BM];
    __shared__ __align__(16) float Bs[BK][BN];
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int m = threadIdx.x / (BN / TN) * TM, n = threadIdx.x % (BN / TN) * TN;
    float sum[TM][TN] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        for (int i = threadIdx.x * 4; i < BM * BK; i += THREADS * 4) {
            const float4 v = load_four(A, m0 + i / BK, k0 + i % BK, M, K);
            float* to = &As[i % BK][i / BK];
            to[0] = v.x, to[BM] = v.y, to[2 * BM] = v.z, to[3 * BM] = v.w;
        }
        for (int i = threadIdx.x * 4; i < BK * BN; i += THREADS * 4)
            *reinterpret_cast<float4*>(&Bs[i / BN][i % BN]) = load_four(B, k0 + i / BN, n0 + i % BN, K, N);
        __syncthreads();
        multiply_tiles(As, Bs, sum, m, n);
        __syncthreads();
    }
    store_block(C, sum, m0 + m, n0 + n, M, N);
}

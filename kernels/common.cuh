// What several kernels share. scalar_t is set when compiling: float to train, double for gradient checks.

// A list of up to 64 arrays as one argument. The addresses travel with the launch, as a number does: nothing has to be
// copied to the device before, and nothing of it can change until the launch runs.
template <class T> struct Pointers {
    using pointers_to = T;
    T* at[64];
};
struct Sizes {
    long long at[64];
};

// x after BatchNorm. An explicit fused multiply-add: wherever it is computed again, the very same bits.
__device__ inline scalar_t normalised(scalar_t x, scalar_t mean, scalar_t scale, scalar_t shift) {
    return fma(x - mean, scale, shift);
}

// The sum of v over the 32 lanes of a warp, in lane 0: a tree of five steps, each lane adding the value of the lane
// `distance` above it.
__device__ inline scalar_t warp_sum(scalar_t v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_down_sync(0xffffffffu, v, distance);
    return v;
}

// The sum of v over a one-dimensional block, in every thread. blockDim.x must be a multiple of 32, or 1: on a CPU a block of
// one thread spares the barriers. The order of the additions is fixed: the tree inside each warp, then the warps from first
// to last.
__device__ inline scalar_t block_sum(scalar_t v) {
    if (blockDim.x == 1) return v;
    __shared__ scalar_t warp_sums[32];
    v = warp_sum(v);
    __syncthreads();  // a sum before this one may still be being read
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    scalar_t total = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) total += warp_sums[warp];
    return total;
}

// Calls body(i, n) for runs of n neighbours i .. i + n - 1 that make up the elements of `planes` planes of P elements,
// plane k of which begins at first + k * stride. A thread takes every blockDim.x-th run. On a GPU RUN is 1, so that
// neighbouring threads take neighbouring elements ("striped", in the words of NVIDIA's CUB); on a CPU it is many, which
// fill vector registers ("blocked"). The body is inlined twice: for whole runs n is the constant RUN.
template <int RUN, class Body>
__device__ inline void for_each_run(int planes, int P, long long first, long long stride, Body body) {
    const int runs = (P + RUN - 1) / RUN;
    for (int r = threadIdx.x; r < planes * runs; r += blockDim.x) {
        const int p = r % runs * RUN;
        const long long i = first + r / runs * stride + p;
        if (p + RUN <= P) body(i, RUN);
        else body(i, P - p);
    }
}

// The sum over the block of the RUN partial sums of each thread, in every thread.
template <int RUN> __device__ inline scalar_t block_sum(const scalar_t (&sums)[RUN]) {
    scalar_t sum = 0;
    for (int j = 0; j < RUN; ++j) sum += sums[j];
    return block_sum(sum);
}

// What several kernels share. scalar_t is set when compiling: float to train, double for gradient checks.
// A list of up to 64 arrays as one argument: the addresses travel with the launch, as a number does.
template <class T> struct Pointers {
    using pointers_to = T;
    T* at[64];
};
struct Sizes { long long at[64]; };

// Channels lie side by side: arrays are N x H x W x C. RUN neighbours, a power of two, are read and written together; four
// floats are the widest load of a GPU's thread.
template <int RUN> struct alignas(RUN * sizeof(scalar_t) < 16 ? RUN * sizeof(scalar_t) : 16) Run { scalar_t v[RUN]; };
template <int RUN> __device__ inline Run<RUN> load(const scalar_t* from) { return *reinterpret_cast<const Run<RUN>*>(from); }
template <int RUN> __device__ inline void store(scalar_t* to, Run<RUN> run) { *reinterpret_cast<Run<RUN>*>(to) = run; }
template <int RUN> __device__ inline void add_to(Run<RUN>& sum, Run<RUN> more) {
    for (int j = 0; j < RUN; ++j) sum.v[j] += more.v[j];
}

// The longest run, of at most `most`, that whole runs of make up n neighbours.
__device__ constexpr int run_of(int n, int most) { return n % most == 0 ? most : run_of(n, most / 2); }

// The windows of K pixels, `stride` apart, `count` in all, that hold place i: those with o * stride <= i < o * stride + K.
struct Range { int begin, end; };
__device__ inline Range windows_of(int i, int K, int stride, int count) {
    return {i < K ? 0 : (i - K) / stride + 1, min(i / stride + 1, count)};
}

// Fills tile with the pixels of an image of H x W x C from (y0, x0) on, of their channels CHANNELS; 0 outside of the image.
// Neighbouring threads take neighbouring runs of RUN channels.
template <int CHANNELS, int RUN, int HEIGHT, int WIDTH, int PITCH>
__device__ inline void load_tile(scalar_t (&tile)[HEIGHT][WIDTH][PITCH], const scalar_t* __restrict__ image, int y0, int x0,
                                 int H, int W, int C) {
    constexpr int RUNS = CHANNELS / RUN;
    for (int q = threadIdx.x; q < HEIGHT * WIDTH * RUNS; q += blockDim.x) {
        const int c = q % RUNS * RUN, column = q / RUNS % WIDTH, row = q / RUNS / WIDTH, y = y0 + row, x = x0 + column;
        const bool inside = y >= 0 && y < H && x >= 0 && x < W;
        store(&tile[row][column][c], inside ? load<RUN>(image + ((long long)y * W + x) * C + c) : Run<RUN>{});
    }
}

// x after BatchNorm. An explicit fused multiply-add: wherever it is computed again, the very same bits.
__device__ inline scalar_t normalised(scalar_t x, scalar_t mean, scalar_t scale, scalar_t shift) {
    return fma(x - mean, scale, shift);
}

// The sum of v over the 32 lanes of a warp, in lane 0: a tree, each lane adding the value of the lane `distance` above it.
__device__ inline scalar_t warp_sum(scalar_t v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_down_sync(0xffffffffu, v, distance);
    return v;
}

// The sum of v over a one-dimensional block of whole warps, in every thread, in a fixed order: the tree, then warp by warp.
__device__ inline scalar_t block_sum(scalar_t v) {
    __shared__ scalar_t warp_sums[32];
    v = warp_sum(v);
    __syncthreads();  // a sum before this one may still be being read
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    scalar_t total = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) total += warp_sums[warp];
    return total;
}

// Sums of columns. A block's share of an M x C matrix: columns from c0 on, and some rows from `begin` on. It is cut into
// parts, each RUN neighbouring columns, which RUN divides, and every `split`-th row; a thread takes every blockDim.x-th part.
// So neighbouring threads read neighbouring columns, then neighbouring rows.
template <int RUN> struct Strip {
    static constexpr int MOST = 256;  // at least as many as columns, and as blockDim.x * RUN
    int C, c0, columns, split;
    long long begin, end;

    __device__ Strip(long long M, int C, int most_columns, long long begin, long long rows)
        : C(C), c0(blockIdx.x * most_columns), columns(min(most_columns, C - c0)),
          split(max(int(blockDim.x) * RUN / columns, 1)), begin(begin), end(min(begin + rows, M)) {}

    // Calls f(m, i, c) for each element: its row, its place in the matrix, and its column of the strip.
    template <class F> __device__ void each(F f) const {
        for (int part = threadIdx.x; part < columns / RUN * split; part += blockDim.x) {
            const int c = part * RUN % columns;
            for (long long m = begin + part * RUN / columns; m < end; m += split)
                for (int j = 0; j < RUN; ++j) f(m, m * C + c0 + c + j, c + j);
        }
    }

    // Adds up terms(m, i, c), a Run<K>, over the rows: sums[k][c] is the k-th sum of column c, in a fixed order. Each part
    // leaves its sums in shared memory; then the number of rows there is halved, as a tree, until one is left.
    template <int K, class F> __device__ void sum(scalar_t (&sums)[K][MOST], F terms) const {
        for (int part = threadIdx.x; part < columns / RUN * split; part += blockDim.x) {
            const int c = part * RUN % columns;
            scalar_t total[K][RUN] = {};
            for (long long m = begin + part * RUN / columns; m < end; m += split)
                for (int j = 0; j < RUN; ++j) {
                    const Run<K> term = terms(m, m * C + c0 + c + j, c + j);
                    for (int k = 0; k < K; ++k) total[k][j] += term.v[k];
                }
            for (int k = 0; k < K; ++k)
                for (int j = 0; j < RUN; ++j) sums[k][part * RUN + j] = total[k][j];
        }
        for (int rows = split, half; rows > 1; rows = half) {
            half = (rows + 1) / 2;
            __syncthreads();
            for (int i = threadIdx.x; i < (rows - half) * columns; i += blockDim.x)
                for (int k = 0; k < K; ++k) sums[k][i] += sums[k][i + half * columns];
        }
        __syncthreads();
    }
};

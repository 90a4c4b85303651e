// Solutions of examples/exercises.cu: spoilers. tests/test_exercises.py also breaks them, to see that it is noticed.

extern "C" __global__ void leaky_relu(const float* x, float* y, float slope, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] > 0 ? x[i] : slope * x[i];
}

extern "C" __global__ void add_strided(const float* a, const float* b, float* c, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) c[i] = a[i] + b[i];
}

extern "C" __global__ void adam_step(float* w, const float* g, float* m, float* v, float lr, float beta1, float beta2,
                                     float eps, int step, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    const float mean = m[i] / (1 - powf(beta1, step)), square = v[i] / (1 - powf(beta2, step));
    w[i] -= lr * mean / (sqrtf(square) + eps);
}

extern "C" __global__ void max_pool2x2_backward(const float* x, const float* dy, float* dx, int planes, int H, int W) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= planes * H * W) return;
    const int column = i % W, row = i / W % H, plane = i / W / H;
    const float* window = x + (plane * H + row / 2 * 2) * W + column / 2 * 2;
    int best = 0;
    for (int k = 1; k < 4; ++k)
        if (window[k / 2 * W + k % 2] > window[best / 2 * W + best % 2]) best = k;
    const bool mine = row % 2 == best / 2 && column % 2 == best % 2;
    dx[i] = mine ? dy[(plane * (H / 2) + row / 2) * (W / 2) + column / 2] : 0;
}

__device__ inline unsigned long long splitmix64(unsigned long long state) {
    state += 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    return state ^ (state >> 31);
}
__device__ inline float dice(unsigned long long seed, int i) {
    return float(splitmix64(splitmix64(seed) + i) >> 40) / 16777216.0f;
}
extern "C" __global__ void dropout(const float* x, float* y, float p, unsigned long long seed, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = dice(seed, i) < p ? 0 : x[i] / (1 - p);
}

extern "C" __global__ void im2col_dilated(const float* x, float* columns, int H, int W, int K, int OH, int OW,
                                          int dilation) {
    const int kx = blockIdx.x % K, ky = blockIdx.x / K % K, c = blockIdx.x / K / K;
    const int p = blockIdx.y * blockDim.x + threadIdx.x, oy = p / OW, ox = p % OW;
    if (p < OH * OW) columns[blockIdx.x * OH * OW + p] = x[(c * H + oy + ky * dilation) * W + ox + kx * dilation];
}

extern "C" __global__ void block_max(const float* x, float* largest, int n) {
    __shared__ float of_warp[8];
    float m = -INFINITY;
    for (int i = threadIdx.x; i < n; i += blockDim.x) m = max(m, x[i]);
    for (int distance = 16; distance > 0; distance /= 2) m = max(m, __shfl_down_sync(0xffffffffu, m, distance));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = m;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < 8; ++warp) m = max(m, of_warp[warp]);
    *largest = m;
}

extern "C" __global__ void log_softmax(const float* z, float* y, int N, int C) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    float largest = z[n * C], sum = 0;
    for (int c = 1; c < C; ++c) largest = max(largest, z[n * C + c]);
    for (int c = 0; c < C; ++c) sum += expf(z[n * C + c] - largest);
    for (int c = 0; c < C; ++c) y[n * C + c] = z[n * C + c] - largest - logf(sum);
}

__device__ float sum_of_block(float v) {
    __shared__ float part[128];
    __syncthreads();
    part[threadIdx.x] = v;
    __syncthreads();
    float sum = 0;
    for (int t = 0; t < 128; ++t) sum += part[t];
    return sum;
}
extern "C" __global__ void layer_norm(const float* x, float* y, int P, float eps) {
    const float* row = x + blockIdx.x * P;
    float sum = 0, squares = 0;
    for (int p = threadIdx.x; p < P; p += 128) sum += row[p];
    const float mean = sum_of_block(sum) / P;
    for (int p = threadIdx.x; p < P; p += 128) squares += (row[p] - mean) * (row[p] - mean);
    const float deviation = sqrtf(sum_of_block(squares) / P + eps);
    for (int p = threadIdx.x; p < P; p += 128) y[blockIdx.x * P + p] = (row[p] - mean) / deviation;
}

extern "C" __global__ void transpose(const float* x, float* y, int H, int W) {
    __shared__ float tile[32][33];  // 33: a column of it lies in 32 different banks
    const int i0 = blockIdx.y * 32, j0 = blockIdx.x * 32, tx = threadIdx.x, ty = threadIdx.y;
    for (int r = ty; r < 32; r += 8)
        if (i0 + r < H && j0 + tx < W) tile[r][tx] = x[(i0 + r) * W + j0 + tx];
    __syncthreads();
    for (int r = ty; r < 32; r += 8)
        if (j0 + r < W && i0 + tx < H) y[(j0 + r) * H + i0 + tx] = tile[tx][r];
}

extern "C" __global__ void depthwise3x3(const float* x, const float* w, float* y, int H, int W) {
    __shared__ float tile[10][34];
    const int c = blockIdx.z, i0 = blockIdx.y * 8, j0 = blockIdx.x * 32;
    for (int k = threadIdx.y * 32 + threadIdx.x; k < 10 * 34; k += 256) {
        const int i = i0 + k / 34 - 1, j = j0 + k % 34 - 1;
        tile[k / 34][k % 34] = i >= 0 && i < H && j >= 0 && j < W ? x[(c * H + i) * W + j] : 0;
    }
    __syncthreads();
    const int i = i0 + threadIdx.y, j = j0 + threadIdx.x;
    if (i >= H || j >= W) return;
    float sum = 0;
    for (int ky = 0; ky < 3; ++ky)
        for (int kx = 0; kx < 3; ++kx) sum += w[(c * 3 + ky) * 3 + kx] * tile[threadIdx.y + ky][threadIdx.x + kx];
    y[(c * H + i) * W + j] = sum;
}

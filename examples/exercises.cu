// The exercises of kernels/README.md, one for each kernel there. Copy this file, write the bodies, and check them:
//
//   cp examples/exercises.cu mine.cu
//   python examples/exercises.py mine.cu
//
// Each launch is given: grid, block and arguments are those of the comment above a kernel.

// 1. y[i] = x[i] where it is positive, else slope * x[i]; NaN stays NaN. A thread an element: n is 1000, and the grid
// has 4 blocks of 256. (kernels/relu.cu)
extern "C" __global__ void leaky_relu(const float* x, float* y, float slope, int n) {
}

// 2. c = a + b with any grid: n is 1000, but there are only 2 blocks of 32 threads. (kernels/add.cu, and the loop of
// kernels/sgd.cu)
extern "C" __global__ void add_strided(const float* a, const float* b, float* c, int n) {
}

// 3. One step of Adam, as torch.optim.Adam's without weight decay, in place; `step` counts from 1. A thread an element.
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   w = w - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)                          (kernels/sgd.cu)
extern "C" __global__ void adam_step(float* w, const float* g, float* m, float* v, float lr, float beta1, float beta2,
                                     float eps, int step, int n) {
}

// 4. The gradient of max pooling with 2 x 2 windows and stride 2: dy goes to the largest pixel of its window, the first
// of equal ones, and 0 to the others. x and dx are N x H x W x C, H and W even; a thread an element of dx, so that no two
// threads write to one place. (kernels/avgpool.cu)
extern "C" __global__ void max_pool2x2_backward(const float* x, const float* dy, float* dx, int N, int H, int W, int C) {
}

// 5. Dropout: y[i] = 0 with probability p, that is where dice(seed, i) < p, else x[i] / (1 - p). The dice are a hash of
// (seed, i). A thread an element. (kernels/augment.cu)
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
}

// 6. im2col with gaps, for a K x K kernel without padding:
//   columns[(oy, ox), (ky, kx, c)] = x[oy + ky * dilation, ox + kx * dilation, c]
// An output pixel, which is a row of `columns`, a block, and 32 threads. (kernels/im2col.cu)
extern "C" __global__ void im2col_dilated(const float* x, float* columns, int W, int C, int K, int OW, int dilation) {
}

// 7. *largest = the largest of n numbers, by one block of 256 threads. Use __shfl_down_sync inside a warp and shared
// memory between the warps. (kernels/common.cuh)
extern "C" __global__ void block_max(const float* x, float* largest, int n) {
}

// 8. y[n, c] = z[n, c] - log(sum_j exp(z[n, j])), of logits as large as 10,000. A thread a row.
// (kernels/cross_entropy.cu)
extern "C" __global__ void log_softmax(const float* z, float* y, int N, int C) {
}

// 9. y[n, p] = (x[n, p] - mean_n) / sqrt(variance_n + eps) with the (biased) statistics of row n, whose values lie near
// 1,000 and differ by 1: the mean of the squares is of no use. A block of 128 threads a row. (kernels/batchnorm.cu)
extern "C" __global__ void layer_norm(const float* x, float* y, int P, float eps) {
}

// 10. y[j, i] = x[i, j] through a 32 x 32 tile of shared memory, so that both the reads and the writes of neighbouring
// threads are neighbours, and no two lanes meet in a bank. x is H x W; the grid covers it with tiles of 32 x 32, and a block
// has (32, 8) threads, so each does four elements. (kernels/gemm.cu)
extern "C" __global__ void transpose(const float* x, float* y, int H, int W) {
}

// 11. A 3 x 3 convolution of each channel by itself, with 0 outside of the image:
//   y[i, j, c] = sum_{ky, kx} w[ky, kx, c] x[i + ky - 1, j + kx - 1, c]
// There are 32 channels. A block of (32, 8) threads computes 8 pixels of row blockIdx.y. First it fetches these and their
// halo, 3 x 10 pixels, into shared memory. (kernels/conv3x3.cu)
extern "C" __global__ void depthwise3x3(const float* x, const float* w, float* y, int H, int W) {
}

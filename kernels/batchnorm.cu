// Batch normalisation over the channels of x, N x C x P with P = H * W:
//
//   y[n, c, p] = (x[n, c, p] - mean[c]) * invstd[c] * weight[c] + bias[c],     invstd = 1 / sqrt(variance + eps)
//
// In training, mean and (biased) variance are those of the M = N * P values of a channel. With xhat the normalised x:
//
//   d_bias[c]   = sum_{n,p} dy            d_weight[c] = sum_{n,p} dy * xhat
//   dx          = weight * invstd * (dy - d_bias / M - xhat * d_weight / M)
//
// In evaluation mean and variance are constants, the running ones, and dx = weight * invstd * dy.
//
// A channel is too much for one block and too little for a grid, so its images are cut into chunks: one block reduces
// one chunk of one channel, and then one thread a channel puts the chunks together, from first to last.
// The variance is never E[x^2] - E[x]^2, which cancels: a chunk is passed over twice, first for its mean, then for the
// squared deviations from it (the second time out of the cache), and chunks are joined by Chan's formula.
//
// Bytes: statistics read x once from memory, forward reads and writes it once; backward reads x and dy twice and
// writes dx. FLOPs: a few an element. Limit: memory.
// Source: S. Ioffe, C. Szegedy, "Batch Normalization", 2015; T. Chan et al., "Updating Formulae and a Pairwise
// Algorithm for Computing Sample Variances", 1979. The running variance is unbiased, as in PyTorch.
#include "common.cuh"

// Mean and sum of squared deviations of chunk k of channel c. Launch: grid (C, chunks), blockDim.x a multiple of 32.
extern "C" __global__ void batchnorm_chunk_statistics(const scalar_t* __restrict__ x, scalar_t* __restrict__ chunk_mean,
                                                      scalar_t* __restrict__ chunk_m2, int N, int C, int P,
                                                      int images_per_chunk) {
    const int c = blockIdx.x, chunk = blockIdx.y;
    const int begin = chunk * images_per_chunk, end = min(begin + images_per_chunk, N);
    const long long first = ((long long)begin * C + c) * P, stride = (long long)C * P;
    scalar_t sums[RUN] = {}, squares[RUN] = {};
    for_each_run(end - begin, P, first, stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) sums[j] += x[i + j];
    });
    const scalar_t mean = block_sum(sums) / (scalar_t(end - begin) * P);
    for_each_run(end - begin, P, first, stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) squares[j] += (x[i + j] - mean) * (x[i + j] - mean);
    });
    const scalar_t m2 = block_sum(squares);
    if (threadIdx.x == 0) {
        chunk_mean[chunk * C + c] = mean;
        chunk_m2[chunk * C + c] = m2;
    }
}

// Joins the chunks and updates the running statistics: running = (1 - momentum) * running + momentum * batch's.
// Launch: one channel a thread.
extern "C" __global__ void batchnorm_statistics(const scalar_t* __restrict__ chunk_mean,
                                                const scalar_t* __restrict__ chunk_m2, scalar_t* __restrict__ mean,
                                                scalar_t* __restrict__ invstd, scalar_t* __restrict__ running_mean,
                                                scalar_t* __restrict__ running_var, int N, int C, int P,
                                                int images_per_chunk, scalar_t momentum, scalar_t eps) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    scalar_t count = 0, m = 0, m2 = 0;
    for (int chunk = 0; chunk * images_per_chunk < N; ++chunk) {
        const scalar_t more = scalar_t(min(images_per_chunk, N - chunk * images_per_chunk)) * P;
        const scalar_t delta = chunk_mean[chunk * C + c] - m, total = count + more;
        m += delta * (more / total);
        m2 += chunk_m2[chunk * C + c] + delta * delta * (count * more / total);
        count = total;
    }
    mean[c] = m;
    invstd[c] = 1 / sqrt(m2 / count + eps);
    running_mean[c] = (1 - momentum) * running_mean[c] + momentum * m;
    running_var[c] = (1 - momentum) * running_var[c] + momentum * (m2 / (count - 1));
}

// invstd for evaluation. Launch: one channel a thread.
extern "C" __global__ void batchnorm_invstd(const scalar_t* __restrict__ variance, scalar_t* __restrict__ invstd, int C,
                                            scalar_t eps) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) invstd[c] = 1 / sqrt(variance[c] + eps);
}

// Launch: grid (N * C, ceil(P / threads)), one element a thread.
extern "C" __global__ void batchnorm_forward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ mean,
                                             const scalar_t* __restrict__ invstd, const scalar_t* __restrict__ weight,
                                             const scalar_t* __restrict__ bias, scalar_t* __restrict__ y, int C, int P) {
    const long long plane = blockIdx.x;
    const int c = plane % C, p = blockIdx.y * blockDim.x + threadIdx.x;
    // Outside of the condition: what is the same for all threads of a block need not hide behind it.
    const scalar_t m = mean[c], scale = invstd[c] * weight[c], shift = bias[c];
    if (p < P) y[plane * P + p] = (x[plane * P + p] - m) * scale + shift;
}

// The two sums of chunk k of channel c, of a gradient g(i). All threads of the block call it.
template <class G>
__device__ inline void chunk_sums(const scalar_t* __restrict__ x, scalar_t m, scalar_t inverse,
                                  scalar_t* __restrict__ chunk_dy, scalar_t* __restrict__ chunk_dy_xhat, int N, int C,
                                  int P, int images_per_chunk, G g) {
    const int c = blockIdx.x, chunk = blockIdx.y;
    const int begin = chunk * images_per_chunk, end = min(begin + images_per_chunk, N);
    const long long first = ((long long)begin * C + c) * P, stride = (long long)C * P;
    scalar_t sums[RUN] = {}, products[RUN] = {};
    for_each_run(end - begin, P, first, stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) {
            const scalar_t dy = g(i + j);
            sums[j] += dy;
            products[j] += dy * (x[i + j] - m);
        }
    });
    const scalar_t sum_dy = block_sum(sums), sum_dy_xhat = block_sum(products) * inverse;
    if (threadIdx.x == 0) {
        chunk_dy[chunk * C + c] = sum_dy;
        chunk_dy_xhat[chunk * C + c] = sum_dy_xhat;
    }
}

// Launch: as batchnorm_chunk_statistics.
extern "C" __global__ void batchnorm_backward_chunk_sums(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                                         const scalar_t* __restrict__ mean,
                                                         const scalar_t* __restrict__ invstd,
                                                         scalar_t* __restrict__ chunk_dy,
                                                         scalar_t* __restrict__ chunk_dy_xhat, int N, int C, int P,
                                                         int images_per_chunk) {
    const int c = blockIdx.x;
    chunk_sums(x, mean[c], invstd[c], chunk_dy, chunk_dy_xhat, N, C, P, images_per_chunk,
               [&](long long i) { return dy[i]; });
}

// Launch: as batchnorm_forward. In evaluation (training = 0) the terms with the sums are absent.
extern "C" __global__ void batchnorm_backward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                              const scalar_t* __restrict__ mean, const scalar_t* __restrict__ invstd,
                                              const scalar_t* __restrict__ weight, const scalar_t* __restrict__ d_weight,
                                              const scalar_t* __restrict__ d_bias, scalar_t* __restrict__ dx, int N,
                                              int C, int P, int training) {
    const long long plane = blockIdx.x;
    const int c = plane % C, p = blockIdx.y * blockDim.x + threadIdx.x;
    const scalar_t M = scalar_t(N) * P, m = mean[c], scale = weight[c] * invstd[c];
    const scalar_t from_mean = training ? d_bias[c] / M : scalar_t(0);
    const scalar_t from_variance = training ? invstd[c] * d_weight[c] / M : scalar_t(0);
    if (p >= P) return;
    const long long i = plane * P + p;
    dx[i] = scale * (dy[i] - from_mean - (x[i] - m) * from_variance);
}

// ---------------------------------------------------------------------------------------------------------------
// Fused: y = relu(batchnorm(x)) and y = relu(batchnorm(x) + residual).
//
// What changes against batchnorm, add and relu one after another: what one writes for the next to read stays in a
// register. Forward passes over memory fall from 4 to 2, with the residual from 7 to 3. Backward needs to know where
// y > 0. Without a residual that is computed again from x, which has to be read anyway: 8 passes become 5. With one it
// is read from y, and the gradient behind the ReLU, which is also the residual's, is stored once: 8 become 7.
// Gained, forward and backward at 128 x 16 x 32 x 32 on 2 cores of a CPU, whose caches serve the passes that are saved:
// 1.2 times the speed without a residual, none with one.

// dy where z = y's value before the ReLU, or y itself, is positive. NaN lets it through, as in relu_backward. The
// argument is loaded in any case: g++ makes no vectors of a load behind a condition.
__device__ inline scalar_t behind_relu(scalar_t z, scalar_t dy) { return z <= 0 ? scalar_t(0) : dy; }

// batchnorm_forward's element, by an explicit fused multiply-add: the backward gets the very same bits.
__device__ inline scalar_t normalised(scalar_t x, scalar_t mean, scalar_t scale, scalar_t shift) {
    return fma(x - mean, scale, shift);
}

// Launch: as batchnorm_forward.
extern "C" __global__ void batchnorm_relu_forward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ mean,
                                                  const scalar_t* __restrict__ invstd,
                                                  const scalar_t* __restrict__ weight,
                                                  const scalar_t* __restrict__ bias, scalar_t* __restrict__ y, int C,
                                                  int P) {
    const long long plane = blockIdx.x;
    const int c = plane % C, p = blockIdx.y * blockDim.x + threadIdx.x;
    const scalar_t m = mean[c], scale = invstd[c] * weight[c], shift = bias[c];
    if (p >= P) return;
    const scalar_t z = normalised(x[plane * P + p], m, scale, shift);
    y[plane * P + p] = z <= 0 ? scalar_t(0) : z;
}

// Launch: as batchnorm_forward.
extern "C" __global__ void batchnorm_add_relu_forward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ mean,
                                                      const scalar_t* __restrict__ invstd,
                                                      const scalar_t* __restrict__ weight,
                                                      const scalar_t* __restrict__ bias,
                                                      const scalar_t* __restrict__ residual, scalar_t* __restrict__ y,
                                                      int C, int P) {
    const long long plane = blockIdx.x;
    const int c = plane % C, p = blockIdx.y * blockDim.x + threadIdx.x;
    const scalar_t m = mean[c], scale = invstd[c] * weight[c], shift = bias[c];
    if (p >= P) return;
    const scalar_t z = normalised(x[plane * P + p], m, scale, shift) + residual[plane * P + p];
    y[plane * P + p] = z <= 0 ? scalar_t(0) : z;
}

// Launch: as batchnorm_chunk_statistics.
extern "C" __global__ void batchnorm_relu_backward_chunk_sums(
    const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ mean,
    const scalar_t* __restrict__ invstd, const scalar_t* __restrict__ weight, const scalar_t* __restrict__ bias,
    scalar_t* __restrict__ chunk_dy, scalar_t* __restrict__ chunk_dy_xhat, int N, int C, int P, int images_per_chunk) {
    const int c = blockIdx.x;
    const scalar_t m = mean[c], scale = invstd[c] * weight[c], shift = bias[c];
    chunk_sums(x, m, invstd[c], chunk_dy, chunk_dy_xhat, N, C, P, images_per_chunk, [&](long long i) {
        return behind_relu(normalised(x[i], m, scale, shift), dy[i]);
    });
}

// Launch: as batchnorm_forward. With the residual, batchnorm_backward takes this one's place.
extern "C" __global__ void batchnorm_relu_backward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                                   const scalar_t* __restrict__ mean,
                                                   const scalar_t* __restrict__ invstd,
                                                   const scalar_t* __restrict__ weight,
                                                   const scalar_t* __restrict__ bias,
                                                   const scalar_t* __restrict__ d_weight,
                                                   const scalar_t* __restrict__ d_bias, scalar_t* __restrict__ dx,
                                                   int N, int C, int P, int training) {
    const long long plane = blockIdx.x;
    const int c = plane % C, p = blockIdx.y * blockDim.x + threadIdx.x;
    const scalar_t M = scalar_t(N) * P, m = mean[c], scale = weight[c] * invstd[c], shift = bias[c];
    const scalar_t from_mean = training ? d_bias[c] / M : scalar_t(0);
    const scalar_t from_variance = training ? invstd[c] * d_weight[c] / M : scalar_t(0);
    if (p >= P) return;
    const long long i = plane * P + p;
    const scalar_t dz = behind_relu(normalised(x[i], m, scale, shift), dy[i]);
    dx[i] = scale * (dz - from_mean - (x[i] - m) * from_variance);
}

// The sums, and the gradient behind the ReLU on the way. Launch: as batchnorm_chunk_statistics.
extern "C" __global__ void batchnorm_add_relu_backward_chunk_sums(
    const scalar_t* __restrict__ x, const scalar_t* __restrict__ y, const scalar_t* __restrict__ dy,
    const scalar_t* __restrict__ mean, const scalar_t* __restrict__ invstd, scalar_t* __restrict__ dz,
    scalar_t* __restrict__ chunk_dy, scalar_t* __restrict__ chunk_dy_xhat, int N, int C, int P, int images_per_chunk) {
    const int c = blockIdx.x;
    chunk_sums(x, mean[c], invstd[c], chunk_dy, chunk_dy_xhat, N, C, P, images_per_chunk,
               [&](long long i) { return dz[i] = behind_relu(y[i], dy[i]); });
}

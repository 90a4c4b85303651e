// Batch normalisation over the channels of x, an M x C matrix with M = N * H * W:
//
//   y[m, c] = (x[m, c] - mean[c]) * invstd[c] * weight[c] + bias[c],     invstd = 1 / sqrt(variance + eps)
//
// In training, mean and (biased) variance are those of the M values of a channel. With xhat the normalised x:
//
//   d_bias[c] = sum_m dy    d_weight[c] = sum_m dy * xhat    dx = weight * invstd * (dy - d_bias / M - xhat * d_weight / M)
//
// In evaluation mean and variance are constants, the running ones, and dx = weight * invstd * dy.
//
// The rows are cut into chunks. Forward and backward are two launches each: in the first, a block reduces its columns of a
// chunk to a mean and a sum of squared deviations, or to the two sums above; in the second every block puts the chunks'
// results together for itself, and transforms its share. All of these are sums of columns: see Strip in common.cuh. Launch,
// of all: grid (ceil(C / columns), chunks of `rows` rows); RUN is a power of two that divides C.
// The variance is never E[x^2] - E[x]^2, which cancels: a chunk is passed over twice, first for its mean, then for the
// squared deviations from it (the second time out of the cache). Of chunks k with n_k rows then
//
//   mean = sum_k n_k mean_k / M          M variance = sum_k (m2_k + n_k (mean_k - mean)^2)
//
// Fused: y = relu(batchnorm(x)) (RELU) and y = relu(batchnorm(x) + residual) (ADD too): 4 passes over memory become 2, with the
// residual 7 become 3. Backward computes where y > 0 again from x, which it reads anyway: 8 passes become 5. With a residual it
// reads that from y, and stores the gradient behind the ReLU, which is also the residual's, once: 8 become 7.
//
// Bytes: forward reads x twice, then out of a cache, and writes y; backward reads x and dy twice and writes dx. FLOPs: a few
// an element. Limit: memory.
// Source: S. Ioffe, C. Szegedy, "Batch Normalization", 2015; T. Chan et al., "Updating Formulae and a Pairwise
// Algorithm for Computing Sample Variances", 1979. The running variance is unbiased, as in PyTorch.
#include "common.cuh"

// Mean and sum of squared deviations of each chunk: chunk_mean and chunk_m2 are chunks x C.
template <int RUN>
__global__ void batchnorm_chunk_statistics(const scalar_t* __restrict__ x, scalar_t* __restrict__ chunk_mean,
                                           scalar_t* __restrict__ chunk_m2, long long M, int C, int columns,
                                           long long rows) {
    __shared__ scalar_t mean[1][Strip<RUN>::MOST], m2[1][Strip<RUN>::MOST];
    const Strip<RUN> strip(M, C, columns, blockIdx.y * rows, rows);
    strip.sum(mean, [&](long long, long long i, int) { return Run<1>{x[i]}; });
    for (int c = threadIdx.x; c < strip.columns; c += blockDim.x) mean[0][c] /= strip.end - strip.begin;
    __syncthreads();
    strip.sum(m2, [&](long long, long long i, int c) {
        const scalar_t deviation = x[i] - mean[0][c];
        return Run<1>{deviation * deviation};
    });
    for (int c = threadIdx.x; c < strip.columns; c += blockDim.x) {
        chunk_mean[blockIdx.y * C + strip.c0 + c] = mean[0][c];
        chunk_m2[blockIdx.y * C + strip.c0 + c] = m2[0][c];
    }
}

// dy where z = y's value before the ReLU, or y itself, is positive. NaN lets it through, as in relu_backward.
__device__ inline scalar_t behind_relu(scalar_t z, scalar_t dy) { return z <= 0 ? scalar_t(0) : dy; }

// Joins the chunks' statistics, or takes the running ones, and normalises. The first block of a channel writes down mean
// and invstd, and in training updates the running statistics: (1 - momentum) * running + momentum * the batch's.
template <int RUN, bool RELU, bool ADD>
__global__ void batchnorm_forward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ chunk_mean,
                                  const scalar_t* __restrict__ chunk_m2, scalar_t* __restrict__ mean,
                                  scalar_t* __restrict__ invstd, scalar_t* __restrict__ running_mean,
                                  scalar_t* __restrict__ running_var, const scalar_t* __restrict__ weight,
                                  const scalar_t* __restrict__ bias, const scalar_t* __restrict__ residual,
                                  scalar_t* __restrict__ y, long long M, int C, int columns, long long rows, int training,
                                  scalar_t momentum, scalar_t eps) {
    __shared__ scalar_t means[1][Strip<RUN>::MOST], variances[1][Strip<RUN>::MOST];
    const Strip<RUN> strip(M, C, columns, blockIdx.y * rows, rows), chunks(gridDim.y, C, columns, 0, training ? gridDim.y : 0);
    chunks.sum(means, [&](long long k, long long i, int) {
        return Run<1>{chunk_mean[i] * (scalar_t(min(rows, M - k * rows)) / M)};
    });
    chunks.sum(variances, [&](long long k, long long i, int c) {
        const scalar_t delta = chunk_mean[i] - means[0][c];
        return Run<1>{(chunk_m2[i] + delta * delta * min(rows, M - k * rows)) / M};
    });
    for (int c = threadIdx.x; c < strip.columns; c += blockDim.x) {
        const int channel = strip.c0 + c;
        const scalar_t m = training ? means[0][c] : running_mean[channel];
        const scalar_t variance = training ? variances[0][c] : running_var[channel];
        means[0][c] = m;
        variances[0][c] = 1 / sqrt(variance + eps);
        if (blockIdx.y > 0) continue;
        mean[channel] = m;
        invstd[channel] = variances[0][c];
        if (!training) continue;
        running_mean[channel] = (1 - momentum) * running_mean[channel] + momentum * m;
        running_var[channel] = (1 - momentum) * running_var[channel] + momentum * variance * (scalar_t(M) / (M - 1));
    }
    __syncthreads();
    strip.each([&](long long, long long i, int c) {
        scalar_t z = normalised(x[i], means[0][c], variances[0][c] * weight[strip.c0 + c], bias[strip.c0 + c]);
        if (ADD) z += residual[i];
        y[i] = RELU && z <= 0 ? scalar_t(0) : z;
    });
}

// The two sums of each chunk. With ADD, the gradient behind the ReLU goes to dz on the way.
template <int RUN, bool RELU, bool ADD>
__global__ void batchnorm_chunk_sums(const scalar_t* __restrict__ x, const scalar_t* __restrict__ y,
                                     const scalar_t* __restrict__ dy, const scalar_t* __restrict__ mean,
                                     const scalar_t* __restrict__ invstd, const scalar_t* __restrict__ weight,
                                     const scalar_t* __restrict__ bias, scalar_t* __restrict__ dz,
                                     scalar_t* __restrict__ chunk_dy, scalar_t* __restrict__ chunk_dy_xhat, long long M,
                                     int C, int columns, long long rows) {
    __shared__ scalar_t sums[2][Strip<RUN>::MOST];
    const Strip<RUN> strip(M, C, columns, blockIdx.y * rows, rows);
    strip.sum(sums, [&](long long, long long i, int c) {
        const int channel = strip.c0 + c;
        const scalar_t m = mean[channel], inverse = invstd[channel];
        scalar_t g = dy[i];
        if (ADD) g = dz[i] = behind_relu(y[i], g);
        else if (RELU) g = behind_relu(normalised(x[i], m, inverse * weight[channel], bias[channel]), g);
        return Run<2>{g, g * ((x[i] - m) * inverse)};
    });
    for (int c = threadIdx.x; c < strip.columns; c += blockDim.x) {
        chunk_dy[blockIdx.y * C + strip.c0 + c] = sums[0][c];
        chunk_dy_xhat[blockIdx.y * C + strip.c0 + c] = sums[1][c];
    }
}

// Adds up the chunks' sums, which the first block of a channel writes down, and computes dx. In evaluation (training = 0)
// the terms with the sums are absent from it. With a residual, dy is dz and RELU false.
template <int RUN, bool RELU>
__global__ void batchnorm_backward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                   const scalar_t* __restrict__ mean, const scalar_t* __restrict__ invstd,
                                   const scalar_t* __restrict__ weight, const scalar_t* __restrict__ bias,
                                   const scalar_t* __restrict__ chunk_dy, const scalar_t* __restrict__ chunk_dy_xhat,
                                   scalar_t* __restrict__ d_weight, scalar_t* __restrict__ d_bias,
                                   scalar_t* __restrict__ dx, long long M, int C, int columns, long long rows, int training) {
    __shared__ scalar_t sums[2][Strip<RUN>::MOST];
    const Strip<RUN> strip(M, C, columns, blockIdx.y * rows, rows), chunks(gridDim.y, C, columns, 0, gridDim.y);
    chunks.sum(sums, [&](long long, long long i, int) { return Run<2>{chunk_dy[i], chunk_dy_xhat[i]}; });
    for (int c = threadIdx.x; blockIdx.y == 0 && c < strip.columns; c += blockDim.x) {
        d_bias[strip.c0 + c] = sums[0][c];
        d_weight[strip.c0 + c] = sums[1][c];
    }
    const scalar_t share = training ? scalar_t(1) / M : 0;
    strip.each([&](long long, long long i, int c) {
        const int channel = strip.c0 + c;
        const scalar_t m = mean[channel], inverse = invstd[channel], scale = inverse * weight[channel];
        const scalar_t g = RELU ? behind_relu(normalised(x[i], m, scale, bias[channel]), dy[i]) : dy[i];
        dx[i] = scale * (g - sums[0][c] * share - (x[i] - m) * (inverse * sums[1][c] * share));
    });
}

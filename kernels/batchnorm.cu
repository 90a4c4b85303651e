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
// A channel is too much for one block and too little for a grid, so its images are cut into chunks. Forward and backward
// are two launches each: in the first, a block reduces a chunk to a mean and a sum of squared deviations, or to the two
// sums above; in the second it puts the chunks' results together, from first to last, which every block does for itself,
// and transforms its chunk. Launch, of all: grid (C, chunks), a block a chunk of one channel.
// The variance is never E[x^2] - E[x]^2, which cancels: a chunk is passed over twice, first for its mean, then for the
// squared deviations from it (the second time out of the cache), and chunks are joined by Chan's formula.
//
// Fused: y = relu(batchnorm(x)) (RELU) and y = relu(batchnorm(x) + residual) (ADD too). What batchnorm, add and relu write
// for one another to read then stays in a register. Forward passes over memory fall from 4 to 2, with the residual from 7
// to 3. Backward needs to know where y > 0. Without a residual that is computed again from x, which has to be read anyway:
// 8 passes become 5. With one it is read from y, and the gradient behind the ReLU, which is also the residual's, is stored
// once: 8 become 7.
//
// Bytes: forward reads x twice, the second time out of a cache, and writes y; backward reads x and dy twice and writes
// dx. FLOPs: a few an element. Limit: memory.
// Source: S. Ioffe, C. Szegedy, "Batch Normalization", 2015; T. Chan et al., "Updating Formulae and a Pairwise
// Algorithm for Computing Sample Variances", 1979. The running variance is unbiased, as in PyTorch.
#include "common.cuh"

// The chunk that a block works on: planes images of channel c, P values each, the first of which is at `first`.
struct Chunk {
    int c, planes, P;
    long long first, stride;
    __device__ Chunk(int N, int C, int P, int images_per_chunk) : c(blockIdx.x), P(P) {
        const int begin = blockIdx.y * images_per_chunk;
        planes = min(images_per_chunk, N - begin);
        first = ((long long)begin * C + c) * P;
        stride = (long long)C * P;
    }
};

// Mean and sum of squared deviations of each chunk.
template <int RUN>
__global__ void batchnorm_chunk_statistics(const scalar_t* __restrict__ x, scalar_t* __restrict__ chunk_mean,
                                           scalar_t* __restrict__ chunk_m2, int N, int C, int P, int images_per_chunk) {
    const Chunk chunk(N, C, P, images_per_chunk);
    scalar_t sums[RUN] = {}, squares[RUN] = {};
    for_each_run<RUN>(chunk.planes, P, chunk.first, chunk.stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) sums[j] += x[i + j];
    });
    const scalar_t mean = block_sum(sums) / (scalar_t(chunk.planes) * P);
    for_each_run<RUN>(chunk.planes, P, chunk.first, chunk.stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) squares[j] += (x[i + j] - mean) * (x[i + j] - mean);
    });
    const scalar_t m2 = block_sum(squares);
    if (threadIdx.x == 0) {
        chunk_mean[blockIdx.y * C + chunk.c] = mean;
        chunk_m2[blockIdx.y * C + chunk.c] = m2;
    }
}

// dy where z = y's value before the ReLU, or y itself, is positive. NaN lets it through, as in relu_backward. The
// argument is loaded in any case: g++ makes no vectors of a load behind a condition.
__device__ inline scalar_t behind_relu(scalar_t z, scalar_t dy) { return z <= 0 ? scalar_t(0) : dy; }

// Joins the chunks' statistics, or takes the running ones, and normalises. The first block of a channel writes down mean
// and invstd, and in training updates the running statistics: (1 - momentum) * running + momentum * the batch's.
template <int RUN, bool RELU, bool ADD>
__global__ void batchnorm_forward(const scalar_t* __restrict__ x, const scalar_t* __restrict__ chunk_mean,
                                  const scalar_t* __restrict__ chunk_m2, scalar_t* __restrict__ mean,
                                  scalar_t* __restrict__ invstd, scalar_t* __restrict__ running_mean,
                                  scalar_t* __restrict__ running_var, const scalar_t* __restrict__ weight,
                                  const scalar_t* __restrict__ bias, const scalar_t* __restrict__ residual,
                                  scalar_t* __restrict__ y, int N, int C, int P, int images_per_chunk, int training,
                                  scalar_t momentum, scalar_t eps) {
    const Chunk chunk(N, C, P, images_per_chunk);
    const int c = chunk.c;
    scalar_t count = 0, m = 0, m2 = 0;
    for (int k = 0; training && k < gridDim.y; ++k) {
        const scalar_t more = scalar_t(min(images_per_chunk, N - k * images_per_chunk)) * P;
        const scalar_t delta = chunk_mean[k * C + c] - m, total = count + more;
        m += delta * (more / total);
        m2 += chunk_m2[k * C + c] + delta * delta * (count * more / total);
        count = total;
    }
    m = training ? m : running_mean[c];
    const scalar_t inverse = 1 / sqrt((training ? m2 / count : running_var[c]) + eps);
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        mean[c] = m;
        invstd[c] = inverse;
        if (training) {
            running_mean[c] = (1 - momentum) * running_mean[c] + momentum * m;
            running_var[c] = (1 - momentum) * running_var[c] + momentum * (m2 / (count - 1));
        }
    }
    const scalar_t scale = inverse * weight[c], shift = bias[c];
    for_each_run<RUN>(chunk.planes, P, chunk.first, chunk.stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) {
            scalar_t z = normalised(x[i + j], m, scale, shift);
            if (ADD) z += residual[i + j];
            y[i + j] = RELU && z <= 0 ? scalar_t(0) : z;
        }
    });
}

// The two sums of each chunk. With ADD, the gradient behind the ReLU goes to dz on the way.
template <int RUN, bool RELU, bool ADD>
__global__ void batchnorm_chunk_sums(const scalar_t* __restrict__ x, const scalar_t* __restrict__ y,
                                     const scalar_t* __restrict__ dy, const scalar_t* __restrict__ mean,
                                     const scalar_t* __restrict__ invstd, const scalar_t* __restrict__ weight,
                                     const scalar_t* __restrict__ bias, scalar_t* __restrict__ dz,
                                     scalar_t* __restrict__ chunk_dy, scalar_t* __restrict__ chunk_dy_xhat, int N, int C,
                                     int P, int images_per_chunk) {
    const Chunk chunk(N, C, P, images_per_chunk);
    const scalar_t m = mean[chunk.c], inverse = invstd[chunk.c], scale = inverse * weight[chunk.c], shift = bias[chunk.c];
    scalar_t sums[RUN] = {}, products[RUN] = {};
    for_each_run<RUN>(chunk.planes, P, chunk.first, chunk.stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) {
            scalar_t g = dy[i + j];
            if (ADD) g = dz[i + j] = behind_relu(y[i + j], g);
            else if (RELU) g = behind_relu(normalised(x[i + j], m, scale, shift), g);
            sums[j] += g;
            products[j] += g * (x[i + j] - m);
        }
    });
    const scalar_t sum_dy = block_sum(sums), sum_dy_xhat = block_sum(products) * inverse;
    if (threadIdx.x == 0) {
        chunk_dy[blockIdx.y * C + chunk.c] = sum_dy;
        chunk_dy_xhat[blockIdx.y * C + chunk.c] = sum_dy_xhat;
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
                                   scalar_t* __restrict__ dx, int N, int C, int P, int images_per_chunk, int training) {
    const Chunk chunk(N, C, P, images_per_chunk);
    const int c = chunk.c;
    scalar_t sum_dy = 0, sum_dy_xhat = 0;
    for (int k = 0; k < gridDim.y; ++k) {
        sum_dy += chunk_dy[k * C + c];
        sum_dy_xhat += chunk_dy_xhat[k * C + c];
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        d_bias[c] = sum_dy;
        d_weight[c] = sum_dy_xhat;
    }
    const scalar_t M = scalar_t(N) * P, m = mean[c], scale = weight[c] * invstd[c], shift = bias[c];
    const scalar_t from_mean = training ? sum_dy / M : scalar_t(0);
    const scalar_t from_variance = training ? invstd[c] * sum_dy_xhat / M : scalar_t(0);
    for_each_run<RUN>(chunk.planes, P, chunk.first, chunk.stride, [&](long long i, int n) {
        for (int j = 0; j < n; ++j) {
            const scalar_t g = RELU ? behind_relu(normalised(x[i + j], m, scale, shift), dy[i + j]) : dy[i + j];
            dx[i + j] = scale * (g - from_mean - (x[i + j] - m) * from_variance);
        }
    });
}

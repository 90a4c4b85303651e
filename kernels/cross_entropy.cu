// Softmax cross-entropy with label smoothing s, averaged over the batch, for logits z, N x C, and labels t:
//
//   loss      = 1/N sum_n ( log sum_c exp(z[n, c]) - (1 - s) z[n, t_n] - s/C sum_c z[n, c] )
//   dz[n, c]  = d_loss/N ( softmax(z[n])[c] - (1 - s) [c = t_n] - s/C )
//
// The largest logit of a row is subtracted before exp, which then cannot overflow; the result is the same.
// Launch: one row a thread (C is 10 here); forward has one block of whole warps, whose threads stride over rows, for the mean.
// Bytes: N * C elements. Limit: latency. Source: PyTorch, torch.nn.functional.cross_entropy.
#include "common.cuh"

__device__ inline scalar_t row_max(const scalar_t* z, int C) {
    scalar_t largest = z[0];
    for (int c = 1; c < C; ++c) largest = z[c] > largest ? z[c] : largest;
    return largest;
}

extern "C" __global__ void cross_entropy_forward(const scalar_t* __restrict__ logits, const int* __restrict__ labels,
                                                 scalar_t* __restrict__ loss, int N, int C, scalar_t smoothing) {
    scalar_t losses = 0;
    for (int n = threadIdx.x; n < N; n += blockDim.x) {
        const scalar_t* z = logits + (long long)n * C;
        const scalar_t largest = row_max(z, C);
        scalar_t sum_exp = 0, sum = 0;
        for (int c = 0; c < C; ++c) {
            sum_exp += exp(z[c] - largest);
            sum += z[c] - largest;
        }
        losses += log(sum_exp) - (1 - smoothing) * (z[labels[n]] - largest) - smoothing / C * sum;
    }
    losses = block_sum(losses);
    if (threadIdx.x == 0) *loss = losses / N;
}

extern "C" __global__ void cross_entropy_backward(const scalar_t* __restrict__ logits, const int* __restrict__ labels,
                                                  const scalar_t* __restrict__ d_loss, scalar_t* __restrict__ d_logits,
                                                  int N, int C, scalar_t smoothing) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const scalar_t* z = logits + (long long)n * C;
    const scalar_t largest = row_max(z, C);
    scalar_t sum_exp = 0;
    for (int c = 0; c < C; ++c) sum_exp += exp(z[c] - largest);
    for (int c = 0; c < C; ++c) {
        const scalar_t target = (c == labels[n] ? 1 - smoothing : scalar_t(0)) + smoothing / C;
        d_logits[(long long)n * C + c] = *d_loss / N * (exp(z[c] - largest) / sum_exp - target);
    }
}

// Adds to *correct the number of rows whose largest logit (the first of equal ones) is the label's. The sum of
// integers does not depend on the order, so an atomic addition is deterministic.
extern "C" __global__ void count_correct(const scalar_t* __restrict__ logits, const int* __restrict__ labels,
                                         int* __restrict__ correct, int N, int C) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const scalar_t* z = logits + (long long)n * C;
    int best = 0;
    for (int c = 1; c < C; ++c) best = z[c] > z[best] ? c : best;
    if (best == labels[n]) atomicAdd(correct, 1);
}

// Adds a batch to an epoch's totals = (sum of the images' losses, images that are right). In double, so that it adds up as
// Python would; on the device, so that no step waits for the host to read them. Launch: one thread.
extern "C" __global__ void add_to_totals(const scalar_t* __restrict__ loss, const int* __restrict__ correct,
                                         double* __restrict__ totals, int images) {
    totals[0] += double(*loss) * images;
    totals[1] += *correct;
}

// bad = index, value and C of the first label outside 0 .. C-1; left alone where one is known already. Launch: one thread.
extern "C" __global__ void find_bad_label(const int* __restrict__ labels, int* __restrict__ bad, int N, int C) {
    for (int n = 0; n < N && bad[0] < 0; ++n) {
        if (labels[n] >= 0 && labels[n] < C) continue;
        bad[0] = n, bad[1] = labels[n], bad[2] = C;
    }
}

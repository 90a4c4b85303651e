// Stochastic gradient descent with weight decay d, momentum m and learning rate r, in place:
//
//   g = gradient + d * w;   v = m * v + g;   w = w - r * (g + m * v) with Nesterov's momentum, else w - r * v
//
// Launch: one element a thread, one launch a parameter. v starts at zero; without momentum it may be null.
// Bytes: 3 elements read and 2 written for each one. Limit: memory, and for small parameters the launch itself.
// Source: PyTorch, torch.optim.SGD (weight decay is added to the gradient; the rate multiplies the velocity).
#include "common.cuh"

extern "C" __global__ void sgd_step(scalar_t* __restrict__ w, const scalar_t* __restrict__ gradient,
                                    scalar_t* __restrict__ v, long long n, scalar_t rate, scalar_t momentum,
                                    scalar_t weight_decay, int nesterov) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    scalar_t g = gradient[i] + weight_decay * w[i];
    if (v) {
        v[i] = momentum * v[i] + g;
        g = nesterov ? g + momentum * v[i] : v[i];
    }
    w[i] -= rate * g;
}

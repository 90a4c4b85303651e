// Stochastic gradient descent with weight decay d, momentum m and learning rate r, in place:
//
//   g = gradient + d * w;   v = m * v + g;   w = w - r * (g + m * v) with Nesterov's momentum, else w - r * v
//
// One launch for up to 64 parameters, each an array of its own: the kernel gets structures of pointers. Most parameters of a
// ResNet are small, and a launch for each would cost more time than the arithmetic.
// Launch: grid (parameters, blocks), whose threads stride over runs of RUN elements of a parameter. v starts at zero; without
// momentum `velocities` are null. The rate is read from memory, so that a recorded launch can be replayed with another.
// Bytes: 3 elements read and 2 written for each one. Limit: memory.
// Source: PyTorch, torch.optim.SGD (weight decay is added to the gradient; the rate multiplies the velocity).
#include "common.cuh"

template <int RUN>
__global__ void sgd_step(Pointers<scalar_t> weights, Pointers<const scalar_t> gradients, Pointers<scalar_t> velocities,
                         Sizes sizes, const scalar_t* __restrict__ rate, scalar_t momentum, scalar_t weight_decay,
                         int nesterov) {
    scalar_t* __restrict__ w = weights.at[blockIdx.x];
    const scalar_t* __restrict__ gradient = gradients.at[blockIdx.x];
    scalar_t* __restrict__ v = velocities.at[blockIdx.x];
    const long long n = sizes.at[blockIdx.x], step = (long long)gridDim.y * blockDim.x * RUN;
    const scalar_t r = *rate;
    for (long long first = ((long long)blockIdx.y * blockDim.x + threadIdx.x) * RUN; first < n; first += step)
        for (long long i = first; i < min(first + RUN, n); ++i) {
            scalar_t g = gradient[i] + weight_decay * w[i];
            if (v) {
                v[i] = momentum * v[i] + g;
                g = nesterov ? g + momentum * v[i] : v[i];
            }
            w[i] -= r * g;
        }
}

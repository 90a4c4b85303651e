// A training batch from uint8 images that stay on the device: pad by `pad` black pixels, crop at a random place back
// to the size, flip half of the images from left to right, and normalise:
//
//   y[b, i, j, c] = (x[indices[b], i + dy - pad, j' + dx - pad, c] / 255 - mean[c]) / std[c],  j' = flipped ? W-1-j : j
//
// The random dx and dy in 0 .. 2 pad and the flip are a hash of (seed, b): a counter-based generator, which needs no
// state and gives the same batch whatever the order of the threads. With pad = 0 and flip = 0, it only normalises.
// Launch: one element a thread; a block has a part of a row (b, i) of W * C elements. Bytes: 1 read, 4 written. Limit: memory.
// Source: K. He et al. 2015, section 4.2; the hash is SplitMix64 (G. Steele et al., 2014).
#include "common.cuh"

__device__ inline unsigned long long splitmix64(unsigned long long state) {
    state += 0x9E3779B97F4A7C15ull;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    return state ^ (state >> 31);
}

extern "C" __global__ void augment(const unsigned char* __restrict__ images, const int* __restrict__ indices,
                                   const scalar_t* __restrict__ mean, const scalar_t* __restrict__ std,
                                   scalar_t* __restrict__ y, int H, int W, int C, int pad, int flip,
                                   unsigned long long seed) {
    const long long row = blockIdx.x, b = row / H;
    const int i = row % H, k = blockIdx.y * blockDim.x + threadIdx.x, j = k / C, c = k % C;
    if (j >= W) return;
    const unsigned long long random = splitmix64(splitmix64(seed) + b);
    const int span = 2 * pad + 1, dy = int(random % span), dx = int((random >> 20) % span), flipped = flip && (random >> 63);
    const int iy = i + dy - pad, ix = (flipped ? W - 1 - j : j) + dx - pad;
    const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W;
    const int pixel = inside ? images[((indices[b] * (long long)H + iy) * W + ix) * C + c] : 0;
    y[row * W * C + k] = (scalar_t(pixel) / 255 - mean[c]) / std[c];
}

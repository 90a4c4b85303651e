// CUDA's built-ins for a C++17 compiler, so that an unmodified .cu file compiles for, and runs on, a CPU: first the
// language, then the threads of a launch (threads.h, or sanitizer.h, which watches over them), then the shuffles.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "fibers.h"

// ---------------------------------------------------------------------------------------------------------------
// The language: qualifiers, vector types, math

#define __global__ inline  // into the loop over a block's threads, if it is small
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#if !defined(__clang__)
#define __restrict__ __restrict
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define MINIRES_VECTOR_TYPES(T, name)                                                                  \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                 \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                 \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                  \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MINIRES_VECTOR_TYPES(float, float)
MINIRES_VECTOR_TYPES(double, double)
MINIRES_VECTOR_TYPES(int, int)
MINIRES_VECTOR_TYPES(unsigned, uint)
MINIRES_VECTOR_TYPES(unsigned char, uchar)

template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
    else return a > b ? a : b;
}
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b);
    else return a < b ? a : b;
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
#define __expf expf  // glibc declares __expf and __logf for itself
#define __logf logf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
template <class T> static inline T __ldg(const T* p) { return *p; }

static const int warpSize = 32;

// ---------------------------------------------------------------------------------------------------------------
// Threads, barriers and launches

#ifdef MINIRES_SANITIZE
#include "sanitizer.h"
#else
#include "threads.h"
#endif

// ---------------------------------------------------------------------------------------------------------------
// Shuffles: minires::shuffle gives each lane the value that the lane `source` of its warp offers

namespace minires {
static inline unsigned lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}
}  // namespace minires

#define MINIRES_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()  // for the sanitizer

template <class T> static T __shfl_sync(unsigned mask, T v, int source, int width = 32, MINIRES_CALLER) {
    const unsigned lane = minires::lane();
    return minires::shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <class T> static T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, MINIRES_CALLER) {
    const unsigned lane = minires::lane();
    return minires::shuffle(mask, v, (lane & (width - 1)) >= delta ? lane - delta : lane, file, line);
}
template <class T> static T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, MINIRES_CALLER) {
    const unsigned lane = minires::lane();
    return minires::shuffle(mask, v, (lane & (width - 1)) + delta < unsigned(width) ? lane + delta : lane, file, line);
}
template <class T> static T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32, MINIRES_CALLER) {
    const unsigned lane = minires::lane(), source = lane ^ lane_mask;
    return minires::shuffle(mask, v, (source & ~(width - 1)) <= (lane & ~(width - 1)) ? source : lane, file, line);
}

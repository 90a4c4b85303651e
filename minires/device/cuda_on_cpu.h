// CUDA's built-ins for a C++17 compiler, so that an unmodified .cu file compiles for, and runs on, a CPU: the language
// and its types here, then the threads of a launch (threads.h), the primitives that need both (primitives.h), math, and what
// a launch must know of a kernel.
#pragma once

#include <new>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // g++ takes longer to read Bessel's functions and their like than all else here

#include <assert.h>
#include <fenv.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include <type_traits>
#include <utility>

// The language: qualifiers, vector types, math

#define __global__ inline  // into the loop over a block's threads, if it is small
#define __device__
#define __host__
#define __managed__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __builtin_assume(condition)
#define __CUDACC__
#define __CUDA_ARCH__ 750
#if !defined(__clang__)
#define __restrict__ __restrict
#endif

typedef unsigned char uchar;
typedef long long longlong;
typedef unsigned long long ulonglong;

#define MINIRES_VECTOR_TYPES(T, name)                                                               \
    struct name##1 { T x; };                                                                        \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                              \
    struct name##3 { T x, y, z; };                                                                  \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };              \
    static inline name##1 make_##name##1(T x) { return {x}; }                                       \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MINIRES_VECTOR_TYPES(signed char, char) MINIRES_VECTOR_TYPES(unsigned char, uchar) MINIRES_VECTOR_TYPES(short, short)
MINIRES_VECTOR_TYPES(unsigned short, ushort) MINIRES_VECTOR_TYPES(int, int) MINIRES_VECTOR_TYPES(unsigned, uint)
MINIRES_VECTOR_TYPES(long, long) MINIRES_VECTOR_TYPES(unsigned long, ulong) MINIRES_VECTOR_TYPES(long long, longlong)
MINIRES_VECTOR_TYPES(unsigned long long, ulonglong) MINIRES_VECTOR_TYPES(float, float) MINIRES_VECTOR_TYPES(double, double)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

static const int warpSize = 32;

// Threads, barriers and launches

#include "threads.h"
#include "primitives.h"

// Math

template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
    else return a > b ? a : b;
}
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b);
    else return a < b ? a : b;
}

template <class To, class From> static inline To minires_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline float __int_as_float(int x) { return minires_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return minires_bits<float>(x); }
static inline int __float_as_int(float x) { return minires_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return minires_bits<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return minires_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return minires_bits<long long>(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
static inline float fdividef(float x, float y) { return x / y; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN becomes 0
static inline double sinpi(double x) {  // the zeros of both are exact
    const double t = remainder(x, 2.0);
    return sin(3.14159265358979323846 * (fabs(t) > 0.5 ? copysign(1.0, t) - t : t));
}
static inline double cospi(double x) { return sin(3.14159265358979323846 * (0.5 - fabs(remainder(x, 2.0)))); }
static inline float sinpif(float x) { return float(sinpi(x)); }
static inline float cospif(float x) { return float(cospi(x)); }
static inline float norm4df(double x, double y, double z, double w) { return float(sqrt(x * x + y * y + z * z + w * w)); }
static inline float norm3df(double x, double y, double z) { return norm4df(x, y, z, 0); }
static inline float rhypotf(float x, float y) { return 1.0f / hypotf(x, y); }
static inline float rnorm3df(float x, float y, float z) { return 1.0f / norm3df(x, y, z); }
static inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
#define __expf expf  // macros: glibc declares some of these names for itself
#define __exp10f(x) powf(10.0f, x)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __sincosf sincosf

// Without fusing or reordering; rounded to nearest, towards zero, up or down.
#define MINIRES_ROUNDED_TO(T, name, mode, expression)          \
    static inline T name(T a, T b = 0, T c = 0) {              \
        volatile T x = a, y = b, z = c;                        \
        const int before = fegetround();                       \
        if (mode != FE_TONEAREST) fesetround(mode);            \
        volatile T result = expression;                        \
        if (mode != FE_TONEAREST) fesetround(before);          \
        return result;                                         \
    }
#define MINIRES_ROUNDED(T, name, expression)                   \
    MINIRES_ROUNDED_TO(T, name##_rn, FE_TONEAREST, expression) \
    MINIRES_ROUNDED_TO(T, name##_rz, FE_TOWARDZERO, expression) \
    MINIRES_ROUNDED_TO(T, name##_ru, FE_UPWARD, expression)    \
    MINIRES_ROUNDED_TO(T, name##_rd, FE_DOWNWARD, expression)
#define MINIRES_ARITHMETIC(T, prefix)        \
    MINIRES_ROUNDED(T, prefix##add, x + y)   \
    MINIRES_ROUNDED(T, prefix##sub, x - y)   \
    MINIRES_ROUNDED(T, prefix##mul, x * y)   \
    MINIRES_ROUNDED(T, prefix##div, x / y)   \
    MINIRES_ROUNDED(T, prefix##rcp, T(1) / x) \
    MINIRES_ROUNDED(T, prefix##sqrt, sqrt(T(x)))
MINIRES_ARITHMETIC(float, __f) MINIRES_ARITHMETIC(double, __d)
MINIRES_ROUNDED(float, __fmaf, fmaf(x, y, z)) MINIRES_ROUNDED(double, __fma, fma(x, y, z))
static inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }

// Conversions as __float2int_rn: to nearest even, towards zero, up, down; out of range they saturate, as on a GPU.
template <class To, class From> static inline To minires_convert(From x) {
    if (x != x) return sizeof(To) == 8 || sizeof(From) == 8 ? To(1ull << (8 * sizeof(To) - 1)) : To(0);  // as PTX's cvt has it
    constexpr To lowest = std::is_signed_v<To> ? To(1ull << (8 * sizeof(To) - 1)) : To(0);
    constexpr To highest = To(~lowest);
    return x <= From(lowest) ? lowest : x >= From(highest) ? highest : To(x);
}
#define MINIRES_CONVERSION(from, From, to, To)                                                              \
    static inline To __##from##2##to##_rn(From x) { return minires_convert<To>(std::rint(x)); }            \
    static inline To __##from##2##to##_rz(From x) { return minires_convert<To>(std::trunc(x)); }           \
    static inline To __##from##2##to##_ru(From x) { return minires_convert<To>(std::ceil(x)); }            \
    static inline To __##from##2##to##_rd(From x) { return minires_convert<To>(std::floor(x)); }           \
    static inline From __##to##2##from##_rn(To x) { return From(x); }
MINIRES_CONVERSION(float, float, int, int) MINIRES_CONVERSION(float, float, uint, unsigned)
MINIRES_CONVERSION(float, float, ll, long long) MINIRES_CONVERSION(float, float, ull, unsigned long long)
MINIRES_CONVERSION(double, double, int, int) MINIRES_CONVERSION(double, double, uint, unsigned)
MINIRES_CONVERSION(double, double, ll, long long) MINIRES_CONVERSION(double, double, ull, unsigned long long)
static inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
static inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
static inline double __hiloint2double(int hi, int lo) { return __longlong_as_double((long long)hi << 32 | unsigned(lo)); }
static inline float __double2float_rn(double x) { return float(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
static inline unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev(unsigned(x)) << 32 | __brev(unsigned(x >> 32));
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return ((unsigned long long)hi << 32 | lo) << (n & 31) >> 32;
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return ((unsigned long long)hi << 32 | lo) >> (n & 31);
}
static inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned n) {
    return n < 32 ? __funnelshift_l(lo, hi, n) : lo;
}
static inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned n) {
    return n < 32 ? __funnelshift_r(lo, hi, n) : hi;
}
static inline int __mul24(int x, int y) { return (x << 8 >> 8) * (y << 8 >> 8); }
static inline unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffff) * (y & 0xffffff); }
static inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
static inline long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
static inline unsigned __sad(int x, int y, unsigned z) { return z + (x > y ? unsigned(x) - y : unsigned(y) - x); }
static inline unsigned __usad(unsigned x, unsigned y, unsigned z) { return z + (x > y ? x - y : y - x); }
static inline int __hadd(int x, int y) { return int(((long long)x + y) >> 1); }
static inline int __rhadd(int x, int y) { return int(((long long)x + y + 1) >> 1); }
static inline unsigned __uhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y) >> 1); }
static inline unsigned __urhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y + 1) >> 1); }
static inline unsigned umin(unsigned x, unsigned y) { return x < y ? x : y; }
static inline unsigned umax(unsigned x, unsigned y) { return x < y ? y : x; }
static inline unsigned __dp4a(unsigned x, unsigned y, unsigned sum) {
    for (int i = 0; i < 4; ++i) sum += (x >> 8 * i & 255) * (y >> 8 * i & 255);
    return sum;
}
static inline int __dp4a(int x, int y, int sum) {
    for (int i = 0; i < 4; ++i) sum += int(int8_t(x >> 8 * i)) * int8_t(y >> 8 * i);
    return sum;
}

#define MINIRES_CACHED_LOAD(name) template <class T> static inline T name(const T* p) { return *p; }
#define MINIRES_CACHED_STORE(name) template <class T> static inline void name(T* p, std::common_type_t<T> v) { *p = v; }
MINIRES_CACHED_LOAD(__ldg) MINIRES_CACHED_LOAD(__ldca) MINIRES_CACHED_LOAD(__ldcg) MINIRES_CACHED_LOAD(__ldcs)
MINIRES_CACHED_LOAD(__ldlu) MINIRES_CACHED_LOAD(__ldcv)
MINIRES_CACHED_STORE(__stwb) MINIRES_CACHED_STORE(__stcg) MINIRES_CACHED_STORE(__stcs) MINIRES_CACHED_STORE(__stwt)

// A kernel, for the runtime and the Python side. Parameters are told as "array f4,scalar i4,"; V12 is a type of 12 bytes

namespace minires {
template <class T> constexpr char letter() {
    if constexpr (std::is_enum_v<T>) return letter<std::underlying_type_t<T>>();
    else if constexpr (std::is_same_v<T, bool>) return 'b';
    else if constexpr (std::is_floating_point_v<T> && !std::is_same_v<T, long double>) return 'f';
    else if constexpr (std::is_integral_v<T>) return std::is_signed_v<T> ? 'i' : 'u';
    else return std::is_pointer_v<T> ? 'u' : 'V';
}
template <class T> static inline void append(char* text, const char* kind) {
    char* const end = text + strlen(text);
    if constexpr (std::is_void_v<T>) sprintf(end, "%s ,", kind);
    else sprintf(end, "%s %c%zu,", kind, letter<std::remove_cv_t<T>>(), sizeof(T));
}
template <class T, class = void> struct Parameter {
    static void append_to(char* text) {
        if constexpr (std::is_reference_v<T>) append<std::remove_reference_t<T>>(text, "array");
        else if constexpr (std::is_pointer_v<T>) append<std::remove_pointer_t<T>>(text, "array");
        else append<T>(text, "scalar");
    }
};
template <class T> struct Parameter<T, std::void_t<typename T::pointers_to>> {  // Pointers<T> of kernels/common.cuh
    static void append_to(char* text) { append<typename T::pointers_to>(text, "arrays"); }
};

template <class A> static inline A argument(void* at) {  // a reference is given as a pointer
    if constexpr (std::is_reference_v<A>) return **static_cast<std::remove_reference_t<A>**>(at);
    else return *static_cast<A*>(at);
}
template <class... A, size_t... I> static inline void call(void (*f)(A...), void** args, std::index_sequence<I...>) {
    f(argument<A>(args[I])...);
}

template <auto K> struct Kernel;
template <class... A, void (*K)(A...)> struct Kernel<K> {
    static void one(A... a) {
        MINIRES_THREAD_BEGINS();
        K(a...);
    }
    static void all(A... a) {
        const dim3 threads = blockDim;
        for (unsigned z = 0; z < threads.z; ++z)
            for (unsigned y = 0; y < threads.y; ++y)
                for (unsigned x = 0; x < threads.x; ++x) {
                    threadIdx = {x, y, z};
                    K(a...);
                    if (minires_now.are_fibers_) return;
                }
    }
    static void call_one(void** args) { call(one, args, std::index_sequence_for<A...>{}); }
    static void call_all(void** args) {
        if constexpr (!is_watched) call(all, args, std::index_sequence_for<A...>{});
    }
    static minires_state* state() {
        minires_now = {&threadIdx, &blockIdx, &gridDim, &blockDim, false, nullptr};
        return &minires_now;
    }
    static const char* parameters() {
        static char text[32 * sizeof...(A) + 1];
        *text = 0;
        (Parameter<A>::append_to(text), ...);
        return text;
    }
    static constexpr minires_kernel entries{call_all, call_one, state, parameters};
};
}  // namespace minires

#define MINIRES_KERNEL(id, ...) \
    extern "C" __attribute__((visibility("default"))) const minires_kernel minires_kernel_##id = minires::Kernel<__VA_ARGS__>::entries;

#undef assert
#define assert(...) ((__VA_ARGS__) ? void() : minires::stop(__FILE__, __LINE__, "assertion failed: " #__VA_ARGS__))
#define __trap() minires::stop(__FILE__, __LINE__, "__trap() was called")

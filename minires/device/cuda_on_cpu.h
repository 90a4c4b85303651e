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

namespace std { using ::minires_exit, ::minires_abort, ::minires_release; }
#define exit minires_exit
#define _Exit minires_exit
#define quick_exit minires_exit
#define abort minires_abort
#define free minires_release
inline void* operator new(size_t bytes) { return malloc(bytes); }
inline void* operator new[](size_t bytes) { return malloc(bytes); }
inline void operator delete(void* place) noexcept { free(place); }
inline void operator delete[](void* place) noexcept { free(place); }
inline void operator delete(void* place, size_t) noexcept { free(place); }
inline void operator delete[](void* place, size_t) noexcept { free(place); }

// Math

#include "include/device_functions.h"

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
template <class... A> struct Call { Call(void (*f)(A...), A... a) { f(a...); } };  // arguments in {} are evaluated in order

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
    static void call_one(void** args) { Call<A...>{one, argument<A>(*args++)...}; }
    static void call_all(void** args) {
        if constexpr (!is_watched) Call<A...>{all, argument<A>(*args++)...};
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

// What the threads of a warp or a block do together, and atomic operations, on what threads.h has for them.
#pragma once

#define MINIRES_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()  // for the sanitizer

namespace minires {

static inline unsigned lane() {
    const uint3 t = threadIdx;
    const dim3 n = blockDim;
    return (t.x + n.x * (t.y + n.y * t.z)) & 31;
}

template <class T> static inline uint64_t to_word(T value) {
    static_assert(sizeof(T) <= 8, "warp primitives move at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    return word;
}
template <class T> static inline T from_word(uint64_t word) {
    T value;
    memcpy(&value, &word, sizeof(T));
    return value;
}

template <class T> MINIRES_UNWATCHED static T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
    return from_word<T>(exchange(mask, to_word(value), file, line, source & 31)[source & 31]);
}

// The lanes of the mask for whose value f is true.
template <class T, class F> MINIRES_UNWATCHED static unsigned select(unsigned mask, T value, const char* file, int line, F f) {
    const uint64_t* shown = exchange(mask, to_word(value), file, line);
    unsigned lanes = 0;
    for (unsigned l = 0; l < 32; ++l)
        if (mask >> l & 1 && f(from_word<T>(shown[l]))) lanes |= 1u << l;
    return lanes;
}

template <class T, class F> MINIRES_UNWATCHED static T reduce(unsigned mask, T value, const char* file, int line, F f) {
    const uint64_t* shown = exchange(mask, to_word(value), file, line);
    bool first = true;
    T result = value;
    for (unsigned l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        const T other = from_word<T>(shown[l]);
        result = first ? other : f(result, other);
        first = false;
    }
    return result;
}

}  // namespace minires

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

static inline unsigned __activemask(MINIRES_CALLER) { return minires::converge(file, line); }
static inline unsigned __ballot_sync(unsigned mask, int predicate, MINIRES_CALLER) {
    return minires::select(mask, predicate, file, line, [](int p) { return p != 0; });
}
static inline int __any_sync(unsigned mask, int predicate, MINIRES_CALLER) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, MINIRES_CALLER) {
    return minires::select(mask, predicate, file, line, [](int p) { return p == 0; }) == 0;
}
template <class T> static unsigned __match_any_sync(unsigned mask, T value, MINIRES_CALLER) {
    return minires::select(mask, value, file, line, [&](T v) { return v == value; });
}
template <class T> static unsigned __match_all_sync(unsigned mask, T value, int* all, MINIRES_CALLER) {
    *all = minires::select(mask, value, file, line, [&](T v) { return v == value; }) == mask;
    return *all ? mask : 0;
}
#define MINIRES_REDUCE(name, T, expression)                                                          \
    static inline T name(unsigned mask, T value, MINIRES_CALLER) {                                   \
        return minires::reduce(mask, value, file, line, [](T a, T b) -> T { return expression; });   \
    }
MINIRES_REDUCE(__reduce_add_sync, unsigned, a + b) MINIRES_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
MINIRES_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b) MINIRES_REDUCE(__reduce_add_sync, int, a + b)
MINIRES_REDUCE(__reduce_min_sync, int, a < b ? a : b) MINIRES_REDUCE(__reduce_max_sync, int, a > b ? a : b)
MINIRES_REDUCE(__reduce_and_sync, unsigned, a & b) MINIRES_REDUCE(__reduce_or_sync, unsigned, a | b)
MINIRES_REDUCE(__reduce_xor_sync, unsigned, a ^ b)

static inline void __syncwarp(unsigned mask = 0xffffffffu, MINIRES_CALLER) { minires::warp_barrier(mask, file, line); }
#define __syncthreads_or(predicate) int(__syncthreads_count(predicate) != 0)
#define __syncthreads_and(predicate) int(__syncthreads_count(!(predicate)) == 0)
#define __threadfence_system __threadfence
static inline void __nanosleep(unsigned) {}
static inline long long clock64() { return minires::clock(); }
#define clock() clock_t(clock64())

// Atomic operations: f(old value, operand) takes the old value's place, and the old value is returned

#define MINIRES_ATOMIC_OF(name, expression)                                                                       \
    template <class T> MINIRES_UNWATCHED static inline T name(T* p, std::common_type_t<T> v) {                    \
        return minires::atomic_update(p, [v](T old) -> T { return expression; }, __builtin_return_address(0));    \
    }
#define MINIRES_ATOMIC(name, expression)         \
    MINIRES_ATOMIC_OF(name, expression)          \
    MINIRES_ATOMIC_OF(name##_block, expression)  \
    MINIRES_ATOMIC_OF(name##_system, expression)
MINIRES_ATOMIC(atomicAdd, old + v) MINIRES_ATOMIC(atomicSub, old - v) MINIRES_ATOMIC(atomicExch, v)
MINIRES_ATOMIC(atomicMin, v < old ? v : old) MINIRES_ATOMIC(atomicMax, v > old ? v : old) MINIRES_ATOMIC(atomicAnd, old & v)
MINIRES_ATOMIC(atomicOr, old | v) MINIRES_ATOMIC(atomicXor, old ^ v) MINIRES_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
MINIRES_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
template <class T> MINIRES_UNWATCHED static inline T atomicCAS(T* p, std::common_type_t<T> compare, std::common_type_t<T> v) {
    return minires::atomic_update(p, [=](T old) -> T { return old == compare ? v : old; }, __builtin_return_address(0));
}

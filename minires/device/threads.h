// How a kernel's threads run. The blocks of the grid are handed out to a pool of OS threads (runtime.cpp); a block stays on
// one of them and runs on it alone, so __shared__ is thread-local storage. The threads of a block run one after another, as
// a plain loop that the compiler may vectorise. Only when a thread reaches a barrier or a warp primitive and has to wait do
// the threads after it get stacks of their own and take turns (scheduler.cpp). Which OS thread runs a block changes nothing
// in the result.
#pragma once

#include "launch.h"

static __thread uint3 threadIdx, blockIdx;
static __thread dim3 gridDim, blockDim;
static __thread minires_state minires_now;

#define __syncthreads() minires_barrier(&minires_now, __COUNTER__, __FILE__, __LINE__)  // it tells two on a line apart
#define __syncthreads_count(predicate) minires_vote(&minires_now, bool(predicate), __COUNTER__, __FILE__, __LINE__)

namespace minires {
static inline const uint64_t* exchange(unsigned mask, uint64_t value, const char* file, int line, unsigned source = 32) {
    return minires_exchange(&minires_now, mask, source, value, file, line);
}
static inline void warp_barrier(unsigned mask, const char* file, int line) { exchange(mask, 0, file, line, 33); }
static inline unsigned converge(const char* file, int line) { return minires_converge(&minires_now, file, line); }
[[noreturn]] static inline void stop(const char* file, int line, const char* what) {
    minires_stop(&minires_now, file, line, what);
}
}  // namespace minires

#ifdef MINIRES_WATCHED  // by an observer, which sees each access: then this header takes the place of what follows
#include MINIRES_WATCHED
#else
#define __shared__ static __thread
#define MINIRES_UNWATCHED
#define malloc minires_allocate
#define MINIRES_THREAD_BEGINS()
#define MINIRES_DYNAMIC_SHARED extern __thread
#define MINIRES_DYNAMIC_MEMORY(bytes) \
    extern "C" { __attribute__((aligned(128), visibility("hidden"))) __thread char minires_dynamic_shared[bytes]; }

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}

namespace minires {
constexpr bool is_watched = false;
template <class T, class F> static inline T atomic_update(T* p, F f, void*) {
    T old = *p, now;
    do now = f(old);
    while (!__atomic_compare_exchange(p, &old, &now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
static inline long long clock() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}
}  // namespace minires
#endif

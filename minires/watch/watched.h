// The threads of a launch, watched: what a kernel sees of engine.cpp. The kernel is compiled with -fsanitize=thread, which
// puts a call before every load and store; engine.cpp receives these calls in place of ThreadSanitizer.
#pragma once

struct minires_state {  // engine.h's; a kernel's own macros do not end in _
    uint3 thread_, block_;
    dim3 grid_, threads_;
};
extern "C" {
extern minires_state minires_now;
void minires_enter(char* end_of_image);
void* minires_shared(const void* key, void* place, size_t bytes, size_t element, const char* name);
void minires_barrier(int id, const char* file, int line);
const uint64_t* minires_exchange(unsigned mask, uint64_t value, const char* file, int line);
void minires_check_lane(unsigned mask, unsigned lane, const char* file, int line);
unsigned minires_converge(const char* file, int line);
int minires_vote(int yes, int id, const char* file, int line);
void minires_fence();
void minires_atomic(void* address, size_t bytes, void* caller);
void* minires_malloc(size_t bytes);
[[noreturn]] void minires_stop(const char* file, int line, const char* what);
long long minires_clock();
}

#define threadIdx minires_now.thread_
#define blockIdx minires_now.block_
#define gridDim minires_now.grid_
#define blockDim minires_now.threads_

// What `__shared__ type name[..];` is rewritten to: an array between red zones, known by name. Outside of functions it has
// a place of its own, and the kernel's entry makes it known.
#define MINIRES_SHARED(name, dims, ...)              \
    typedef __VA_ARGS__ name##_type dims;            \
    static char name##_key;                          \
    name##_type& name = *static_cast<name##_type*>(  \
        minires_shared(&name##_key, nullptr, sizeof(name##_type), sizeof(__VA_ARGS__), #name))
#define MINIRES_GLOBAL_SHARED(name, dims, ...)                                      \
    typedef __VA_ARGS__ name##_type dims;                                           \
    alignas(128) static struct { char before[1024]; name##_type array; char after[1024]; } name##_zone; \
    static name##_type& name = name##_zone.array
#define MINIRES_DYNAMIC_SHARED extern
#define MINIRES_UNWATCHED __attribute__((noinline, no_sanitize_thread))
#define MINIRES_DYNAMIC_MEMORY(bytes) extern "C" char minires_dynamic_shared[];  // engine.cpp has it

#define malloc minires_malloc
inline void* operator new(size_t bytes) { return minires_malloc(bytes); }
inline void* operator new[](size_t bytes) { return minires_malloc(bytes); }

#define __syncthreads() minires_barrier(__COUNTER__, __FILE__, __LINE__)  // the counter tells two on a line apart
#define __syncthreads_count(predicate) minires_vote(bool(predicate), __COUNTER__, __FILE__, __LINE__)
#define __threadfence() minires_fence()
#define __threadfence_block() minires_fence()

static inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    minires_exchange(mask, 0, file, line);
}

#if defined(__APPLE__)
#include <mach-o/getsect.h>
#include <mach-o/ldsyms.h>
static inline char* minires_image_end() {
    unsigned long bytes = 0;
    char* const data = reinterpret_cast<char*>(getsegmentdata(&_mh_dylib_header, "__DATA", &bytes));
    return data + bytes;
}
#else
extern "C" __attribute__((visibility("hidden"))) char _end;  // the linker's: where this library's data end
static inline char* minires_image_end() { return &_end; }
#endif

namespace minires {
static inline const uint64_t* exchange(unsigned mask, uint64_t value, const char* file, int line) {
    return minires_exchange(mask, value, file, line);
}
static inline void check_lane(unsigned mask, unsigned lane, const char* file, int line) {
    minires_check_lane(mask, lane, file, line);
}
static inline unsigned converge(const char* file, int line) { return minires_converge(file, line); }
[[noreturn]] static inline void stop(const char* file, int line, const char* what) { minires_stop(file, line, what); }
static inline long long clock() { return minires_clock(); }

// Blocks run on one OS thread here, so nothing can come between the two halves of an update.
template <class T, class F> MINIRES_UNWATCHED static T atomic_update(T* p, F f, void* caller) {
    minires_atomic(p, sizeof(T), caller);
    const T old = *p;
    *p = f(old);
    return old;
}

static void minires_globals();  // makes the shared arrays outside of functions known: see cpu.py
template <auto K> struct Kernel;
template <class... A, void (*K)(A...)> struct Kernel<K> {
    static void thread(A... a) {
        minires_globals();
        minires_enter(minires_image_end());
        K(a...);
    }
    static void run_(void** args) { call(thread, args); }
};
}  // namespace minires

#define MINIRES_KERNEL(id, ...)                                                                  \
    extern "C" __attribute__((visibility("default"))) void minires_launch_##id(void** args_) {   \
        minires::Kernel<__VA_ARGS__>::run_(args_);                                               \
    }                                                                                            \
    MINIRES_PARAMETERS(id, __VA_ARGS__)

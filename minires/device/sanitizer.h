// The threads of a launch, watched: what a kernel sees of sanitizer.cpp. The kernel is compiled with -fsanitize=thread,
// which puts a call before every load and store; sanitizer.cpp receives these calls in place of ThreadSanitizer.
#pragma once

struct minires_state {
    uint3 thread, block, grid, threads;
};
extern "C" {
extern minires_state minires_now;
void minires_enter();
void* minires_shared(const void* key, size_t bytes, size_t element, const char* name);
void minires_barrier(int id, const char* file, int line);
void minires_sync_warp(unsigned mask, const char* file, int line);
void minires_shuffle(unsigned mask, void* value, size_t bytes, unsigned source, const char* file, int line);
void minires_atomic(void* address, size_t bytes);
}

#define threadIdx minires_now.thread
#define blockIdx minires_now.block
#define gridDim minires_now.grid
#define blockDim minires_now.threads

// What `__shared__ type name[..];` is rewritten to: an array between red zones, known by name.
#define MINIRES_SHARED(type, name, dims)             \
    typedef type name##_type dims;                   \
    static char name##_key;                          \
    name##_type& name = *static_cast<name##_type*>( \
        minires_shared(&name##_key, sizeof(name##_type), sizeof(type), #name))

#define __syncthreads() minires_barrier(__COUNTER__, __FILE__, __LINE__)  // the counter tells two on a line apart
#define __threadfence()
#define __threadfence_block()

static inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    minires_sync_warp(mask, file, line);
}

namespace minires {
template <class T> static T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    minires_shuffle(mask, &value, sizeof(T), source & 31, file, line);
    return value;
}

template <auto K> struct Kernel;
template <class... A, void (*K)(A...)> struct Kernel<K> {
    template <size_t... I> static inline void run(void** args, std::index_sequence<I...>) {
        const std::tuple<A...> values(*static_cast<A*>(args[I])...);
        minires_enter();
        std::apply(K, values);
    }
    static void body(void** args) { run(args, std::index_sequence_for<A...>{}); }
};
}  // namespace minires

// Blocks run on one OS thread here, so nothing can come between the two halves of an addition.
template <class T> __attribute__((noinline, no_sanitize_thread)) static T atomicAdd(T* p, std::common_type_t<T> v) {
    minires_atomic(p, sizeof(T));
    const T old = *p;
    *p = old + v;
    return old;
}

#define MINIRES_KERNEL(name)                                                                       \
    extern "C" __attribute__((visibility("default"))) void minires_launch_##name(void** args) {    \
        minires::Kernel<name>::body(args);                                                         \
    }

// The threads of a launch, watched: what a kernel sees of engine.cpp. The kernel is compiled with -fsanitize=thread, which
// puts a call before every load and store; engine.cpp receives these calls in place of ThreadSanitizer.
#pragma once

extern "C" {
void minires_enter(char* end_of_image);
void* minires_shared(const void* key, void* place, size_t bytes, size_t element, const char* name);
void minires_fence();
void minires_atomic(void* address, size_t bytes, void* caller);
void* minires_malloc(size_t bytes);
long long minires_clock();
}

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

#define __threadfence() minires_fence()
#define __threadfence_block() minires_fence()

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
constexpr bool is_watched = true;
static inline long long clock() { return minires_clock(); }

// Blocks run on one OS thread here, so nothing can come between the two halves of an update.
template <class T, class F> MINIRES_UNWATCHED static T atomic_update(T* p, F f, void* caller) {
    minires_atomic(p, sizeof(T), caller);
    const T old = *p;
    *p = f(old);
    return old;
}

static void minires_globals();  // makes the shared arrays outside of functions known: see cpu.py
}  // namespace minires
#define MINIRES_THREAD_BEGINS() minires::minires_globals(), minires_enter(minires_image_end())

// How a launch runs. The blocks of the grid are handed out to a pool of OS threads; a block stays on one of them
// and runs on it alone, so __shared__ is thread-local storage. The threads of a block run one after another, as a
// plain loop that the compiler may vectorise. Only when a thread reaches a barrier or a warp primitive and has to
// wait do the threads after it get stacks of their own (fibers) and take turns, switching at barriers. Which OS
// thread runs a block changes nothing in the result.
#pragma once

#define __shared__ static __thread
#define MINIRES_UNWATCHED
#define MINIRES_DYNAMIC_SHARED extern __thread
#define MINIRES_DYNAMIC_MEMORY(bytes)                                       \
    extern "C" {                                                            \
    __attribute__((aligned(128), visibility("hidden"))) __thread char minires_dynamic_shared[bytes]; \
    }

static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}

static __thread uint3 threadIdx, blockIdx;
static __thread dim3 gridDim, blockDim;

// ---------------------------------------------------------------------------------------------------------------
// Fibers: a stack each, and a switch of a few instructions

extern "C" {  // runtime.cpp
char* minires_take_stack();
void minires_give_stack(char* base);
int64_t minires_run(void (*work)(void* launch, const unsigned* grid_and_block, void** args), const unsigned* grid_and_block,
                    void** args, unsigned threads, char* message);
bool minires_take(void* launch, uint64_t* begin, uint64_t* end);
void minires_stopped(void* launch, uint64_t block, const char* message);
}

namespace minires {

struct Fiber {
    void* context;  // where to continue it while it is parked between two uses
    char* stack;
};

// ---------------------------------------------------------------------------------------------------------------
// A block of threads in flight on this OS thread

struct Block {
    unsigned count;         // threads in the block
    unsigned started;       // threads 0 .. started-1 have begun
    unsigned exited;        // how many of those have ended
    unsigned arrived;       // how many wait at the block's barrier
    unsigned generation;    // of that barrier: thread t waits there while waiting_for[t] == generation
    unsigned running;       // the thread that runs now, once threads are fibers
    unsigned first;         // the thread that waited first: it stays on the OS thread's own stack
    unsigned converging;    // how many wait in __activemask()
    bool suspended;         // some thread has waited, so the threads have become fibers
    bool stopped;           // by a deadlock or a failed assertion
    int votes[3];           // of __syncthreads_count; [generation % 3] is added to while the one before is still read
    void (*body)(void** args);
    void** args;
    void* context[1024];          // of each thread that waits
    unsigned waiting_for[1024];   // a barrier's generation
    unsigned warp_ended[32];      // bit l of word w: lane l of warp w has ended, or does not exist
    unsigned warp_waiting[32];    // bit l of word w: lane l of warp w waits at a warp primitive ...
    unsigned warp_mask[1024];     // ... for the lanes of warp_mask[thread]; for all that come where it is 0
    uint64_t warp_offered[1024];  // by each thread to the others of its mask ...
    uint64_t warp_shown[1024];    // ... which see it from when all of them have come until the next time
    char message[512] = "";       // of a failed assertion
    Fiber fibers[1024], *parked[1024], *entering;
    unsigned fiber_count = 0, parked_count = 0;
};
static __thread Block* block;
struct Stop {};

static inline unsigned linear_thread() {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
static void set_thread(unsigned t) {
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

static inline bool runnable(const Block& b, unsigned t) {
    const unsigned idle = b.warp_ended[t / 32] | b.warp_waiting[t / 32];
    return b.waiting_for[t] != b.generation && !(idle >> (t % 32) & 1);
}

// The thread to run when t cannot: the next one in cyclic order, so that all reach a barrier in order. The first
// one, which owns the OS thread's stack, when all have ended or none can run.
static inline unsigned next_thread(Block& b, unsigned t) {
    for (unsigned i = 1; i <= b.count; ++i) {
        unsigned u = t + i < b.count ? t + i : t + i - b.count;
        if (u == b.started || (u < b.started && runnable(b, u))) return u;
    }
    b.stopped = b.exited < b.count;
    return b.first;
}

static void enter_fiber();

static Fiber* take_fiber(Block& b) {
    if (b.parked_count) return b.parked[--b.parked_count];
    char* const stack = minires_take_stack();
    Fiber& fiber = b.fibers[b.fiber_count++];
    // Stacks a power of two apart would share a few cache sets: stagger them.
    fiber = {first_context(stack + stack_bytes - (b.fiber_count % 61) * 192 - 64, enter_fiber), stack};
    return &fiber;
}

static inline void switch_to(Block& b, void** save, unsigned u) {
    if (u < b.started) {
        minires_switch(save, b.context[u]);
    } else {
        b.entering = take_fiber(b);
        minires_switch(save, b.entering->context);
    }
}

static inline void release_if_complete(Block& b) {
    if (b.arrived && b.arrived == b.count - b.exited) {
        b.arrived = 0;
        ++b.generation;
        b.votes[(b.generation + 1) % 3] = 0;
    }
}

// The last lane to arrive shows all values, so that a shuffle needs no second wait.
static inline void release_lanes_if_complete(Block& b, unsigned warp, unsigned mask) {
    const unsigned expected = mask & ~b.warp_ended[warp];
    if ((b.warp_waiting[warp] & expected) != expected) return;
    for (unsigned rest = expected; rest; rest &= rest - 1) {
        const unsigned t = warp * 32 + __builtin_ctz(rest);
        b.warp_shown[t] = b.warp_offered[t];
    }
    b.warp_waiting[warp] &= ~mask;
}

// Once no lane of a warp can go on, those that wait at the same __activemask() have converged: it gives their mask.
static void release_converged(Block& b, unsigned warp) {
    unsigned rest = ~(b.warp_ended[warp] | b.warp_waiting[warp]), first = 32, converged = 0;
    for (; rest; rest &= rest - 1) {
        const unsigned t = warp * 32 + __builtin_ctz(rest);
        if (t >= b.started || b.waiting_for[t] != b.generation) return;
    }
    for (unsigned l = 0; l < 32; ++l) {
        if (!(b.warp_waiting[warp] >> l & 1) || b.warp_mask[warp * 32 + l] != 0) continue;
        if (first == 32) first = l;
        if (b.warp_offered[warp * 32 + l] == b.warp_offered[warp * 32 + first]) converged |= 1u << l;
    }
    for (unsigned l = 0; l < 32; ++l)
        if (converged >> l & 1) b.warp_shown[warp * 32 + l] = converged, --b.converging;
    b.warp_waiting[warp] &= ~converged;
}

static void finish_thread(Block& b, unsigned t) {
    b.warp_ended[t / 32] |= 1u << (t % 32);
    ++b.exited;
    release_if_complete(b);
    const unsigned warp = t / 32;
    for (unsigned l = 0; b.warp_waiting[warp] && l < 32; ++l)
        if (b.warp_waiting[warp] >> l & 1 && b.warp_mask[warp * 32 + l])
            release_lanes_if_complete(b, warp, b.warp_mask[warp * 32 + l]);
    if (b.converging) release_converged(b, warp);
}

// A fiber runs the threads that have not begun, until one of them waits; then it is that thread's stack.
static void enter_fiber() {
    Fiber* const self = block->entering;
    for (;;) {
        Block& b = *block;
        unsigned t = b.count;
        while (b.started < b.count) {
            t = b.started++;
            set_thread(b.running = t);
            b.body(b.args);
            t = b.running;
            finish_thread(b, t);
        }
        unsigned u = next_thread(b, t);
        b.parked[b.parked_count++] = self;
        minires_switch(&self->context, b.context[u]);
    }
}

// At the first wait the threads before this one have all ended and those after it have not begun.
static void become_fibers(Block& b) {
    const unsigned t = linear_thread(), warps = (b.count + 31) / 32;
    b.suspended = true;
    b.running = t;
    b.stopped = false;
    b.converging = 0;
    b.first = b.exited = t;
    b.started = t + 1;
    b.arrived = 0;
    b.generation = 1;
    b.votes[0] = b.votes[1] = b.votes[2] = 0;
    memset(b.waiting_for, 0, b.count * sizeof *b.waiting_for);
    memset(b.warp_ended, 0, sizeof b.warp_ended);
    memset(b.warp_waiting, 0, sizeof b.warp_waiting);
    if (b.count % 32) b.warp_ended[warps - 1] = ~0u << (b.count % 32);
    for (unsigned u = 0; u < t; ++u) b.warp_ended[u / 32] |= 1u << (u % 32);
}

static inline void wait(Block& b, unsigned t) {
    const uint3 self = threadIdx;
    const unsigned u = next_thread(b, t);
    if (u != t) switch_to(b, &b.context[t], u);
    if (b.stopped) throw Stop{};  // only on the OS thread's own stack
    b.running = t;
    threadIdx = self;
}

// Called on the OS thread's own stack when its thread has ended: runs the others to their end.
static void drain(Block& b) {
    finish_thread(b, b.first);
    const unsigned u = next_thread(b, b.first);
    if (u != b.first) switch_to(b, &b.context[b.first], u);
    if (b.stopped) throw Stop{};
}

// Ends the launch with a message from the running thread.
[[noreturn]] static void stop(const char* file, int line, const char* what) {
    Block& b = *block;
    const uint3 t = threadIdx, i = blockIdx;
    snprintf(b.message, sizeof b.message, "%s:%d, block (%u, %u, %u), thread (%u, %u, %u): %s", file, line, i.x, i.y, i.z, t.x, t.y,
             t.z, what);
    b.stopped = true;
    if (b.suspended && b.running != b.first) {
        void* abandoned;
        minires_switch(&abandoned, b.context[b.first]);
    }
    throw Stop{};
}

// The stacks go back to where other kernels take them from; no frame on them returns any more.
static void release_fibers(Block& b) {
    for (unsigned i = 0; i < b.fiber_count; ++i) minires_give_stack(b.fibers[i].stack);
    b.fiber_count = b.parked_count = 0;
}

}  // namespace minires

// ---------------------------------------------------------------------------------------------------------------
// Barriers and warp primitives

static __attribute__((noinline)) void __syncthreads() {
    using namespace minires;
    Block& b = *block;
    if (b.count == 1) return;
    if (!b.suspended) become_fibers(b);
    const unsigned t = b.running;
    b.waiting_for[t] = b.generation;
    ++b.arrived;
    release_if_complete(b);
    if (b.converging && !runnable(b, t)) release_converged(b, t / 32);
    if (!runnable(b, t)) wait(b, t);
}

static __attribute__((noinline)) void __syncwarp(unsigned mask = 0xffffffffu) {
    using namespace minires;
    Block& b = *block;
    if (!b.suspended) become_fibers(b);
    const unsigned t = b.running, warp = t / 32;
    b.warp_waiting[warp] |= 1u << (t % 32);
    b.warp_mask[t] = mask;
    release_lanes_if_complete(b, warp, mask);
    if (b.converging && !runnable(b, t)) release_converged(b, warp);
    if (!runnable(b, t)) wait(b, t);
}

namespace minires {
// Shows 8 bytes to the lanes of the mask, and gives what the lanes of this thread's warp show.
static const uint64_t* exchange(unsigned mask, uint64_t value, const char*, int) {
    Block& b = *block;
    if (!b.suspended) become_fibers(b);
    const unsigned t = b.running;
    b.warp_offered[t] = value;
    __syncwarp(mask);
    return &b.warp_shown[t / 32 * 32];
}

static inline void check_lane(unsigned, unsigned, const char*, int) {}

static unsigned converge(const char*, int line) {
    Block& b = *block;
    if (!b.suspended) become_fibers(b);
    const unsigned t = b.running, warp = t / 32;
    b.warp_offered[t] = unsigned(line);
    b.warp_waiting[warp] |= 1u << (t % 32);
    b.warp_mask[t] = 0;
    ++b.converging;
    release_converged(b, warp);
    if (!runnable(b, t)) wait(b, t);
    return unsigned(b.warp_shown[t]);
}

// How many threads of the block say yes.
static int vote(bool yes, const char*, int) {
    Block& b = *block;
    if (b.count == 1) return yes;
    if (!b.suspended) become_fibers(b);
    const unsigned slot = b.generation % 3;
    b.votes[slot] += yes;
    __syncthreads();
    return b.votes[slot];
}

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

#define __syncthreads_count(predicate) minires::vote(bool(predicate), __FILE__, __LINE__)

// ---------------------------------------------------------------------------------------------------------------
// A launch: the grid's blocks over a pool of OS threads

namespace minires {

template <auto K> struct Kernel;
template <class... A, void (*K)(A...)> struct Kernel<K> {
    static void body(void** args) { call(K, args); }

    static void all_threads(A... a) {
        const dim3 threads = blockDim;
        Block& b = *block;
        b.suspended = false;
        for (unsigned z = 0; z < threads.z; ++z)
            for (unsigned y = 0; y < threads.y; ++y)
                for (unsigned x = 0; x < threads.x; ++x) {
                    threadIdx = {x, y, z};
                    K(a...);
                    if (b.suspended) return drain(b);
                }
    }

    // What each OS thread that takes part does: run shares of the blocks until none is left.
    static void work_(void* launch, const unsigned* g, void** args) {
        if (!block) block = new Block;  // its arrays are filled when threads become fibers, if they do
        Block& b = *block;
        gridDim = {g[0], g[1], g[2]};
        blockDim = {g[3], g[4], g[5]};
        b.count = g[3] * g[4] * g[5];
        b.body = body;
        b.args = args;
        for (uint64_t begin, end; minires_take(launch, &begin, &end);) {
            for (uint64_t i = begin; i < end; ++i) {
                blockIdx = {unsigned(i % g[0]), unsigned(i / g[0] % g[1]), unsigned(i / g[0] / g[1])};
                try {
                    call(all_threads, args);
                } catch (Stop) {
                    minires_stopped(launch, i, b.message);
                    *b.message = 0;
                    return release_fibers(b);
                }
            }
        }
        release_fibers(b);
    }
};

}  // namespace minires

#define MINIRES_KERNEL(id, ...)  /* a kernel's own macros do not end in _ */                                    \
    extern "C" __attribute__((visibility("default"))) int64_t minires_launch_##id(                            \
        const unsigned* geometry_, void** args_, unsigned threads_, char* message_) {                          \
        return minires_run(minires::Kernel<__VA_ARGS__>::work_, geometry_, args_, threads_, message_);          \
    }                                                                                                          \
    MINIRES_PARAMETERS(id, __VA_ARGS__)

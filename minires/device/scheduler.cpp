// How the threads of a block take turns: each runs until it waits, at a barrier or a warp primitive, and then the next one
// that can go on does, in turn. A fiber runs threads from their beginning until one waits; then it is that thread's stack.
#include "scheduler.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <mutex>
#include <unordered_set>

#include "fibers.h"

// What stands between a waiting thread and the next one is inlined: a small frame on each of many stacks stays in the cache.
#define INLINE static inline __attribute__((always_inline))

namespace minires {

struct Stop {};

struct Owner {  // until the OS thread ends
    Block* const block = static_cast<Block*>(aligned_alloc(alignof(Block), sizeof(Block)));
    stack_t signal_stack{};
    Owner() {
        block->fiber_count = block->parked_count = 0;
        signal_stack.ss_sp = malloc(signal_stack.ss_size = 64 * 1024);
    }
    ~Owner() {
        stack_t none = signal_stack;
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
        free(signal_stack.ss_sp);
        for (unsigned i = 0; i < block->fiber_count; ++i) munmap(block->fibers[i].stack, stack_bytes);
        free(block);
    }
};

static const Owner& owner() {
    static thread_local const Owner of_this_thread;
    return of_this_thread;
}
Block& this_block() { return *owner().block; }

uint3 index_of(const Block& b, unsigned t) {
    const uint3 n = *b.now->threads_;
    return {t % n.x, t / n.x % n.y, t / (n.x * n.y)};
}

static void fault(Block& b, unsigned t, const char* what) {
    b.watcher->fault("sync", t, what);
    b.stopped = true;
}

// What releases threads that wait

static void check_barrier(Block& b) {
    unsigned last = 0, gone = 0;
    b.watcher->all_wait();
    for (unsigned t = 0; t < b.count; ++t) {
        if (b.wait[t] == BARRIER) last = t;
        else gone = t;
    }
    for (unsigned t = 0; t < b.count && !b.stopped; ++t)
        if (b.wait[t] == BARRIER && b.threads[t].mask != b.threads[last].mask)
            fault(b, t, "a barrier that other threads of the block never reach");
    if (b.stopped || !b.exited || !b.watcher->strict) return;
    const uint3 index = index_of(b, gone);
    char text[400];
    snprintf(text, sizeof text,
             "this thread waits at a barrier that thread (%u, %u, %u) has left without; GPUs since Volta go on, but "
             "CUDA allows a barrier in conditional code only where the condition is the same for the whole block",
             index.x, index.y, index.z);
    fault(b, last, text);
}

static void release_barrier_if_complete(Block& b) {
    if (!b.arrived || b.arrived + b.exited < b.count) return;
    if (b.watcher) check_barrier(b);
    if (b.stopped) return;
    for (unsigned t = 0; t < b.count; ++t) b.wait[t] = b.wait[t] == BARRIER ? READY : b.wait[t];
    b.arrived = 0;
    b.votes[(++b.generation + 1) % 3] = 0;
    if (!b.watcher) return;
    b.watcher->released(BARRIER, 0, b.count);
    b.watcher->reorder(b.turns, b.count);
    b.position = b.count - 1;
}

// Releases the lanes that thread t waits for, once they have come; the running thread, or one that has ended, is the last.
INLINE void release_lanes_if_complete(Block& b, unsigned t, unsigned last) {
    const unsigned warp = t / 32, mask = b.threads[t].mask, expected = b.watcher ? mask : mask & ~b.ended[warp];
    if ((b.waiting[warp] & expected) != expected) return;
    for (unsigned u = warp * 32; u < warp * 32 + 32 && b.watcher; ++u)
        if (mask >> (u % 32) & 1 && (b.threads[u].mask != mask || b.threads[u].line != b.threads[t].line)) return;
    for (unsigned rest = expected; rest; rest &= rest - 1) {
        const unsigned lane = __builtin_ctz(rest), u = warp * 32 + lane;
        b.shown[last][lane] = b.threads[u].offered;
        b.threads[u].seen = b.shown[last];
        b.wait[u] = READY;
    }
    b.waiting[warp] &= ~mask;
    if (b.watcher && b.threads[t].is_barrier) b.watcher->released(WARP, warp * 32, warp * 32 + 32);
}

// Once nobody can go on, the lanes of a warp that wait at the same __activemask() have converged.
static bool release_converged(Block& b) {
    bool released = false;
    for (unsigned t = 0; t < b.count; ++t) {
        if (b.wait[t] != CONVERGE) continue;
        unsigned lanes = 0;
        for (unsigned u = t; u < b.count && u / 32 == t / 32; ++u)
            if (b.wait[u] == CONVERGE && b.threads[u].line == b.threads[t].line) lanes |= 1u << (u % 32);
        for (unsigned rest = lanes; rest; rest &= rest - 1) {
            const unsigned u = t / 32 * 32 + __builtin_ctz(rest);
            b.wait[u] = READY;
            b.threads[u].mask = lanes;
        }
        released = true;
    }
    return released;
}

static void check_end(Block& b) {
    if (b.watcher) b.watcher->all_wait();
    for (unsigned t = 0; b.watcher && t < b.count && !b.stopped; ++t) {
        if (b.wait[t] != WARP) continue;
        const bool comes = (b.threads[t].mask & b.ended[t / 32]) == 0;
        fault(b, t, comes ? "a warp primitive that lanes of its mask never reach" : "the mask names lanes that are absent or have ended");
    }
    b.stopped |= b.exited < b.count;
}

// Turns

// The next thread that can go on; the first one, which owns the OS thread's stack, when all have ended or none can. Without a
// watcher those of the same warp come first, so that the stacks of a warp that shuffles stay in the cache.
INLINE unsigned next(Block& b) {
    for (unsigned i = 1, t = b.running; i <= 32 && !b.watcher && !b.stopped; ++i) {
        const unsigned u = (t & ~31u) + (t + i) % 32;
        if (u < b.count && b.wait[u] == READY) return b.position = u;
    }
    do {
        for (unsigned i = 0; i < b.count && !b.stopped; ++i) {
            b.position = b.position + 1 < b.count ? b.position + 1 : 0;
            const unsigned t = b.turns[b.position];
            if (b.wait[t] == READY) return t;
        }
    } while (!b.stopped && release_converged(b));
    if (!b.stopped) check_end(b);
    return b.first;
}

static void finish(Block& b, unsigned t) {
    b.wait[t] = DONE;
    b.ended[t / 32] |= 1u << (t % 32);
    ++b.exited;
    release_barrier_if_complete(b);
    for (unsigned rest = b.waiting[t / 32]; rest; rest &= rest - 1)
        release_lanes_if_complete(b, t / 32 * 32 + __builtin_ctz(rest), t);
}

static void enter_fiber() {
    Block& b = this_block();
    Fiber* const self = b.entered;
    for (;;) {
        unsigned t = b.running;
        *b.now->thread_ = index_of(b, t);
        b.threads[t].stack = self->stack;
        if (b.watcher) b.watcher->begins();
        b.kernel->one_(b.args);
        finish(b, t);
        t = b.running = next(b);
        if (!b.threads[t].context) continue;  // it has not begun
        b.parked[b.parked_count++] = self;
        minires_switch(&self->context, b.threads[t].context);
    }
}

// Stacks a power of two apart would share a few cache sets: they are staggered.
static void renew(Block& b, unsigned i) {
    b.fibers[i].context = first_context(b.fibers[i].stack + stack_bytes - i % 61 * 192 - 64, enter_fiber);
}

static __attribute__((noinline)) Fiber* take_fiber(Block& b) {
    if (b.parked_count) return b.parked[--b.parked_count];
    void* const stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        minires_stop(b.now, __FILE__, __LINE__, "the system has no more stacks for threads: set MINIRES_NUM_THREADS lower");
    mprotect(stack, guard_bytes, PROT_NONE);
    const unsigned i = b.fiber_count++;
    b.fibers[i].stack = static_cast<char*>(stack);
    renew(b, i);
    return &b.fibers[i];
}

// After a stop: fibers were left in the middle of a thread, whose marks AddressSanitizer would take for the next one's.
static void renew_fibers(Block& b) {
    using Unpoison = void (*)(const volatile void*, size_t);
    static const auto unpoison = reinterpret_cast<Unpoison>(dlsym(RTLD_DEFAULT, "__asan_unpoison_memory_region"));
    for (unsigned i = 0; i < b.fiber_count; ++i) {
        if (unpoison) unpoison(b.fibers[i].stack + guard_bytes, stack_bytes - guard_bytes);
        renew(b, i);
        b.parked[i] = &b.fibers[i];
    }
    b.parked_count = b.fiber_count;
}

INLINE void go_to(Block& b, unsigned from, unsigned t) {
    void* context = b.threads[t].context;
    if (!context) {
        b.entered = take_fiber(b);
        context = b.entered->context;
    }
    b.running = t;
    minires_switch(&b.threads[from].context, context);
}

// Lets the others run until the running thread can go on.
INLINE void pause(Block& b) {
    const unsigned t = b.running, u = next(b);
    if (u != t) {
        const uint3 self = *b.now->thread_;
        go_to(b, t, u);
        b.running = t;
        *b.now->thread_ = self;
    }
    if (b.stopped) throw Stop{};  // only on the OS thread's own stack
}

// Threads before t have ended, t runs, on the OS thread's own stack, and those after it have not begun.
static __attribute__((noinline)) void become_fibers(Block& b, unsigned t) {
    b.now->are_fibers_ = true;
    b.first = b.running = t;
    b.exited = b.position = t;
    b.arrived = 0;
    b.generation = 1;
    memset(b.votes, 0, sizeof b.votes);
    memset(b.wait, DONE, t);
    memset(b.wait + t, READY, b.count - t);
    memset(b.waiting, 0, sizeof b.waiting);
    memset(b.ended, 0, sizeof b.ended);
    for (unsigned u = 0; u < t; ++u) b.ended[u / 32] |= 1u << (u % 32);
    if (b.count % 32) b.ended[b.count / 32] |= ~0u << (b.count % 32);
    for (unsigned u = 0; u < b.count; ++u) b.turns[u] = u, b.threads[u].context = nullptr;
}

static void run_as_fibers(Block& b) {
    become_fibers(b, 0);
    b.first = b.running = most_threads;  // nobody
    b.watcher->reorder(b.turns, b.count);
    b.position = b.count - 1;
}

// Signals: what a GPU survives, or ends a launch for, must not end the process. The thread's block ends where it was begun.

static __thread Block* running;  // on this OS thread, now
constexpr int signals[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT};
static struct sigaction before[5];  // who was asked of each

struct Machine { uint64_t pc, stack; };
static Machine machine_of(void* context) {
    const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__APPLE__) && defined(__aarch64__)
    return {machine->__ss.__pc, machine->__ss.__sp};
#elif defined(__APPLE__)
    return {machine->__ss.__rip, machine->__ss.__rsp};
#elif defined(__x86_64__)
    return {uint64_t(machine.gregs[REG_RIP]), uint64_t(machine.gregs[REG_RSP])};
#else
    return {machine.pc, machine.sp};
#endif
}

static void on_signal(int number, siginfo_t* info, void* context) {
    Block* const b = running;
    if (!b || (number == SIGABRT && !b->ends_process)) {  // not a kernel's: it comes again, to who was asked before
        for (int i = 0; i < 5; ++i)
            if (signals[i] == number) sigaction(number, &before[i], nullptr);
        return;
    }
    running = nullptr;
    const Machine now = machine_of(context);
    const uint64_t address = uint64_t(info->si_addr);
    const bool is_memory = number == SIGSEGV || number == SIGBUS;
    const bool overflowed = is_memory && address + guard_bytes > now.stack && address < now.stack + guard_bytes;
    char what[200];
    snprintf(what, sizeof what,
             number == SIGFPE   ? "an integer was divided by zero, or the smallest one by -1; a GPU goes on, with some value"
             : number == SIGABRT ? b->ends_process
             : number == SIGILL ? "what comes here is undefined: a function that ends without its value, or an endless loop"
             : overflowed       ? "the thread's stack overflowed: endless recursion, or large local arrays"
                                : "an access to address 0x%llx, where nothing is", (unsigned long long)address);
    const char* const kind = overflowed ? "sync" : is_memory || number == SIGABRT ? "mem" : "value";
    const uint3 t = *b->now->thread_, g = *b->now->block_;
    if (b->watcher) b->watcher->signalled(kind, what, now.pc);
    else snprintf(b->message, sizeof b->message, "block (%u, %u, %u), thread (%u, %u, %u): %s", g.x, g.y, g.z, t.x, t.y, t.z, what);
    siglongjmp(b->landing, 1);
}

static void listen() {
    static const bool is_address_sanitized = dlsym(RTLD_DEFAULT, "__asan_unpoison_memory_region");  // which tells more
    if (is_address_sanitized) return;
    sigaltstack(&owner().signal_stack, nullptr);
    for (int i = 0; i < 5; ++i) {
        struct sigaction action {}, old {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(signals[i], &action, &old);
        if (old.sa_sigaction != on_signal) before[i] = old;
    }
}

void prepare(Block& b, const minires_kernel* kernel, const unsigned* g, void** args, Watcher* watcher) {
    b.kernel = kernel;
    b.now = kernel->state_();
    b.args = args;
    b.watcher = watcher;
    b.count = g[3] * g[4] * g[5];
    *b.now->grid_ = {g[0], g[1], g[2]};
    *b.now->threads_ = {g[3], g[4], g[5]};
    b.now->scheduler_ = &b;
    listen();
}

bool run(Block& b, uint64_t i) {
    const uint3 grid = *b.now->grid_;
    *b.now->block_ = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    b.now->are_fibers_ = b.stopped = false;
    *b.message = 0;
    running = &b;
    b.ends_process = nullptr;
    if (sigsetjmp(b.landing, 0)) b.stopped = true;
    else try {
        if (b.watcher) run_as_fibers(b);
        else b.kernel->all_(b.args);
        if (b.now->are_fibers_) {
            if (b.first < b.count) finish(b, b.first);
            const unsigned t = next(b);
            if (t != b.first) go_to(b, b.first, t);
        }
    } catch (Stop) {
    }
    running = nullptr;
    if (b.stopped) renew_fibers(b);
    return !b.stopped;
}

void leave(Block& b) {
    b.stopped = true;
    if (b.now->are_fibers_) pause(b);
    throw Stop{};
}

}  // namespace minires

// What kernels call: see launch.h

using namespace minires;

INLINE Block& block_of(minires_state* state) {
    Block& b = *static_cast<Block*>(state->scheduler_);
    if (!state->are_fibers_) {
        const uint3 t = *state->thread_, n = *state->threads_;
        become_fibers(b, t.x + n.x * (t.y + n.y * t.z));
    }
    return b;
}

INLINE void wait(Block& b, Wait what, unsigned mask, const char* file, int line) {
    const unsigned t = b.running, warp = t / 32;
    b.wait[t] = what;
    b.threads[t].mask = mask;
    b.threads[t].file = file;
    b.threads[t].line = line;
    if (what == BARRIER) {
        ++b.arrived;
        release_barrier_if_complete(b);
    } else if (what == WARP) {
        b.waiting[warp] |= 1u << (t % 32);
        if (b.watcher && !(mask >> (t % 32) & 1)) fault(b, t, "a lane that its own mask does not name");
        release_lanes_if_complete(b, t, t);
    }
    pause(b);
}

extern "C" {

static void end(const char* what) {  // on_signal ends the launch
    if (running) running->ends_process = what;
    abort();
}
void minires_exit(int) { end("exit() was called, which no GPU has"); }
void minires_abort() { end("abort() was called, which no GPU has"); }

static std::mutex heap_mutex;
static std::unordered_set<void*> heap;  // what kernels have allocated
void* minires_allocate(size_t bytes) {
    void* const place = malloc(bytes);
    const std::lock_guard<std::mutex> lock(heap_mutex);
    return *heap.insert(place).first;
}
void minires_release(void* place) {
    {
        const std::lock_guard<std::mutex> lock(heap_mutex);
        if (heap.erase(place)) return free(place);
    }
    if (place) end("memory was freed twice, or was not from malloc or new");
}

void minires_barrier(minires_state* state, int id, const char* file, int line) {
    Block& b = *static_cast<Block*>(state->scheduler_);
    if (b.count > 1 || b.watcher) wait(block_of(state), BARRIER, unsigned(id), file, line);
}

int minires_vote(minires_state* state, bool yes, int id, const char* file, int line) {
    Block& b = block_of(state);
    int& count = b.votes[b.generation % 3];
    count += yes;
    wait(b, BARRIER, unsigned(id), file, line);
    return count;
}

const uint64_t* minires_exchange(minires_state* state, unsigned mask, unsigned source, uint64_t value, const char* file, int line) {
    Block& b = block_of(state);
    b.threads[b.running].offered = value;
    b.threads[b.running].is_barrier = source == 33;
    wait(b, WARP, mask, file, line);
    if (source < 32 && !(mask >> source & 1) && b.watcher && b.watcher->strict) {
        fault(b, b.running, "a shuffle from a lane that the mask does not name");
        leave(b);
    }
    return b.threads[b.running].seen;
}

unsigned minires_converge(minires_state* state, const char* file, int line) {
    Block& b = block_of(state);
    wait(b, CONVERGE, 0, file, line);
    return b.threads[b.running].mask;
}

void minires_stop(minires_state* state, const char* file, int line, const char* what) {
    Block& b = *static_cast<Block*>(state->scheduler_);
    const uint3 t = *state->thread_, i = *state->block_;
    if (b.watcher) {
        b.threads[b.running].file = file;
        b.threads[b.running].line = line;
        b.watcher->fault("assert", b.running, what);
    } else {
        snprintf(b.message, sizeof b.message, "%s:%d, block (%u, %u, %u), thread (%u, %u, %u): %s", file, line, i.x, i.y, i.z,
                 t.x, t.y, t.z, what);
    }
    leave(b);
}
}

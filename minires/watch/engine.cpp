// Runs blocks of a launch thread by thread, in a chosen order, and tells an observer of every access. Linked with kernels
// that are compiled under watched.h, and with the observers: checks.cpp and counters.cpp.
#include "engine.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <unordered_map>

#include "../device/fibers.h"
minires_state minires_now;

namespace watch {

using minires::minires_switch;

enum Wait { READY, BARRIER, WARP, CONVERGE, DONE };
struct Thread {
    Wait wait;
    void* context;
    char* stack;
    unsigned mask;  // of a warp primitive; the number of a barrier
    const char* file;
    int line;
    long long clock;
    unsigned fenced, acquired;  // its last fence, and the last one of others that an atomic operation has passed on to it
};

constexpr size_t stack_size = 256 * 1024, guard_size = 64 * 1024, red_zone = 1024, most_shared = 48 * 1024;
constexpr uint64_t most_looks = 10'000'000;

std::vector<Array> arrays;
size_t arguments;
unsigned running, checks, block_number, epoch, fences;
std::vector<unsigned> warp_epochs;
Report* report;

static Observer* observer;
static std::map<const void*, size_t> shared_index;
static std::vector<char*> shared_memory;
static std::vector<Thread> threads;
static std::vector<char*> stacks;
static std::vector<uint64_t> offered, shown;  // by each thread to the lanes of its warp
static void* scheduler;
static bool watching, failed;
static int votes[3];
static uint64_t dynamic_bytes;
static void (*body)(void**);
static void** body_args;
static char *image_begin, *image_end;
static std::unordered_map<const void*, unsigned> released;  // by atomic operations at a place: the last fence before them
static std::map<char*, size_t> heap;  // what threads have allocated: not watched

extern "C" {
// `extern __shared__` arrays are this symbol, whatever their names: see cpu.py.
alignas(128) char minires_dynamic_shared[red_zone + most_shared];
}

uint3 index_of(unsigned t) {
    const uint3 n = minires_now.threads;
    return {t % n.x, t / n.x % n.y, t / n.x / n.y};
}

unsigned acquired() { return threads[running].acquired; }

// What one thread has done before a fence and an atomic operation, another one sees after an atomic operation at that place.
static void pass_on(const void* where) {
    unsigned& last = released[where];
    threads[running].acquired = std::max(threads[running].acquired, last);
    last = std::max(last, threads[running].fenced);
}

// A barrier of the threads first .. end-1 passes on what each of them has seen.
static void pass_on(unsigned first, size_t end) {
    unsigned fenced = 0, acquired = 0;
    for (size_t t = first; t < end; ++t)
        fenced = std::max(fenced, threads[t].fenced), acquired = std::max(acquired, threads[t].acquired);
    for (size_t t = first; t < end; ++t) threads[t].fenced = fenced, threads[t].acquired = acquired;
}

// The threads' stacks are left as they are.
void fail(const char* kind) {
    watching = false;
    failed = true;
    snprintf(report->kind, sizeof report->kind, "%s", kind);
    report->block = minires_now.block;
    report->thread = index_of(running);
}

[[noreturn]] void leave() {
    void* abandoned;
    minires_switch(&abandoned, scheduler);
    abort();
}

void name_array(const Array& array, int64_t index) {
    report->region = array.number;
    report->index = index;
    report->elements = array.bytes / array.element;
    snprintf(report->name, sizeof report->name, "%s", array.name ? array.name : "");
}

static void sync_error(unsigned t, const char* what) {
    running = t;
    snprintf(report->text, sizeof report->text, "%s:%d: %s", threads[t].file, threads[t].line, what);
    fail("sync");
}

// The array that holds the address, or the one nearest to it.
static Array* nearest(const char* address, bool* inside) {
    Array* best = nullptr;
    uint64_t best_distance = UINT64_MAX;
    for (Array& a : arrays) {
        if (address >= a.base && address < a.base + a.bytes) return *inside = true, &a;
        const uint64_t distance = address < a.base ? a.base - address : address - (a.base + a.bytes);
        if (distance < best_distance) best_distance = distance, best = &a;
    }
    *inside = false;
    return best;
}

// Threads take turns at barriers only, so one that looks at a place until another writes there would look for ever.
static void look_again(const void* where, void* caller) {
    static const void *last_place, *last_caller;
    static unsigned last_thread;
    static uint64_t times;
    times = where == last_place && caller == last_caller && running == last_thread ? times + 1 : 0;
    last_place = where, last_caller = caller, last_thread = running;
    if (times < most_looks) return;
    times = 0;
    snprintf(report->text, sizeof report->text,
             "this thread has looked at one place %llu times in a row: it waits for another thread, which need not run "
             "meanwhile if it is of another block; within a block use a barrier", (unsigned long long)most_looks);
    report->pc = uint64_t(static_cast<char*>(caller) - image_begin);
    fail("sync");
    leave();
}

static void access(void* where, size_t bytes, bool writes, void* caller, bool atomic = false) {
    if (!watching || bytes == 0) return;
    char* const address = static_cast<char*>(where);
    const char* const stack = threads[running].stack;
    if (address >= stack && address < stack + stack_size) return;
    look_again(where, caller);
    if (atomic) pass_on(where);
    bool inside;
    Array* array = nearest(address, &inside);
    if (!array) return;
    const auto after = heap.upper_bound(address);
    if (!inside && after != heap.begin() && address < std::prev(after)->first + std::prev(after)->second) return;
    const bool is_own = (address >= reinterpret_cast<char*>(&minires_now) && address < reinterpret_cast<char*>(&minires_now + 1)) ||
                        (address >= minires_dynamic_shared && address < minires_dynamic_shared + sizeof minires_dynamic_shared);
    if (!inside && (is_own || (address >= image_begin && address < image_end))) {  // constants and threadIdx: of no interest
        const auto in_reach = [&](const Array& a) { return address >= a.base && address < a.base + a.bytes + a.reach; };
        const auto found = std::find_if(arrays.begin(), arrays.end(), in_reach);
        if (found == arrays.end()) return;
        array = &*found;
    }
    observer->access({address, bytes, writes, atomic, uint32_t(static_cast<char*>(caller) - image_begin), array, inside});
}

static void wait(Wait wait, unsigned mask, const char* file, int line) {
    Thread& thread = threads[running];
    thread.wait = wait;
    thread.mask = mask;
    thread.file = file;
    thread.line = line;
    watching = false;
    minires_switch(&thread.context, scheduler);
    watching = true;
}

static void thread_entry() {
    body(body_args);
    watching = false;
    threads[running].wait = DONE;
    leave();
}

// Releases the lanes of a warp primitive that have all arrived; false where none had.
static bool release_warps() {
    bool released = false;
    for (unsigned t = 0; t < threads.size() && !failed; ++t) {
        if (threads[t].wait != WARP) continue;
        const unsigned first = t / 32 * 32, mask = threads[t].mask;
        if (!(mask >> (t % 32) & 1)) return sync_error(t, "a lane that its own mask does not name"), false;
        bool complete = true;
        for (unsigned lane = 0; lane < 32 && complete; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const unsigned u = first + lane;
            if (u >= threads.size() || threads[u].wait == DONE)
                return sync_error(t, "the mask names lanes that are absent or have ended"), false;
            complete = threads[u].wait == WARP && threads[u].mask == mask && threads[u].line == threads[t].line;
        }
        if (!complete) continue;
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            threads[first + lane].wait = READY;
            shown[first + lane] = offered[first + lane];
        }
        ++warp_epochs[t / 32];
        pass_on(first, std::min<size_t>(first + 32, threads.size()));
        released = true;
    }
    return released;
}

// Releases, in each warp, the lanes that wait at the same __activemask(): no other lane of the warp can come there now.
static bool release_converged() {
    bool released = false;
    for (unsigned t = 0; t < threads.size(); ++t) {
        if (threads[t].wait != CONVERGE) continue;
        const unsigned end = std::min<size_t>(t / 32 * 32 + 32, threads.size());
        unsigned lanes = 0;
        for (unsigned u = t; u < end; ++u)
            if (threads[u].wait == CONVERGE && threads[u].line == threads[t].line) lanes |= 1u << (u % 32);
        const int line = threads[t].line;
        for (unsigned u = t; u < end; ++u)
            if (threads[u].wait == CONVERGE && threads[u].line == line) threads[u].wait = READY, shown[u] = lanes;
        released = true;
    }
    return released;
}

// Releases the barrier if all threads of the block wait at it; reports why it can never be.
static void release_barrier() {
    unsigned at_barrier = 0, ended = 0;
    for (unsigned t = 0; t < threads.size(); ++t) {
        if (threads[t].wait == WARP) return sync_error(t, "a warp primitive that lanes of its mask never reach");
        if (threads[t].wait == BARRIER) at_barrier = t;
    }
    const Thread& waits = threads[at_barrier];
    for (unsigned t = 0; t < threads.size(); ++t) {
        if (threads[t].wait == BARRIER && threads[t].mask != waits.mask)
            return sync_error(t, "a barrier that other threads of the block never reach");
        if (threads[t].wait == DONE) ended = t + 1;
    }
    if (ended && (checks & SYNC)) {
        const uint3 gone = index_of(ended - 1);
        char text[400];
        snprintf(text, sizeof text,
                 "this thread waits at a barrier that thread (%u, %u, %u) has left without; GPUs since Volta go on, but "
                 "CUDA allows a barrier in conditional code only where the condition is the same for the whole block",
                 gone.x, gone.y, gone.z);
        return sync_error(at_barrier, text);
    }
    for (Thread& thread : threads)
        if (thread.wait == BARRIER) thread.wait = READY;
    votes[(++epoch + 1) % 3] = 0;
    pass_on(0, threads.size());
}

static void run_block(int order, std::mt19937_64& random) {
    const uint3 n = minires_now.threads;
    threads.assign(n.x * n.y * n.z, Thread{});
    warp_epochs.assign(threads.size() / 32 + 1, 0);
    offered.assign((threads.size() + 31) / 32 * 32, 0);
    shown = offered;
    epoch = 1;
    votes[0] = votes[1] = votes[2] = 0;
    arrays.resize(arguments);
    shared_index.clear();
    observer->begin_block();
    if (dynamic_bytes) {
        memset(minires_dynamic_shared, 0xff, sizeof minires_dynamic_shared);
        arrays.push_back({minires_dynamic_shared, dynamic_bytes, 1, 1, "of dynamic size, bytes", -1, nullptr,
                          sizeof minires_dynamic_shared - dynamic_bytes});
        observer->added(arrays.back());
    }
    while (stacks.size() < threads.size()) {
        char* base = static_cast<char*>(
            mmap(nullptr, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base == MAP_FAILED) abort();
        mprotect(base, guard_size, PROT_NONE);
        stacks.push_back(base);
    }
    for (unsigned t = 0; t < threads.size(); ++t) {
        threads[t].stack = stacks[t];
        threads[t].context = minires::first_context(stacks[t] + stack_size - 64, thread_entry);
    }
    std::vector<unsigned> turns(threads.size());
    std::iota(turns.begin(), turns.end(), 0u);
    if (order == REVERSE) std::reverse(turns.begin(), turns.end());
    for (;;) {
        if (order == RANDOM) std::shuffle(turns.begin(), turns.end(), random);
        for (const unsigned t : turns) {
            if (threads[t].wait != READY) continue;
            running = t;
            minires_now.thread = index_of(t);
            watching = false;
            minires_switch(&scheduler, threads[t].context);
            watching = false;
            if (failed) return;
        }
        const auto waits = [](Wait w) {
            return std::any_of(threads.begin(), threads.end(), [w](const Thread& t) { return t.wait == w; });
        };
        if (waits(WARP) && release_warps()) continue;
        if (!failed && waits(CONVERGE) && release_converged()) continue;
        if (!failed) observer->all_wait();
        if (failed || (!waits(WARP) && !waits(BARRIER))) return;
        release_barrier();
        if (failed) return;
    }
}

static void on_segmentation_fault(int number, siginfo_t* info, void*) {
    const char* address = static_cast<char*>(info->si_addr);
    if (watching && address >= threads[running].stack && address < threads[running].stack + guard_size) {
        snprintf(report->text, sizeof report->text, "the thread's stack overflowed: endless recursion, or large local arrays");
        fail("sync");
        leave();
    }
    signal(number, SIG_DFL);
}

int run(Observer& by, void (*kernel)(void**), const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
        const std::vector<Region>& regions, const std::vector<unsigned>& blocks, int order, uint64_t seed) {
    static char signal_stack[64 * 1024];
    Dl_info info;
    dladdr(reinterpret_cast<void*>(kernel), &info);
    image_begin = image_end = static_cast<char*>(info.dli_fbase);  // the end is told when a thread begins
    const unsigned* g = grid_and_block;
    minires_now = {{}, {}, {g[0], g[1], g[2]}, {g[3], g[4], g[5]}};
    observer = &by;
    body = kernel;
    body_args = args;
    dynamic_bytes = shared_bytes;
    failed = false;
    heap.clear();
    released.clear();
    fences = 0;
    arrays.clear();
    for (const Region& r : regions)
        arrays.push_back({r.base, r.bytes, r.element, r.cell, nullptr, int64_t(arrays.size()), r.initialized, 0});
    arguments = arrays.size();

    stack_t alternate{}, before;
    alternate.ss_sp = signal_stack;
    alternate.ss_size = sizeof signal_stack;
    struct sigaction action {}, previous, previous_bus;
    action.sa_sigaction = on_segmentation_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaltstack(&alternate, &before);
    sigaction(SIGSEGV, &action, &previous);
    sigaction(SIGBUS, &action, &previous_bus);  // macOS

    std::vector<unsigned> chosen = blocks;
    std::mt19937_64 random(seed);
    if (order == REVERSE) std::reverse(chosen.begin(), chosen.end());
    if (order == RANDOM) std::shuffle(chosen.begin(), chosen.end(), random);
    for (const unsigned b : chosen) {
        if (failed) break;
        block_number = b;
        minires_now.block = {b % g[0], b / g[0] % g[1], b / g[0] / g[1]};
        run_block(order, random);
        observer->end_block();
    }
    sigaction(SIGBUS, &previous_bus, nullptr);
    sigaction(SIGSEGV, &previous, nullptr);
    sigaltstack(&before, nullptr);
    return failed;
}

}  // namespace watch

// ---------------------------------------------------------------------------------------------------------------
// What kernels call: see watched.h; and what the compiler puts before each access

using namespace watch;

extern "C" {

void minires_enter(char* end_of_image) {
    image_end = end_of_image;
    watching = true;
}

void* minires_shared(const void* key, void* place, size_t bytes, size_t element, const char* name) {
    const auto [found, is_new] = shared_index.try_emplace(key, arrays.size());
    if (is_new) {
        const size_t slot = shared_index.size() - 1;
        if (bytes > most_shared) {
            snprintf(report->text, sizeof report->text, "shared array %s has %zu bytes: a block may have %zu", name, bytes,
                     most_shared);
            fail("mem");
            leave();
        }
        while (slot >= shared_memory.size())
            shared_memory.push_back(static_cast<char*>(aligned_alloc(128, most_shared + 2 * red_zone)));
        char* const base = place ? static_cast<char*>(place) : shared_memory[slot] + red_zone;
        memset(base - red_zone, 0xff, bytes + 2 * red_zone);
        const bool is_number = element == 1 || element == 2 || element == 4 || element == 8;
        const size_t cell = is_number ? element : element % 4 == 0 ? 4 : 1;
        arrays.push_back({base, bytes, element, cell, name, -1, nullptr, red_zone});
        observer->added(arrays.back());
    }
    return arrays[found->second].base;
}

void minires_barrier(int id, const char* file, int line) { wait(BARRIER, unsigned(id), file, line); }

const uint64_t* minires_exchange(unsigned mask, uint64_t value, const char* file, int line) {
    offered[running] = value;
    wait(WARP, mask, file, line);
    return &shown[running / 32 * 32];
}

void minires_check_lane(unsigned mask, unsigned lane, const char* file, int line) {
    if ((mask >> lane & 1) || !(checks & SYNC)) return;
    threads[running].file = file;
    threads[running].line = line;
    sync_error(running, "a shuffle from a lane that the mask does not name");
    leave();
}

unsigned minires_converge(const char* file, int line) {
    wait(CONVERGE, 0, file, line);
    return unsigned(shown[running]);
}

int minires_vote(int yes, int id, const char* file, int line) {
    int& count = votes[epoch % 3];
    count += yes;
    wait(BARRIER, unsigned(id), file, line);
    return count;
}

void minires_stop(const char* file, int line, const char* what) {
    threads[running].file = file;
    threads[running].line = line;
    sync_error(running, what);
    snprintf(report->kind, sizeof report->kind, "assert");
    leave();
}

void* minires_malloc(size_t bytes) {
    void* const place = malloc(bytes);
    heap[static_cast<char*>(place)] = bytes;
    return place;
}

void minires_fence() { threads[running].fenced = ++fences; }
long long minires_clock() { return threads[running].clock += 100; }  // the same in every order
void minires_atomic(void* address, size_t bytes, void* caller) { access(address, bytes, true, caller, true); }

#define MINIRES_ACCESS(name, bytes, writes) \
    void __tsan_##name(void* p) { access(p, bytes, writes, __builtin_return_address(0)); }
#define MINIRES_ACCESSES(n)                          \
    MINIRES_ACCESS(read##n, n, false)                \
    MINIRES_ACCESS(write##n, n, true)                \
    MINIRES_ACCESS(unaligned_read##n, n, false)      \
    MINIRES_ACCESS(unaligned_write##n, n, true)
MINIRES_ACCESSES(1)
MINIRES_ACCESSES(2)
MINIRES_ACCESSES(4)
MINIRES_ACCESSES(8)
MINIRES_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, __builtin_return_address(0)); }
void* __tsan_memset(void* p, int value, size_t bytes) {
    access(p, bytes, true, __builtin_return_address(0));
    return memset(p, value, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    access(const_cast<void*>(from), bytes, false, __builtin_return_address(0));
    access(to, bytes, true, __builtin_return_address(0));
    return memmove(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    access(const_cast<void*>(from), bytes, false, __builtin_return_address(0));
    access(to, bytes, true, __builtin_return_address(0));
    return memmove(to, from, bytes);
}
void __tsan_vptr_read(void** p) { access(p, sizeof *p, false, __builtin_return_address(0)); }
void __tsan_vptr_update(void** p, void*) { access(p, sizeof *p, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

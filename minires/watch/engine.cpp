// Watches the threads of a launch, in a chosen order, and tells an observer of every access. Linked with the observers,
// checks.cpp and trace.cpp, for kernels that are compiled under watched.h.
#include "engine.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <unordered_map>

namespace watch {

struct Thread {
    unsigned fenced, acquired;  // its last fence, and the last one of others that an atomic operation has passed on to it
    long long clock;
};

constexpr size_t red_zone = 1024, most_shared = 48 * 1024;
constexpr uint64_t most_looks = 10'000'000;

std::vector<Array> arrays;
size_t arguments;
minires::Block* block;
unsigned checks, block_number, fences;
std::vector<unsigned> warp_epochs;
Report* report;

static Observer* observer;
static std::map<const void*, size_t> shared_index;
static std::vector<char*> shared_memory;
static std::vector<Thread> threads;
static bool watching;  // not what a thread does before its kernel begins
static uint64_t dynamic_bytes;
static int order;
static std::mt19937_64 random_order;
static char *image_begin, *image_end;
static std::unordered_map<const void*, unsigned> released;  // by atomic operations at a place: the last fence before them
static std::map<char*, size_t> heap;  // what threads have allocated: not watched

extern "C" {
// `extern __shared__` arrays are this symbol, whatever their names: see cpu.py.
alignas(128) char minires_dynamic_shared[red_zone + most_shared];
}

unsigned acquired() { return threads[block->running].acquired; }

// What one thread has done before a fence and an atomic operation, another one sees after an atomic operation at that place.
static void pass_on(const void* where) {
    unsigned& last = released[where];
    threads[block->running].acquired = std::max(threads[block->running].acquired, last);
    last = std::max(last, threads[block->running].fenced);
}

// A barrier of the threads first .. end-1 passes on what each of them has seen.
static void pass_on(unsigned first, size_t end) {
    unsigned fenced = 0, acquired = 0;
    for (size_t t = first; t < end; ++t)
        fenced = std::max(fenced, threads[t].fenced), acquired = std::max(acquired, threads[t].acquired);
    for (size_t t = first; t < end; ++t) threads[t].fenced = fenced, threads[t].acquired = acquired;
}

void fail(const char* kind) {
    watching = false;
    block->stopped = true;
    snprintf(report->kind, sizeof report->kind, "%s", kind);
    report->block = *block->now->block_;
    report->thread = index_of(*block, block->running);
}

[[noreturn]] void leave() { minires::leave(*block); }

void fail_at(const char* kind, unsigned check, void* caller) {
    if (!(checks & check) || !watching) return;
    report->pc = uint64_t(static_cast<char*>(caller) - image_begin);
    fail(kind);
    leave();
}

void name_array(const Array& array, int64_t index) {
    report->region = array.number;
    report->index = index;
    report->elements = array.bytes / array.element;
    snprintf(report->name, sizeof report->name, "%s", array.name ? array.name : "");
}

// The array that holds the address, or the one nearest to it.
static Array* nearest(const char* address, bool& inside) {
    for (Array& a : arrays)
        if (uint64_t(address - a.base) < a.bytes) return inside = true, &a;
    inside = false;
    const auto distance = [=](const Array& a) { return address < a.base ? a.base - address : address - a.base - int64_t(a.bytes); };
    const auto nearer = [=](const Array& a, const Array& b) { return distance(a) < distance(b); };
    return arrays.empty() ? nullptr : &*std::min_element(arrays.begin(), arrays.end(), nearer);
}

// Threads take turns at barriers only, so one that looks at a place until another writes there would look for ever.
static void look_again(const void* where, void* caller) {
    static const void *last_place, *last_caller;
    static unsigned last_thread;
    static uint64_t times;
    times = where == last_place && caller == last_caller && block->running == last_thread ? times + 1 : 0;
    last_place = where, last_caller = caller, last_thread = block->running;
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
    const char* const stack = block->threads[block->running].stack;
    if (address >= stack && address < stack + minires::stack_bytes) return;
    look_again(where, caller);
    if (atomic) pass_on(where);
    bool inside;
    Array* array = nearest(address, inside);
    if (!array) return;
    const auto after = inside ? heap.begin() : heap.upper_bound(address);
    if (after != heap.begin() && address < std::prev(after)->first + std::prev(after)->second) return;
    const minires_state& now = *block->now;
    const auto holds = [where](auto* variable) { return where >= variable && where < variable + 1; };
    const bool is_own = holds(now.thread_) || holds(now.block_) || holds(now.grid_) || holds(now.threads_) ||
                        (address >= minires_dynamic_shared && address < minires_dynamic_shared + sizeof minires_dynamic_shared);
    if (!inside && (is_own || (address >= image_begin && address < image_end))) {  // constants and threadIdx: of no interest
        const auto in_reach = [&](const Array& a) { return address >= a.base && address < a.base + a.bytes + a.reach; };
        const auto found = std::find_if(arrays.begin(), arrays.end(), in_reach);
        if (found == arrays.end()) return;
        array = &*found;
    }
    observer->access({address, bytes, writes, atomic, uint32_t(static_cast<char*>(caller) - image_begin), array, inside});
}

struct Engine : minires::Watcher {
    void begins() override { watching = false; }
    void reorder(unsigned* turns, unsigned count) override {
        if (order == REVERSE) std::sort(turns, turns + count, std::greater<>());
        if (order == RANDOM) std::shuffle(turns, turns + count, random_order);
    }
    void released(minires::Wait from, unsigned first, unsigned end) override {
        if (from == minires::WARP) ++warp_epochs[first / 32];
        pass_on(first, std::min<size_t>(end, threads.size()));
    }
    void all_wait() override { observer->all_wait(); }
    void signalled(const char* kind, const char* what, uint64_t pc) override {
        snprintf(report->text, sizeof report->text, "%s", what);
        report->pc = pc + 1 - uint64_t(image_begin);  // as if it were where a call returns to
        fail(kind);
    }
    void fault(const char* kind, unsigned t, const char* what) override {
        block->running = t;
        snprintf(report->text, sizeof report->text, "%s:%d: %s", block->threads[t].file, block->threads[t].line, what);
        fail(kind);
    }
};

static void run_block() {
    threads.assign(block->count, Thread{});
    warp_epochs.assign(threads.size() / 32 + 1, 0);
    arrays.resize(arguments);
    shared_index.clear();
    observer->begin_block();
    if (dynamic_bytes) {
        memset(minires_dynamic_shared, 0xff, sizeof minires_dynamic_shared);
        arrays.push_back({minires_dynamic_shared, dynamic_bytes, 1, 1, "of dynamic size, bytes", -1, nullptr,
                          sizeof minires_dynamic_shared - dynamic_bytes});
        observer->added(arrays.back());
    }
    minires::run(*block, block_number);
    watching = false;
}

int run(Observer& by, const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
        const std::vector<Region>& regions, const std::vector<unsigned>& blocks, int wanted_order, uint64_t seed) {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(kernel->one_), &info);
    image_begin = image_end = static_cast<char*>(info.dli_fbase);  // the end is told when a thread begins
    static Engine engine;
    engine.strict = checks & SYNC;
    block = &minires::this_block();
    minires::prepare(*block, kernel, grid_and_block, args, &engine);
    observer = &by;
    order = wanted_order;
    random_order.seed(seed);
    dynamic_bytes = shared_bytes;
    block->stopped = false;
    heap.clear();
    released.clear();
    fences = 0;
    arrays.clear();
    for (const Region& r : regions)
        arrays.push_back({r.base, r.bytes, r.element, r.cell, nullptr, int64_t(arrays.size()), r.initialized, 0});
    arguments = arrays.size();

    std::vector<unsigned> chosen = blocks;
    if (order == REVERSE) std::reverse(chosen.begin(), chosen.end());
    if (order == RANDOM) std::shuffle(chosen.begin(), chosen.end(), random_order);
    for (const unsigned b : chosen) {
        if (block->stopped) break;
        block_number = b;
        run_block();
    }
    return block->stopped;
}

}  // namespace watch

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

void* minires_malloc(size_t bytes) {
    void* const place = minires_allocate(bytes);
    heap[static_cast<char*>(place)] = bytes;
    return place;
}

void minires_fence() { threads[block->running].fenced = ++fences; }
long long minires_clock() { return threads[block->running].clock += 100; }  // the same in every order
void minires_atomic(void* address, size_t bytes, void* caller) { access(address, bytes, true, caller, true); }

#define MINIRES_ACCESS(name, bytes, writes) \
    void __tsan_##name(void* p) { access(p, bytes, writes, __builtin_return_address(0)); }
#define MINIRES_ACCESSES(n)                          \
    MINIRES_ACCESS(read##n, n, false)                \
    MINIRES_ACCESS(write##n, n, true)                \
    MINIRES_ACCESS(unaligned_read##n, n, false)      \
    MINIRES_ACCESS(unaligned_write##n, n, true)
MINIRES_ACCESSES(1) MINIRES_ACCESSES(2) MINIRES_ACCESSES(4) MINIRES_ACCESSES(8) MINIRES_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, __builtin_return_address(0)); }
void* __tsan_memset(void* p, int value, size_t bytes) {
    access(p, bytes, true, __builtin_return_address(0));
    return memset(p, value, bytes);
}
#define MINIRES_COPY(name)                                                               \
    void* __tsan_##name(void* to, const void* from, size_t bytes) {                     \
        access(const_cast<void*>(from), bytes, false, __builtin_return_address(0));     \
        access(to, bytes, true, __builtin_return_address(0));                           \
        return memmove(to, from, bytes);                                                \
    }
MINIRES_COPY(memcpy) MINIRES_COPY(memmove)
#if !defined(__APPLE__)  // clang before 16 calls C's own; the linker gives it these
void* __wrap_memset(void*, int, size_t) __attribute__((alias("__tsan_memset")));
void* __wrap_memcpy(void*, const void*, size_t) __attribute__((alias("__tsan_memcpy")));
void* __wrap_memmove(void*, const void*, size_t) __attribute__((alias("__tsan_memmove")));
#endif
void __tsan_vptr_read(void** p) { access(p, sizeof *p, false, __builtin_return_address(0)); }
void __tsan_vptr_update(void** p, void*) { access(p, sizeof *p, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

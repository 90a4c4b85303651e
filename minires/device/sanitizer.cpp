// Runs a launch thread by thread in a chosen order and watches every access: the four jobs of NVIDIA's
// compute-sanitizer (racecheck, memcheck, initcheck, synccheck). Linked with kernels compiled under sanitizer.h.
//
// Every array that a launch may touch is a Region: the arguments, in copies between red zones, and the shared arrays.
// A Region has a Cell for each element, which knows whether it was written and who touched it last. Two accesses to an
// element, one of them a write, are a race unless a barrier of their block, or a warp primitive of their warp, lies
// between them; those of two blocks always are.
#include <dlfcn.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "fibers.h"

struct uint3 {
    unsigned x, y, z;
};
struct minires_state {
    uint3 thread, block, grid, threads;
};
extern "C" {
minires_state minires_now;

struct Region {  // as the Python side lays it out
    char* base;
    uint64_t bytes, element;
    uint8_t* initialized;  // one an element, kept between launches; null where all is
};
struct Report {
    char kind[8], text[512], name[64];  // name: of a shared array; else `region` is the argument's number
    int64_t region, index;
    uint64_t elements, pc, other_pc;
    uint3 block, thread;
};
enum { RACE = 1, MEM = 2, INIT = 4, SYNC = 8 };
enum { FORWARD, REVERSE, RANDOM };
}

namespace {

using minires::minires_switch;

struct Access {
    uint32_t thread, block, epoch, warp_epoch, pc;  // thread: its number in the block plus one; 0 is nobody
    bool atomic;
};
struct Cell {
    Access write, read, other_read;  // the last ones, the two reads by different threads
    bool initialized;
};
struct Array {
    char* base;
    uint64_t bytes, element;
    const char* name;
    int64_t number;
    uint8_t* kept;
    std::vector<Cell> cells;
};

enum Wait { READY, BARRIER, WARP, DONE };
struct Thread {
    Wait wait;
    void* context;
    char* stack;
    unsigned mask;  // of a warp primitive; the number of a barrier
    const char* file;
    int line;
    uint64_t offered;
};

constexpr size_t stack_bytes = 256 * 1024, guard_bytes = 64 * 1024, red_zone = 1024;

std::vector<Array> arrays;  // the arguments, then the shared arrays of the running block
size_t arguments;
std::map<const void*, size_t> shared_index;
std::vector<char*> shared_memory;
std::vector<Thread> threads;
std::vector<char*> stacks;
std::vector<unsigned> warp_epochs;
void* scheduler;
unsigned running, checks, block_number, epoch;
bool watching, failed, pending;  // pending: a report of an uninitialised read, kept in `unread`
Report unread;
Report* report;
void (*body)(void**);
void** body_args;
char *image_begin, *image_end;

uint3 index_of(unsigned t) {
    const uint3 n = minires_now.threads;
    return {t % n.x, t / n.x % n.y, t / n.x / n.y};
}

// Ends the launch: the threads' stacks are left as they are.
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

uint32_t offset(void* pc) { return uint32_t(static_cast<char*>(pc) - image_begin); }

bool ordered(const Access& before, const Access& now) {
    if (before.thread == 0 || (before.thread == now.thread && before.block == now.block)) return true;
    if (before.atomic && now.atomic) return true;
    if (before.block != now.block) return false;
    if (before.epoch != now.epoch) return true;
    return (before.thread - 1) / 32 == (now.thread - 1) / 32 && before.warp_epoch != now.warp_epoch;
}

bool race(const Array& array, uint64_t i, const Access& before, bool before_writes, const Access& now, bool writes) {
    if (ordered(before, now)) return false;
    const uint3 other = index_of(before.thread - 1), grid = minires_now.grid;
    const unsigned b = before.block;
    snprintf(report->text, sizeof report->text,
             "a %s with no barrier after the %s by block (%u, %u, %u), thread (%u, %u, %u)", writes ? "write" : "read",
             before_writes ? "write" : "read", b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y, other.x, other.y,
             other.z);
    report->pc = now.pc;
    report->other_pc = before.pc;
    name_array(array, int64_t(i));
    fail("race");
    return true;
}

// The array that holds the address, or the one nearest to it.
Array& nearest(char* address, bool* inside) {
    Array* best = nullptr;
    uint64_t best_distance = UINT64_MAX;
    for (Array& a : arrays) {
        if (address >= a.base && address < a.base + a.bytes) return *inside = true, a;
        const uint64_t distance = address < a.base ? a.base - address : address - (a.base + a.bytes);
        if (distance < best_distance) best_distance = distance, best = &a;
    }
    *inside = false;
    return *best;
}

void access(void* where, size_t bytes, bool writes, void* caller, bool atomic = false) {
    char* const address = static_cast<char*>(where);
    if (!watching) return;
    const char* const stack = threads[running].stack;
    if (address >= stack && address < stack + stack_bytes) return;
    if (address >= image_begin && address < image_end) return;  // constants, and threadIdx and its like
    if (arrays.empty()) return;
    bool inside;
    Array& array = nearest(address, &inside);
    const int64_t distance = address - array.base, element = int64_t(array.element);
    int64_t i = distance >= 0 ? distance / element : -((-distance + element - 1) / element);
    if (!inside || distance + bytes > array.bytes) {
        if (!(checks & MEM)) return;
        if (inside) i = int64_t(array.bytes) / element;
        const bool near = i >= -4096 && i < int64_t(array.bytes / element) + 4096;
        snprintf(report->text, sizeof report->text, "%s %s", writes ? "a write" : "a read",
                 near ? "outside the array" : "far outside every array");
        report->pc = offset(caller);
        name_array(array, i);
        fail("mem");
        leave();
    }
    const Access now{running + 1, block_number, epoch, warp_epochs[running / 32], offset(caller), atomic};
    for (const int64_t end = (distance + int64_t(bytes) - 1) / element; i <= end; ++i) {
        Cell& cell = array.cells[i];
        if ((checks & INIT) && !cell.initialized && (!writes || atomic)) {
            snprintf(report->text, sizeof report->text, "a read of an element that nothing wrote");
            report->pc = now.pc;
            name_array(array, i);
            // If somebody writes it before the next barrier, a race explains it better: wait until then.
            if (!pending) {
                fail("init");
                unread = *report;
                pending = true;
                failed = false;
                watching = true;
            }
        }
        if (checks & RACE) {
            if (race(array, i, cell.write, true, now, writes)) leave();
            if (writes && (race(array, i, cell.read, false, now, true) || race(array, i, cell.other_read, false, now, true)))
                leave();
        }
        if (writes) {
            cell.write = now;
            cell.initialized = true;
        } else {
            if (cell.read.thread != now.thread || cell.read.block != now.block) cell.other_read = cell.read;
            cell.read = now;
        }
    }
}

void sync_error(const Thread& thread, unsigned t, const char* what) {
    running = t;
    snprintf(report->text, sizeof report->text, "%s:%d: %s", thread.file, thread.line, what);
    fail("sync");
}

void wait(Wait wait, unsigned mask, const char* file, int line) {
    Thread& thread = threads[running];
    thread.wait = wait;
    thread.mask = mask;
    thread.file = file;
    thread.line = line;
    watching = false;
    minires_switch(&thread.context, scheduler);
    watching = true;
}

void thread_entry() {
    body(body_args);
    watching = false;
    threads[running].wait = DONE;
    leave();
}

// Releases the lanes of a warp primitive that have all arrived; false where none had.
bool release_warps() {
    bool released = false;
    for (unsigned t = 0; t < threads.size() && !failed; ++t) {
        if (threads[t].wait != WARP) continue;
        const unsigned first = t / 32 * 32, mask = threads[t].mask;
        if (!(mask >> (t % 32) & 1)) return sync_error(threads[t], t, "a lane that its own mask does not name"), false;
        bool complete = true;
        for (unsigned lane = 0; lane < 32 && complete; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const unsigned u = first + lane;
            if (u >= threads.size() || threads[u].wait == DONE)
                return sync_error(threads[t], t, "the mask names lanes that are absent or have ended"), false;
            complete = threads[u].wait == WARP && threads[u].mask == mask && threads[u].line == threads[t].line;
        }
        if (!complete) continue;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) threads[first + lane].wait = READY;
        ++warp_epochs[t / 32];
        released = true;
    }
    return released;
}

// Releases the barrier if all threads that have not ended wait at the same one; reports why it can never be.
void release_barrier() {
    const Thread* first = nullptr;
    for (unsigned t = 0; t < threads.size(); ++t) {
        const Thread& thread = threads[t];
        if (thread.wait == DONE) continue;
        if (thread.wait == WARP) return sync_error(thread, t, "a warp primitive that lanes of its mask never reach");
        if (!first) first = &thread;
        if (thread.mask != first->mask)
            return sync_error(thread, t, "a barrier that other threads of the block never reach");
    }
    for (Thread& thread : threads)
        if (thread.wait == BARRIER) thread.wait = READY;
    ++epoch;
}

void run_block(int order, std::mt19937_64& random) {
    const uint3 n = minires_now.threads;
    threads.assign(n.x * n.y * n.z, Thread{});
    warp_epochs.assign(threads.size() / 32 + 1, 0);
    epoch = 1;
    arrays.resize(arguments);
    shared_index.clear();
    while (stacks.size() < threads.size()) {
        char* base = static_cast<char*>(
            mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (base == MAP_FAILED) abort();
        mprotect(base, guard_bytes, PROT_NONE);
        stacks.push_back(base);
    }
    for (unsigned t = 0; t < threads.size(); ++t) {
        threads[t].stack = stacks[t];
        threads[t].context = minires::first_context(stacks[t] + stack_bytes - 64, thread_entry);
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
        if (failed) return;
        if (pending) return void((*report = unread, failed = true));
        if (!waits(WARP) && !waits(BARRIER)) return;
        release_barrier();
        if (failed) return;
    }
}

void on_segmentation_fault(int number, siginfo_t* info, void*) {
    const char* address = static_cast<char*>(info->si_addr);
    if (watching && address >= threads[running].stack && address < threads[running].stack + guard_bytes) {
        snprintf(report->text, sizeof report->text, "the thread's stack overflowed: endless recursion, or large local arrays");
        fail("sync");
        leave();
    }
    signal(number, SIG_DFL);
}

int find_image(dl_phdr_info* info, size_t, void*) {
    char* const base = reinterpret_cast<char*>(info->dlpi_addr);
    char* end = base;
    for (int i = 0; i < info->dlpi_phnum; ++i)
        if (info->dlpi_phdr[i].p_type == PT_LOAD)
            end = std::max(end, base + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
    char* const here = reinterpret_cast<char*>(&minires_now);
    if (here < base || here >= end) return 0;
    image_begin = base;
    image_end = end;
    return 1;
}

}  // namespace

extern "C" {

// 1 where something was found; *result then says what.
__attribute__((visibility("default"))) int minires_sanitized_launch(void (*kernel)(void**), const unsigned* grid_and_block,
                                                                    void** args, const Region* regions, uint64_t count,
                                                                    unsigned wanted, int order, uint64_t seed,
                                                                    Report* result) {
    static char signal_stack[64 * 1024];
    dl_iterate_phdr(find_image, nullptr);
    const unsigned* g = grid_and_block;
    minires_now = {{}, {}, {g[0], g[1], g[2]}, {g[3], g[4], g[5]}};
    body = kernel;
    body_args = args;
    checks = wanted;
    report = result;
    failed = pending = false;
    arrays.clear();
    for (uint64_t r = 0; r < count; ++r) {
        const Region& region = regions[r];
        Array array{region.base, region.bytes, region.element, nullptr, int64_t(r), region.initialized, {}};
        array.cells.resize(region.bytes / region.element);
        for (size_t i = 0; i < array.cells.size(); ++i) array.cells[i].initialized = !array.kept || array.kept[i];
        arrays.push_back(std::move(array));
    }
    arguments = arrays.size();

    stack_t alternate{signal_stack, 0, sizeof signal_stack}, before;
    struct sigaction action {}, previous;
    action.sa_sigaction = on_segmentation_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaltstack(&alternate, &before);
    sigaction(SIGSEGV, &action, &previous);

    std::vector<unsigned> blocks(g[0] * g[1] * g[2]);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::mt19937_64 random(seed);
    if (order == REVERSE) std::reverse(blocks.begin(), blocks.end());
    if (order == RANDOM) std::shuffle(blocks.begin(), blocks.end(), random);
    for (const unsigned b : blocks) {
        if (failed) break;
        block_number = b;
        minires_now.block = {b % g[0], b / g[0] % g[1], b / g[0] / g[1]};
        run_block(order, random);
    }
    sigaction(SIGSEGV, &previous, nullptr);
    sigaltstack(&before, nullptr);
    for (size_t r = 0; r < arguments; ++r)
        for (size_t i = 0; arrays[r].kept && i < arrays[r].cells.size(); ++i) arrays[r].kept[i] = arrays[r].cells[i].initialized;
    return failed;
}

void minires_enter() { watching = true; }

void* minires_shared(const void* key, size_t bytes, size_t element, const char* name) {
    const auto [found, is_new] = shared_index.try_emplace(key, arrays.size());
    if (is_new) {
        const size_t slot = arrays.size() - arguments;
        if (slot == shared_memory.size())  // as much as a block may have, and red zones
            shared_memory.push_back(static_cast<char*>(aligned_alloc(64, 256 * 1024)));
        if (bytes > 256 * 1024 - 2 * red_zone) abort();
        char* const base = shared_memory[slot] + red_zone;
        memset(base - red_zone, 0xff, bytes + 2 * red_zone);
        arrays.push_back({base, bytes, element, name, -1, nullptr, std::vector<Cell>(bytes / element)});
    }
    return arrays[found->second].base;
}

void minires_barrier(int id, const char* file, int line) { wait(BARRIER, unsigned(id), file, line); }
void minires_sync_warp(unsigned mask, const char* file, int line) { wait(WARP, mask, file, line); }

void minires_shuffle(unsigned mask, void* value, size_t bytes, unsigned source, const char* file, int line) {
    Thread& self = threads[running];
    const unsigned other = running / 32 * 32 + source;
    memcpy(&self.offered, value, bytes);
    wait(WARP, mask, file, line);
    if (!(mask >> source & 1) && (checks & SYNC)) {
        sync_error(self, running, "a shuffle from a lane that the mask does not name");
        leave();
    }
    memcpy(value, &threads[other].offered, bytes);
    wait(WARP, mask, file, line);
}

void minires_atomic(void* address, size_t bytes) { access(address, bytes, true, __builtin_return_address(0), true); }

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
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

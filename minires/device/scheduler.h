// The threads of a block, which take turns on one OS thread.
#pragma once

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};
using dim3 = uint3;
#include "launch.h"

namespace minires {

constexpr unsigned most_threads = 1024;
constexpr size_t stack_bytes = 260 * 1024, guard_bytes = 64 * 1024;  // the guard, the lowest, cannot be touched
enum Wait : uint8_t { READY, BARRIER, WARP, CONVERGE, DONE };

// Who is told what the threads of a block do, and what they do wrong: see watch/engine.cpp. Without one the scheduler lets
// pass what GPUs let pass.
struct Watcher {
    virtual void begins() = 0;                                        // the running thread does
    virtual void reorder(unsigned* turns, unsigned count) = 0;        // until the next barrier
    virtual void released(Wait from, unsigned first, unsigned end) = 0;
    virtual void all_wait() = 0;  // nobody can go on before the barrier is released, or ever
    virtual void fault(const char* kind, unsigned thread, const char* what) = 0;
    virtual void signalled(const char* kind, const char* what, uint64_t pc) = 0;  // the running thread was, by the system
    bool strict;  // a barrier that a thread has left without is a fault, and a shuffle from a lane outside of the mask
};

struct Fiber {
    void* context;  // where to continue it while it is parked between two threads
    char* stack;
};

struct alignas(64) Thread {
    void* context;         // where it goes on; null before it begins
    char* stack;
    const uint64_t* seen;  // what the lanes of its mask have shown
    uint64_t offered;      // to them
    unsigned mask;         // of a warp primitive; the number of a barrier
    bool is_barrier;       // of the warp: see launch.h
    int line;              // where it waits, in `file`
    const char* file;
};

struct Block {
    const minires_kernel* kernel;
    minires_state* now;
    void** args;
    Watcher* watcher;
    unsigned count;       // threads in the block
    unsigned running;     // the thread that runs now, once threads are fibers
    unsigned first;       // the thread that waited first: it stays on the OS thread's own stack; with a watcher nobody does
    unsigned exited;      // how many have ended
    unsigned arrived;     // how many wait at the barrier
    unsigned generation;  // counts the barriers
    unsigned position;    // of the running thread in `turns`
    bool stopped;
    int votes[3];  // of __syncthreads_count; [generation % 3] is added to while the one before is still read
    char message[512];  // of a failed assertion, or a signal
    const char* ends_process;  // what the running thread did that would end it
    sigjmp_buf landing; // where a signal ends the block
    Wait wait[most_threads];
    unsigned turns[most_threads];
    unsigned waiting[most_threads / 32], ended[most_threads / 32];  // lanes of each warp: at a primitive, or ended or absent
    Thread threads[most_threads + 1];
    uint64_t shown[most_threads][32];  // to the lanes that a thread has released, by coming last; it comes again after them
    Fiber fibers[most_threads], *parked[most_threads], *entered;
    unsigned fiber_count, parked_count;
};

Block& this_block();  // of this OS thread
uint3 index_of(const Block& b, unsigned thread);
void prepare(Block& b, const minires_kernel* kernel, const unsigned* grid_and_block, void** args, Watcher* watcher);
bool run(Block& b, uint64_t index);  // false where it was stopped
[[noreturn]] void leave(Block& b);   // stops it, from the running thread

}  // namespace minires

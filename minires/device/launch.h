// Between a compiled kernel and the runtime that runs its threads, scheduler.cpp. Names in it end in _, which those of a
// kernel's own macros do not.
#pragma once

#if defined(__APPLE__)
#define MINIRES_SYMBOL(name) "_" name
#else
#define MINIRES_SYMBOL(name) name
#endif

extern "C" {
struct minires_state {  // of an OS thread, for each library: what the running thread knows
    uint3 *thread_, *block_;
    dim3 *grid_, *threads_;
    bool are_fibers_;  // since a thread of the block has waited
    void* scheduler_;
};
struct minires_kernel {
    void (*all_)(void** args);  // the block's threads one after another, until one has waited
    void (*one_)(void** args);
    minires_state* (*state_)();
    const char* (*parameters_)();
};

void minires_barrier(minires_state*, int id, const char* file, int line);
int minires_vote(minires_state*, bool yes, int id, const char* file, int line);  // how many of the block say yes
// Shows 8 bytes to the lanes of the mask, and gives what these show; `source` is the lane that is wanted, 32 where that is none,
// 33 where the lanes also see what the others have written: only a barrier orders memory, no vote and no shuffle.
const uint64_t* minires_exchange(minires_state*, unsigned mask, unsigned source, uint64_t value, const char* file, int line);
unsigned minires_converge(minires_state*, const char* file, int line);  // the lanes that have come to the same place
[[noreturn]] void minires_stop(minires_state*, const char* file, int line, const char* what);

// What stands in the place of C's: a kernel ends its launch, and not the process.
void minires_exit(int);
void minires_abort();
void* minires_allocate(size_t bytes);
void minires_release(void* place);
}

// Between the engine, which runs a launch thread by thread, and an observer, which is told of every access.
#pragma once

#include <vector>

#include "../device/scheduler.h"

struct Region {  // an argument, as the Python side lays it out
    char* base;
    uint64_t bytes, element, cell;
    uint8_t* initialized;  // one a cell, kept between launches; null where all is
};
struct Report {
    char kind[8], text[512], name[64];  // name: of a shared array; else `region` is the argument's number
    int64_t region, index;
    uint64_t elements, pc, other_pc;
    uint3 block, thread;
};
enum { RACE = 1, MEM = 2, INIT = 4, SYNC = 8, VALUE = 16 };
enum { FORWARD, REVERSE, RANDOM };

namespace watch {

// An array that a launch may touch: an argument, in a copy between red zones, or a shared array.
struct Array {
    char* base;
    uint64_t bytes, element, cell;  // cell: of how many bytes it is known apart who touched them
    const char* name;               // of a shared array
    int64_t number;                 // of an argument, else -1
    uint8_t* kept;
    uint64_t reach;  // of a shared array: bytes behind it that nothing else has
};

struct Access {
    char* address;
    uint64_t bytes;
    bool writes, atomic;
    uint32_t pc;
    Array* array;  // that holds the address, or the nearest one
    bool inside;
};

struct Observer {
    virtual ~Observer() = default;
    virtual void begin_block() {}
    virtual void added(const Array&) {}  // a shared array of the running block; it comes after the arguments
    virtual void access(const Access&) = 0;
    virtual void all_wait() {}  // no thread of the block can go on before a barrier or a warp primitive is released
};

extern std::vector<Array> arrays;  // the arguments, then the shared arrays of the running block
extern size_t arguments;
extern minires::Block* block;
extern unsigned checks, block_number;
extern std::vector<unsigned> warp_epochs;              // count each warp's primitives
extern unsigned fences;                                // counts the launch's __threadfence()
extern Report* report;

void fail_at(const char* kind, unsigned check, void* caller);  // and leaves, if that is to be checked
unsigned acquired();  // the running thread sees what was done before so many fences
void name_array(const Array& array, int64_t index);
void fail(const char* kind);  // the launch ends when the running thread leaves or all wait
[[noreturn]] void leave();
int run(Observer& observer, const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
        const std::vector<Region>& regions, const std::vector<unsigned>& blocks, int order, uint64_t seed);

}  // namespace watch

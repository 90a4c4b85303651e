// Writes down what the lanes of one block touch; counters.py makes counts of it.
#include "engine.h"

namespace {

using namespace watch;

struct Touch {  // as counters.py has it
    uint64_t at;  // in its array, which begins at a multiple of 128 bytes
    uint32_t pc, thread, bytes;
    uint8_t shared, kind;  // 0 load, 1 store, 2 atomic
};

struct Trace : Observer {
    std::vector<Touch> touched;
    void access(const Access& a) override {
        const uint8_t shared = a.array->number < 0, kind = a.atomic ? 2 : a.writes ? 1 : 0;
        const uint64_t at = a.address - a.array->base;
        if (a.inside) touched.push_back({at, a.pc, block->running, uint32_t(a.bytes), shared, kind});
    }
};

}  // namespace

// How many accesses the block has done, which lie at *touched until the next call; -1 where it stopped, and *result says why.
extern "C" int64_t minires_trace(const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
                                 const Region* regions, uint64_t count, unsigned which, const Touch** touched, Report* result) {
    static Trace trace;
    checks = 0;
    report = result;
    trace.touched.clear();
    if (run(trace, kernel, grid_and_block, shared_bytes, args, {regions, regions + count}, {which}, FORWARD, 0)) return -1;
    *touched = trace.touched.data();
    return int64_t(trace.touched.size());
}

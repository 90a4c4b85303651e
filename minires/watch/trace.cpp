// Writes down what the lanes of one block touch; counters.py makes counts of it.
#include <map>
#include <tuple>

#include "engine.h"

namespace {

using namespace watch;

struct Touch {  // where in its array, which begins at a multiple of 128 bytes, and by which thread of the block
    uint64_t at, thread;
};
struct Site {  // the accesses of one instruction, in their order, as counters.py has it
    uint32_t pc, bytes;
    uint64_t shared, kind, count;  // 0 load, 1 store, 2 atomic
    const Touch* touched;
};

struct Trace : Observer {
    std::map<std::tuple<uint32_t, uint32_t, bool, int>, std::vector<Touch>> sites;
    std::vector<Site> rows;
    void access(const Access& a) override {
        if (!a.inside) return;
        const int kind = a.atomic ? 2 : a.writes ? 1 : 0;
        sites[{a.pc, uint32_t(a.bytes), a.array->number < 0, kind}].push_back({uint64_t(a.address - a.array->base), block->running});
    }
};

}  // namespace

// How many sites there are, which lie at *sites until the next call; -1 where the block stopped, and *result then says why.
extern "C" int minires_trace(const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
                             const Region* regions, uint64_t count, unsigned which, const Site** sites, Report* result) {
    static Trace trace;
    checks = 0;
    report = result;
    trace.sites.clear();
    trace.rows.clear();
    if (run(trace, kernel, grid_and_block, shared_bytes, args, {regions, regions + count}, {which}, FORWARD, 0)) return -1;
    for (const auto& [key, touched] : trace.sites) {
        const auto [pc, bytes, shared, kind] = key;
        trace.rows.push_back({pc, bytes, shared, uint64_t(kind), touched.size(), touched.data()});
    }
    *sites = trace.rows.data();
    return int(trace.rows.size());
}

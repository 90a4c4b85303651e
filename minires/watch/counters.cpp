// Counts what a warp's lanes touch, as a GPU's load/store unit would see it: requests, sectors and wavefronts.
//
// A request is one execution of a load or store by a warp: the k-th time that each of its lanes comes to the instruction.
// Sectors of a request to global memory: the pieces of 32 bytes that its lanes touch. Wavefronts of a request to shared
// memory: the most 4-byte words in one of the 32 banks; accesses of 8 bytes go half a warp at a time, of 16 a quarter.
// Source: CUDA C++ Programming Guide, "Global Memory" and "Shared Memory" of "Compute Capability 5.x" and later; Nsight
// Compute, "Memory Tables".
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "engine.h"

namespace {

using namespace watch;

constexpr unsigned samples = 4;

struct Lanes {
    uint64_t address[32];
    uint32_t mask;
};
struct Row {  // as the Python side lays it out
    uint64_t requests, lanes, sectors, sectors_least, wavefronts, wavefronts_least;
    uint32_t pc, bytes;
    uint8_t shared, kind;  // 0 load, 1 store, 2 atomic
    uint16_t sampled;
    Lanes sample[samples];  // the first requests, addresses from the beginning of their array
};
struct Site {
    Row row;
    std::vector<uint32_t> visits;              // of each thread of the running block
    std::vector<std::vector<Lanes>> requests;  // of each warp of it
};

unsigned sectors_of(const Lanes& request, uint64_t bytes, unsigned& least) {
    std::set<uint64_t> sectors, touched;
    for (unsigned l = 0; l < 32; ++l) {
        if (!(request.mask >> l & 1)) continue;
        for (uint64_t b = request.address[l]; b < request.address[l] + bytes; ++b) sectors.insert(b / 32), touched.insert(b);
    }
    least = unsigned((touched.size() + 31) / 32);
    return unsigned(sectors.size());
}

unsigned wavefronts_of(const Lanes& request, uint64_t bytes, unsigned& least) {
    const unsigned group = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    unsigned total = 0;
    least = 0;
    for (unsigned first = 0; first < 32; first += group) {
        std::set<uint64_t> words[32];
        size_t most = 0;
        for (unsigned l = first; l < first + group; ++l) {
            if (!(request.mask >> l & 1)) continue;
            for (uint64_t w = request.address[l] / 4; w <= (request.address[l] + bytes - 1) / 4; ++w) {
                words[w % 32].insert(w);
                most = std::max(most, words[w % 32].size());
            }
        }
        total += unsigned(most);
        least += most > 0;
    }
    return total;
}

struct Counters : Observer {
    std::map<std::tuple<uint32_t, uint64_t, bool, int>, Site> sites;

    void begin_block() override {
        for (auto& [key, site] : sites) prepare(site);
    }
    static void prepare(Site& site) {
        site.visits.assign(block->count, 0);
        site.requests.assign((block->count + 31) / 32, {});
    }

    void access(const Access& a) override {
        if (!a.inside) return;
        const bool shared = a.array->number < 0;
        const int kind = a.atomic ? 2 : a.writes ? 1 : 0;
        auto [place, is_new] = sites.try_emplace({a.pc, a.bytes, shared, kind});
        Site& site = place->second;
        if (is_new) {
            site.row = Row{};
            site.row.pc = a.pc, site.row.bytes = uint32_t(a.bytes), site.row.shared = shared, site.row.kind = uint8_t(kind);
            prepare(site);
        }
        const unsigned lane = block->running % 32;
        auto& requests = site.requests[block->running / 32];
        const uint32_t k = site.visits[block->running]++;
        if (k >= requests.size()) requests.resize(k + 1, Lanes{});
        requests[k].address[lane] = uint64_t(a.address - a.array->base);
        requests[k].mask |= 1u << lane;
    }

    // Arrays begin at multiples of 128 bytes, so sectors and banks can be told from the place in the array.
    void end_block() override {
        for (auto& [key, site] : sites) {
            Row& row = site.row;
            for (auto& warp : site.requests)
                for (const Lanes& request : warp) {
                    unsigned least = 0;
                    ++row.requests;
                    row.lanes += __builtin_popcount(request.mask);
                    if (row.shared) {
                        row.wavefronts += wavefronts_of(request, row.bytes, least);
                        row.wavefronts_least += least;
                    } else {
                        row.sectors += sectors_of(request, row.bytes, least);
                        row.sectors_least += least;
                    }
                    if (row.sampled < samples) row.sample[row.sampled++] = request;
                }
            site.requests.clear();
        }
    }
};

}  // namespace

// Writes a row for each place and kind of access, at most `capacity`, and returns how many there are; -1 where the kernel
// stopped, and *result then says why.
extern "C" int minires_count(const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
                             const Region* regions, uint64_t count, const unsigned* blocks, uint64_t block_count, Row* rows,
                             uint64_t capacity, Report* result) {
    checks = 0;
    report = result;
    Counters observer;
    const std::vector<unsigned> chosen(blocks, blocks + block_count);
    if (run(observer, kernel, grid_and_block, shared_bytes, args, {regions, regions + count}, chosen, FORWARD, 0)) return -1;
    uint64_t n = 0;
    for (auto& [key, site] : observer.sites)
        if (n++ < capacity) rows[n - 1] = site.row;
    return int(n);
}

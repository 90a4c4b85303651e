// The four jobs of NVIDIA's compute-sanitizer (racecheck, memcheck, initcheck; the engine does synccheck).
//
// Every array has a Cell for each element, which knows whether it was written and who touched it last. Two accesses to an
// element, one of them a write, are a race unless a barrier of their block or of their warp (no vote, no shuffle) lies
// between them, or a fence and then an atomic operation, at a place where the second thread has done one before its access.
// Two atomic operations are no race; and a read whose thread goes on with an atomic operation at that place, as in a loop
// around atomicCAS, counts as a part of it.
#include <stdio.h>

#include <numeric>

#include "engine.h"

namespace {

using namespace watch;

struct Touch {
    uint32_t thread, block, epoch, warp_epoch, fences, pc;  // thread: its number in the block plus one; 0 is nobody
    bool atomic;
};
struct Cell {
    Touch write, read, other_read;  // the last ones, the two reads by different threads
    bool initialized;
};

bool ordered(const Touch& before, const Touch& now) {
    if (before.thread == 0 || (before.thread == now.thread && before.block == now.block)) return true;
    if ((before.atomic && now.atomic) || before.fences < acquired()) return true;
    if (before.block != now.block) return false;
    if (before.epoch != now.epoch) return true;
    return (before.thread - 1) / 32 == (now.thread - 1) / 32 && before.warp_epoch != now.warp_epoch;
}

// Whether it is one; the report then says so.
bool race(const Array& array, uint64_t c, const Touch& before, bool before_writes, const Touch& now, bool writes) {
    if (ordered(before, now)) return false;
    const uint3 other = index_of(*block, before.thread - 1), grid = *block->now->grid_;
    const unsigned b = before.block;
    snprintf(report->text, sizeof report->text,
             "a %s with no barrier after the %s by block (%u, %u, %u), thread (%u, %u, %u)", writes ? "write" : "read",
             before_writes ? "write" : "read", b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y, other.x, other.y,
             other.z);
    report->pc = now.pc;
    report->other_pc = before.pc;
    name_array(array, int64_t(c * array.cell / array.element));
    return true;
}

Report keep_report() {
    Report kept = *report;
    kept.block = *block->now->block_;
    kept.thread = index_of(*block, block->running);
    *report = Report{};
    return kept;
}
void tell(const Report& kept, const char* kind) {
    fail(kind);
    *report = kept;
    snprintf(report->kind, sizeof report->kind, "%s", kind);
}

struct Checks : Observer {
    std::vector<std::vector<Cell>> cells;  // of each array
    bool pending = false, suspected = false;  // an uninitialised read, and one of what another thread does atomically
    Report unread, suspicion;
    Touch last_read{};  // the last access, if it was a read and not atomic
    const char* last_address = nullptr;

    Checks() {
        for (const Array& array : arrays) add(array);
    }
    void add(const Array& array) {
        std::vector<Cell> fresh(array.bytes / array.cell);
        for (size_t i = 0; i < fresh.size(); ++i)
            fresh[i].initialized = array.number >= 0 && (!array.kept || array.kept[i]);
        cells.push_back(std::move(fresh));
    }
    void begin_block() override {
        if (cells.empty())
            for (size_t i = 0; i < arguments; ++i) add(arrays[i]);
        cells.resize(arguments);
    }
    void added(const Array& array) override { add(array); }

    void outside(const Access& a) {
        const int64_t distance = a.address - a.array->base, element = int64_t(a.array->element);
        int64_t i = distance >= 0 ? distance / element : -((-distance + element - 1) / element);
        if (a.inside) i = int64_t(a.array->bytes) / element;
        const bool near = i >= -4096 && i < int64_t(a.array->bytes / element) + 4096;
        snprintf(report->text, sizeof report->text, "%s %s", a.writes ? "a write" : "a read",
                 near ? "outside the array" : "far outside every array");
        report->pc = a.pc;
        name_array(*a.array, i);
        fail("mem");
        leave();
    }

    void access(const Access& a) override {
        const Array& array = *a.array;
        const uint64_t begin = a.address - array.base;
        if (!a.inside || begin + a.bytes > array.bytes) {
            if (checks & MEM) outside(a);
            return;
        }
        const Touch now{block->running + 1, block_number, block->generation, warp_epochs[block->running / 32], fences, a.pc, a.atomic};
        const bool same = last_read.thread == now.thread && last_read.block == now.block && last_address == a.address;
        const bool goes_on = a.atomic && same;
        if (suspected && !goes_on) tell(suspicion, "race"), leave();
        suspected = false;
        const uint64_t last = (begin + a.bytes - 1) / array.cell;
        for (uint64_t c = begin / array.cell; c <= last; ++c) {
            Cell& cell = cells[&array - arrays.data()][c];
            if ((checks & INIT) && !cell.initialized && (!a.writes || a.atomic)) uninitialized(array, c, now);
            if (goes_on) cell.read.atomic = true;
            if (checks & RACE) look_for_races(array, c, cell, now, a.writes);
            if (a.writes) {
                cell.write = now;
                cell.initialized = true;
            } else {
                if (cell.read.thread != now.thread || cell.read.block != now.block) cell.other_read = cell.read;
                cell.read = now;
            }
        }
        last_read = a.writes ? Touch{} : now;
        last_address = a.address;
    }

    void look_for_races(const Array& array, uint64_t c, const Cell& cell, const Touch& now, bool writes) {
        if (race(array, c, cell.write, true, now, writes)) {
            suspected = !writes && cell.write.atomic;
            if (!suspected) fail("race"), leave();
            suspicion = keep_report();
        }
        if (writes && (race(array, c, cell.read, false, now, true) || race(array, c, cell.other_read, false, now, true)))
            fail("race"), leave();
    }

    // If somebody writes it before the next barrier, a race explains it better: wait until then.
    void uninitialized(const Array& array, uint64_t c, const Touch& now) {
        if (pending) return;
        snprintf(report->text, sizeof report->text, "a read of an element that nothing wrote");
        report->pc = now.pc;
        name_array(array, int64_t(c * array.cell / array.element));
        unread = keep_report();
        pending = true;
    }
    void all_wait() override {
        if (suspected) tell(suspicion, "race");
        else if (pending) tell(unread, "init");
    }

    void keep() {
        for (size_t r = 0; r < arguments && r < cells.size(); ++r)
            for (size_t i = 0; arrays[r].kept && i < cells[r].size(); ++i) arrays[r].kept[i] = cells[r][i].initialized;
    }
};

}  // namespace

// 1 where something was found; *result then says what.
extern "C" int minires_check(const minires_kernel* kernel, const unsigned* grid_and_block, uint64_t shared_bytes, void** args,
                             const Region* regions, uint64_t count, unsigned wanted, int order, uint64_t seed, Report* result) {
    checks = wanted;
    report = result;
    arrays.clear();
    Checks observer;
    std::vector<unsigned> blocks(grid_and_block[0] * grid_and_block[1] * grid_and_block[2]);
    std::iota(blocks.begin(), blocks.end(), 0u);
    const int found = run(observer, kernel, grid_and_block, shared_bytes, args, {regions, regions + count}, blocks, order, seed);
    observer.keep();
    return found;
}

// A part of CUDA's cooperative groups, on the primitives of warps and blocks: see the CUDA C++ Programming Guide.
#pragma once

namespace cooperative_groups {

struct thread_block {
    static void sync() { __syncthreads(); }
    static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned num_threads() { return size(); }
    static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
    static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
    static dim3 group_dim() { return dim3(blockDim.x, blockDim.y, blockDim.z); }
    static dim3 dim_threads() { return group_dim(); }
};
static inline thread_block this_thread_block() { return {}; }

// All threads of the launch. They cannot be synchronised: a block runs to its end before another begins in its place.
struct grid_group {
    static unsigned long long block_rank() { return blockIdx.x + gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z); }
    static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
    static unsigned long long size() { return num_blocks() * thread_block::size(); }
    static unsigned long long num_threads() { return size(); }
    static dim3 block_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    static dim3 group_dim() { return dim3(gridDim.x, gridDim.y, gridDim.z); }
    static dim3 dim_blocks() { return group_dim(); }
    static bool is_valid() { return false; }  // to be synchronised
};
static inline grid_group this_grid() { return {}; }

// The lanes of a mask: a tile of a power of two of neighbours, or those that have come to one place.
struct thread_group {
    unsigned mask = 0;  // 0: the whole block

    thread_group() = default;
    explicit thread_group(unsigned mask) : mask(mask) {}
    thread_group(thread_block) {}
    void sync(MINIRES_CALLER) const {
        if (mask == 0) thread_block::sync();
        else minires::warp_barrier(mask, file, line);
    }
    unsigned size() const { return mask == 0 ? thread_block::size() : __popc(mask); }
    unsigned num_threads() const { return size(); }
    unsigned thread_rank() const { return mask == 0 ? thread_block::thread_rank() : __popc(mask & ~(~0u << minires::lane())); }
};

// Collective functions of a group of lanes; a rank r is the r-th lane of the mask.
struct lane_group : thread_group {
    using thread_group::thread_group;
    unsigned lane_of(unsigned rank) const {
        unsigned rest = mask;
        for (rank %= size(); rank > 0; --rank) rest &= rest - 1;
        return __ffs(rest) - 1;
    }
    unsigned ranks(unsigned lanes) const {  // a mask of lanes as one of ranks
        unsigned result = 0, rank = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1, ++rank) result |= (lanes >> (__ffs(rest) - 1) & 1) << rank;
        return result;
    }
    template <class T> T shfl(T v, int r, MINIRES_CALLER) const { return minires::shuffle(mask, v, lane_of(r), file, line); }
    template <class T> T shfl_down(T v, unsigned delta, MINIRES_CALLER) const {
        const unsigned rank = thread_rank();
        return minires::shuffle(mask, v, rank + delta < size() ? lane_of(rank + delta) : minires::lane(), file, line);
    }
    template <class T> T shfl_up(T v, unsigned delta, MINIRES_CALLER) const {
        const unsigned rank = thread_rank();
        return minires::shuffle(mask, v, rank >= delta ? lane_of(rank - delta) : minires::lane(), file, line);
    }
    template <class T> T shfl_xor(T v, unsigned bits, MINIRES_CALLER) const {
        const unsigned rank = thread_rank() ^ bits;
        return minires::shuffle(mask, v, rank < size() ? lane_of(rank) : minires::lane(), file, line);
    }
    int any(int predicate, MINIRES_CALLER) const { return __any_sync(mask, predicate, file, line); }
    int all(int predicate, MINIRES_CALLER) const { return __all_sync(mask, predicate, file, line); }
    unsigned ballot(int predicate, MINIRES_CALLER) const { return ranks(__ballot_sync(mask, predicate, file, line)); }
    template <class T> unsigned match_any(T v, MINIRES_CALLER) const { return ranks(__match_any_sync(mask, v, file, line)); }
};

template <unsigned Size, class Parent = void> struct thread_block_tile : lane_group {
    thread_block_tile() : lane_group(whole() << (minires::lane() & ~(Size - 1))) {}
    template <class Other> thread_block_tile(const thread_block_tile<Size, Other>& tile) : lane_group(tile.mask) {}
    static constexpr unsigned whole() { return Size == 32 ? 0xffffffffu : (1u << (Size & 31)) - 1; }
    static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }
    static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
};
template <unsigned Size, class Group> static thread_block_tile<Size, Group> tiled_partition(const Group&) {
    static_assert(Size <= 32 && (Size & (Size - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads");
    return {};
}
static inline thread_group tiled_partition(const thread_group&, unsigned size) {
    const unsigned whole = size >= 32 ? 0xffffffffu : (1u << size) - 1;
    return thread_group(whole << (minires::lane() & ~(size - 1)));
}

struct coalesced_group : lane_group { using lane_group::lane_group; };
static inline coalesced_group coalesced_threads(MINIRES_CALLER) { return coalesced_group(minires::converge(file, line)); }

// The lanes of a group with the same label, as a group.
template <class Group, class T> static coalesced_group labeled_partition(const Group& group, T label, MINIRES_CALLER) {
    return coalesced_group(__match_any_sync(group.mask, label, file, line));
}
template <class Group> static coalesced_group binary_partition(const Group& group, bool side, MINIRES_CALLER) {
    return labeled_partition(group, int(side), file, line);
}
static inline thread_block_tile<1> this_thread() { return {}; }

template <class Group> static inline void sync(const Group& group) { group.sync(); }

#define MINIRES_FUNCTOR(name, expression) \
    template <class T = void> struct name { template <class U> U operator()(U a, U b) const { return expression; } };
MINIRES_FUNCTOR(plus, a + b) MINIRES_FUNCTOR(bit_and, a & b) MINIRES_FUNCTOR(bit_or, a | b) MINIRES_FUNCTOR(bit_xor, a ^ b)
MINIRES_FUNCTOR(less, b < a ? b : a) MINIRES_FUNCTOR(greater, a < b ? b : a)  // as CUDA has them: the smaller, the larger one
template <class Group, class T, class F> static T reduce(const Group& group, T value, F f, MINIRES_CALLER) {
    return minires::reduce(group.mask, value, file, line, f);
}
// The values of the ranks before this one, and with `own` its own one, put together by f.
template <class Group, class T, class F> MINIRES_UNWATCHED static T scan(const Group& group, T value, F f, bool own, const char* file, int line) {
    const uint64_t* shown = minires::exchange(group.mask, minires::to_word(value), file, line);
    T result{};
    bool first = true;
    for (unsigned l = 0; l < minires::lane() + own; ++l) {
        if (!(group.mask >> l & 1)) continue;
        result = first ? minires::from_word<T>(shown[l]) : f(result, minires::from_word<T>(shown[l]));
        first = false;
    }
    return result;
}
template <class Group, class T, class F = plus<>> static T inclusive_scan(const Group& group, T value, F f = {}, MINIRES_CALLER) {
    return scan(group, value, f, true, file, line);
}
template <class Group, class T, class F = plus<>> static T exclusive_scan(const Group& group, T value, F f = {}, MINIRES_CALLER) {
    return scan(group, value, f, false, file, line);
}

}  // namespace cooperative_groups

// What all compiled kernels of a process share: the pool of OS threads, over which a launch hands out its blocks. Kernels are
// libraries of their own, some hundred in a long session; with threads and stacks each they would soon meet the system's
// limits.
#include <pthread.h>
#include <stdio.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "scheduler.h"

struct Launch {
    const minires_kernel* kernel;
    const unsigned* grid_and_block;
    void** args;
    const uint64_t blocks, shares;
    char* const message;  // what stopped the first block that was stopped; empty if its threads wait for one another for ever
    std::atomic<uint64_t> next{0}, first_stop{blocks};  // that block: `blocks` while there is none
    std::mutex stopping{};

    void work() {
        minires::Block& b = minires::this_block();
        minires::prepare(b, kernel, grid_and_block, args, nullptr);
        for (uint64_t begin, end; take(begin, end);)
            for (uint64_t i = begin; i < end; ++i)
                if (!minires::run(b, i)) return stopped(i, b.message);
    }

    // A share of the blocks that are left: ever smaller ones, so that the threads end at about the same time.
    bool take(uint64_t& begin, uint64_t& end) {
        begin = next;
        do {
            if (begin >= first_stop) return false;
            end = begin + (blocks - begin) / shares + 1;
        } while (!next.compare_exchange_weak(begin, end));
        return true;
    }
    void stopped(uint64_t block, const char* why) {
        const std::lock_guard<std::mutex> lock(stopping);
        if (block >= first_stop) return;
        first_stop = block;
        snprintf(message, 512, "%s", why);
    }
};

// OS threads, which all do the same work until none is left. Launches follow one another closely, and to wake a thread that
// sleeps takes longer than many a launch: so they look out for the next one for a while before they sleep. A launch waits for
// the threads that joined it alone: where another program has the core of one, the others do its share.

class Pool {
   public:
    void run(Launch& launch, unsigned threads) {
        std::lock_guard<std::mutex> one_launch(launch_mutex_);
        for (; size_ + 1 < threads; ++size_) std::thread(&Pool::serve, this, state_ / step).detach();
        launch_ = &launch;
        helpers_ = threads - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            state_ += step + is_open;
        }
        wake_.notify_all();
        launch.work();
        state_ -= is_open;
        if (look_out([&] { return state_ % step == 0; })) return;
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return state_ % step == 0; });
    }

   private:
    template <class F> static bool look_out(F seen) {
        for (int turn = 0; turn < 20'000; ++turn) {
            if (seen()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        return false;
    }
    void serve(uint64_t seen) {
        for (;;) {
            if (!look_out([&] { return state_ / step != seen; })) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return state_ / step != seen; });
            }
            uint64_t now = state_;
            bool joins;
            do joins = now % step >= is_open && now % is_open < helpers_;
            while (!state_.compare_exchange_weak(now, now + joins));
            seen = now / step;
            if (!joins) continue;
            launch_.load()->work();
            std::lock_guard<std::mutex> lock(mutex_);
            if (--state_ % step == 0) done_.notify_one();
        }
    }
    static constexpr uint64_t is_open = 1 << 16, step = 2 * is_open;
    std::mutex launch_mutex_, mutex_;
    std::condition_variable wake_, done_;
    std::atomic<Launch*> launch_{nullptr};
    std::atomic<unsigned> helpers_{0};
    std::atomic<uint64_t> state_{0};  // the number of the launch, whether it can be joined, and how many threads have
    unsigned size_ = 0;
};

static Pool* pool;  // never destroyed: its threads outlive static destructors
static void new_pool() { pool = new Pool; }
__attribute__((constructor)) static void prepare_pool() {
    new_pool();
    pthread_atfork(nullptr, nullptr, new_pool);  // a forked child has none of its parent's threads
}

// At once, if the threads of all blocks wait: each stack is two mappings, and Linux allows a process 65,530.
constexpr unsigned most_stacks = 16 * minires::most_threads;

// The index of the first block that was stopped, or -1; `message` then says by what.
extern "C" int64_t minires_run(const minires_kernel* kernel, const unsigned* grid_and_block, void** args, unsigned threads,
                               char* message) {
    const unsigned* g = grid_and_block;
    threads = std::min(threads, most_stacks / (g[3] * g[4] * g[5]));
    Launch launch{kernel, g, args, uint64_t(g[0]) * g[1] * g[2], threads * 8, message};
    if (threads == 1 || launch.blocks == 1) launch.work();
    else pool->run(launch, threads);
    return launch.first_stop < launch.blocks ? int64_t(launch.first_stop) : -1;
}

// Threads that run one function together, with barriers and tasks claimed one by one.
//
// Waiting spins for a moment and then sleeps: the gaps between two stages of a step are shorter than a sleep, but a
// thread that spins for one that is not running (the machine is shared with the bus, the daemon and clients) would take
// the very core that the other needs. Tasks are claimed, not dealt out, so a thread that lost its core delays one task.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace cb {

class Word {  // a counter that can be waited for
public:
    explicit Word(uint32_t value = 0) : value_(value) {}

    uint32_t load() const { return value_.load(std::memory_order_acquire); }

    void advance() {
        value_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst))
            syscall(SYS_futex, (uint32_t*)&value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }

    // Spins as long as spinning was worth it lately: a thread that had to sleep was waiting for one without a core. One
    // late thread in nine stages must not put the others to sleep in all of them: so it grows faster than it is halved.
    // And since who sleeps is late himself, and puts the others to sleep, now and then a wait tries whether that is over.
    void wait_while(uint32_t old) {
        const uint64_t ticks = ticks_.load(std::memory_order_relaxed);
        const bool tries = ticks < MAX_TICKS && waits_.fetch_add(1, std::memory_order_relaxed) % TRIED_EVERY == 0;
        const uint64_t begin = __rdtsc(), most = tries ? MAX_TICKS : ticks;
        while (__rdtsc() - begin < most) {
            for (int i = 0; i < 4; ++i) {
                if (load() != old) {
                    const uint64_t grown = tries ? 2 * (__rdtsc() - begin) : ticks + ticks / 4;
                    ticks_.store(std::clamp(grown, ticks, MAX_TICKS), std::memory_order_relaxed);
                    return;
                }
                _mm_pause();
            }
        }
        if (!tries) ticks_.store(std::max(ticks / 2, MIN_TICKS), std::memory_order_relaxed);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (value_.load(std::memory_order_seq_cst) == old)
            syscall(SYS_futex, (uint32_t*)&value_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

private:
    // Of the time stamp counter, two to four a nanosecond. The gaps between two stages are shorter than the most; waking a
    // sleeper takes longer than the least.
    static constexpr uint64_t MAX_TICKS = 150000, MIN_TICKS = 1500;
    static constexpr uint32_t TRIED_EVERY = 64;

    alignas(64) std::atomic<uint32_t> value_;
    std::atomic<int> sleepers_{0};
    alignas(64) std::atomic<uint64_t> ticks_{MAX_TICKS};  // apart from what is spun on
    std::atomic<uint32_t> waits_{0};
};

class Pool {
public:
    explicit Pool(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads), claimed_(num_threads_) {
        for (int id = 1; id < num_threads_; ++id) workers_.emplace_back([this, id] { work(id); });
    }

    ~Pool() {
        stop_ = true;
        start_.advance();
        for (auto& worker : workers_) worker.join();
    }

    int num_threads() const { return num_threads_; }

    // `body(thread_id)` in every thread at once; returns when all have returned. One caller at a time.
    void run(const std::function<void(int)>& body) {
        body_ = &body;
        if (num_threads_ > 1) start_.advance();
        body(0);
        barrier();
    }

    // Inside `run`, called by every thread with the same arguments: `task(i, thread_id)` once for each i, and a barrier.
    template <class Task>
    void stage(int thread_id, int num_tasks, Task&& task) {
        each_claimed(0, num_tasks, [&](int i) { task(i, thread_id); });
        barrier();
    }

    // The same with as many tasks for each of num_threads() parts: `task(part, i, thread_id)`. A thread takes those of its
    // own part, and only then of the others'.
    template <class Task>
    void stage_in_parts(int thread_id, int tasks_of_a_part, Task&& task) {
        for (int k = 0; k < num_threads_; ++k) {
            const int part = (thread_id + k) % num_threads_;
            each_claimed(part, tasks_of_a_part, [&](int i) { task(part, i, thread_id); });
        }
        barrier();
    }

private:
    template <class Task>
    void each_claimed(int part, int num_tasks, Task&& task) {
        for (int i; (i = claimed_[part].next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) task(i);
    }

    void barrier() {
        uint32_t turn = turn_.load();
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            for (Claimed& part : claimed_) part.next.store(0, std::memory_order_relaxed);
            turn_.advance();
        } else {
            turn_.wait_while(turn);
        }
    }

    void work(int id) {
        for (uint32_t seen = 0;; ++seen) {
            start_.wait_while(seen);
            if (stop_) return;
            (*body_)(id);
            barrier();
        }
    }

    const int num_threads_;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    std::atomic<bool> stop_{false};
    Word start_, turn_;
    struct alignas(64) Claimed {
        std::atomic<int> next{0};
    };
    std::vector<Claimed> claimed_;  // of each part; of a stage without parts the first one
    alignas(64) std::atomic<int> arrived_{0};
};

}  // namespace cb

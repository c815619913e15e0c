// The threads that torch computes with, for kernels that stand between its operations.
//
// Torch's threads spin for some milliseconds after each operation. A second set of threads would have to take the cores
// from them; so these kernels run in the same ones, through the entry point that every OpenMP runtime has.
#pragma once

#include <atomic>
#include <cstdint>

namespace cb {

struct Team {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
    int32_t num_threads;
    int32_t reserved;
};

// `body(i, thread)` once for each i below `count`; thread < team.num_threads. Which thread takes which i is left to
// chance: what a task writes must depend on i alone.
template <class Body>
void each_task(const Team& team, int count, Body&& body) {
    if (count <= 1 || team.num_threads <= 1) {
        for (int i = 0; i < count; ++i) body(i, 0);
        return;
    }
    struct Shared {
        Body& body;
        int count;
        std::atomic<int> next{0}, arrived{0};
    } shared{body, count};
    const auto run = [](void* at) {
        Shared& mine = *(Shared*)at;
        const int thread = mine.arrived.fetch_add(1, std::memory_order_relaxed);
        for (int i; (i = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.count;) mine.body(i, thread);
    };
    team.parallel(run, &shared, unsigned(team.num_threads), 0);
}

// The same with `size` neighbouring i at a time: `body(begin, end)`.
template <class Body>
void each_block(const Team& team, int64_t count, int64_t size, Body&& body) {
    each_task(team, int((count + size - 1) / size), [&](int block, int) {
        const int64_t begin = block * size;
        body(begin, begin + size < count ? begin + size : count);
    });
}

}  // namespace cb

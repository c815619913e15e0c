// The low-rank side of a linear layer with LoRA: what stands beside the large products, a block of rows at a time.
//
//   low   [rows][rank]   x a', and its gradient: `rank` a multiple of 16, over all layers that share x
//
// Each function makes whatever its rows are needed for while they lie in the second cache. Gradients of a and b are sums
// over rows: each block has its own, and they are added up in order.
#pragma once

#include <algorithm>

#include "elements.h"
#include "team.h"
#include "tile_product.h"

namespace cb {

constexpr int LORA_ROWS = 128;   // of a block
constexpr int LORA_TILE = 32;    // rows of one product
constexpr int LORA_LANES = 64;   // columns of one product

struct Rows {
    void* data;
    int64_t stride;  // in values

    template <class T>
    T* at(int64_t row) const { return (T*)data + row * stride; }
};

struct LoraRows {
    Rows wide, low;         // [num_rows][n], [num_rows][rank]
    Rows made;              // [num_rows][rank]: what is narrowed
    const void* narrowing;  // a right matrix [n][rank], and
    const void* widening;   // one [rank][n], packed by cbt_lora_pack; null where it is not needed
    float *blocks, *sums;   // [blocks][rank][n], [rank][n]; null where they are not asked for
    int64_t num_rows, n;
    int32_t rank, is_bf16;
    float scale;
};

// made [rows][rank] = scale * (wide [rows][n] narrowing [n][rank])
template <class T>
void lora_narrow(const LoraRows& r, int64_t begin, int64_t end, Lines<float>& sums) {
    const int lanes = r.rank;
    const PairTiles tiles;
    sums.resize(LORA_TILE * lanes);
    for (int64_t row = begin; row < end; row += LORA_TILE) {
        const int rows = int(std::min<int64_t>(LORA_TILE, end - row));
        product<T>({(const uint8_t*)r.wide.at<T>(row), int64_t(r.wide.stride * sizeof(T)), 4}, rows, r.narrowing, lanes, lanes,
                   int(r.n / PER_UNIT<T>), sums.data(), lanes, false);
        for (int i = 0; i < rows; ++i)
            for (int lane = 0; lane < lanes; lane += LANES)
                store16(r.made.at<T>(row + i) + lane,
                        _mm512_mul_ps(_mm512_loadu_ps(sums.data() + i * lanes + lane), _mm512_set1_ps(r.scale)));
    }
}

// wide [rows][n] += scale * (low [rows][rank] right [rank][n])
template <class T>
void lora_widen(const LoraRows& r, int64_t begin, int64_t end, Lines<float>& sums) {
    constexpr int UNITS = 8;  // of a tile: sixteen ranks
    const PairTiles tiles(UNITS);
    sums.resize(LORA_TILE * LORA_LANES);
    const int depth = r.rank / PER_UNIT<T>;
    for (int64_t row = begin; row < end; row += LORA_TILE) {
        const int rows = int(std::min<int64_t>(LORA_TILE, end - row));
        for (int64_t lane = 0; lane < r.n; lane += LORA_LANES) {
            const int lanes = int(std::min<int64_t>(LORA_LANES, r.n - lane));
            product<T, UNITS>({(const uint8_t*)r.low.at<T>(row), int64_t(r.low.stride * sizeof(T)), 4}, rows,
                          (const uint32_t*)r.widening + lane, int(r.n), lanes, depth, sums.data(), LORA_LANES, false);
            for (int i = 0; i < rows; ++i) {
                T* to = r.wide.at<T>(row + i) + lane;
                for (int k = 0; k < lanes; k += LANES)
                    store16(to + k, _mm512_fmadd_ps(_mm512_loadu_ps(sums.data() + i * LORA_LANES + k), _mm512_set1_ps(r.scale),
                                                    load16(to + k)));
            }
        }
    }
}

struct LoraScratch {
    Lines<float> sums;
    Lines<uint32_t> low, turned, wide;
};

// low' wide [rank][n], over the rows of one block.
template <class T>
void lora_outer(const LoraRows& r, int64_t begin, int64_t end, int64_t number, LoraScratch& scratch) {
    constexpr int PER = PER_UNIT<T>;
    const PairTiles tiles;
    float* sums = r.blocks + number * r.rank * r.n;
    const int rows = int(end - begin), there = (rows + PER - 1) / PER, depth = round_up(there, 16);
    scratch.low.resize(there * r.rank);
    scratch.turned.assign(size_t(r.rank) * depth, 0);
    scratch.wide.resize(depth * LORA_LANES);
    pack_depth(r.low.at<T>(begin), r.low.stride, rows, r.rank, scratch.low.data());
    for (int unit = 0; unit < there; ++unit)
        for (int k = 0; k < r.rank; ++k) scratch.turned[size_t(k) * depth + unit] = scratch.low[size_t(unit) * r.rank + k];
    for (int64_t lane = 0; lane < r.n; lane += LORA_LANES) {
        const int lanes = int(std::min<int64_t>(LORA_LANES, r.n - lane));
        pack_depth(r.wide.at<T>(begin) + lane, r.wide.stride, rows, lanes, scratch.wide.data());
        std::fill_n(scratch.wide.data() + there * lanes, (depth - there) * lanes, 0);
        product<T>({(const uint8_t*)scratch.turned.data(), depth * 4, 4}, r.rank, scratch.wide.data(), lanes, lanes, depth,
                   sums + lane, r.n, false);
    }
}

// `body(rows, i, scratch)` for each i below `tasks(rows)`, of each of `count`, all at once.
template <class Tasks, class Body>
void each_layer(const Team& team, const LoraRows* all, int count, Tasks&& tasks, Body&& body) {
    std::vector<int> ends;
    for (int i = 0; i < count; ++i) ends.push_back((i ? ends.back() : 0) + tasks(all[i]));
    std::vector<LoraScratch> scratch(std::max(1, team.num_threads));
    each_task(team, count ? ends.back() : 0, [&](int task, int thread) {
        const int i = int(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
        body(all[i], i ? task - ends[i - 1] : task, scratch[thread]);
    });
}

// sums [rank][n] = the sum of all blocks, in order; of each of `count`.
inline void lora_add_up(const Team& team, const LoraRows* all, int count) {
    constexpr int64_t SOME = 4096;
    each_layer(team, all, count, [](const LoraRows& r) { return int((r.rank * r.n + SOME - 1) / SOME); },
               [](const LoraRows& r, int number, LoraScratch&) {
        const int64_t num_blocks = (r.num_rows + LORA_ROWS - 1) / LORA_ROWS, values = r.rank * r.n;
        const int64_t begin = number * SOME, end = std::min(begin + SOME, values);
        for (int64_t i = begin; i < end; i += LANES) {
            f32x16 sum = _mm512_setzero_ps();
            for (int64_t b = 0; b < num_blocks; ++b) sum = _mm512_add_ps(sum, _mm512_loadu_ps(r.blocks + b * values + i));
            _mm512_storeu_ps(r.sums + i, sum);
        }
    });
}

// `body(rows, begin, end, number, scratch)` of each block of rows of each of `count`.
template <class Body>
void each_rows(const Team& team, const LoraRows* all, int count, Body&& body) {
    each_layer(team, all, count, [](const LoraRows& r) { return int((r.num_rows + LORA_ROWS - 1) / LORA_ROWS); },
               [&](const LoraRows& r, int number, LoraScratch& scratch) {
        const int64_t begin = int64_t(number) * LORA_ROWS;
        body(r, begin, std::min(begin + LORA_ROWS, r.num_rows), number, scratch);
    });
}

}  // namespace cb

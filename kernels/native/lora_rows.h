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
constexpr int LORA_LANES = 64;   // columns of one product; n is a multiple of half of it
constexpr int LORA_UNITS = 8;    // of a tile where the ranks are summed over: sixteen of them

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
    float *blocks, *sums;   // [blocks][rank][n], and [rank][n] or, scaled, [n][turned]; null where they are not asked for
    int64_t num_rows, n;
    int32_t rank, is_bf16;
    int32_t turned;         // 0, or how many of the ranks are wanted
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

// M rows by V registers of: to [..][n] += scale * (low [..][depth] right [depth][n]), depth in units. Sums never leave the
// registers.
template <class T, int M, int V>
inline void widen_block(const uint8_t* low, int64_t low_bytes, const uint32_t* right, int64_t n, int depth, float scale, T* to,
                        int64_t stride) {
    f32x16 sums[M][V];
    each<M>([&](auto m) CB_INLINE { each<V>([&](auto v) CB_INLINE { sums[m][v] = _mm512_setzero_ps(); }); });
    for (int k = 0; k < depth; ++k, low += 4, right += n) {
        i32x16 b[V];
        each<V>([&](auto v) CB_INLINE { b[v] = _mm512_loadu_si512(right + v * LANES); });
        each<M>([&](auto m) CB_INLINE {
            each<V>([&](auto v) CB_INLINE { add_product<T>(sums[m][v], b[v], low + m * low_bytes); });
        });
    }
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE {
            T* at = to + m * stride + v * LANES;
            store16(at, _mm512_fmadd_ps(sums[m][v], _mm512_set1_ps(scale), load16(at)));
        });
    });
}

// The same of `rows` rows.
template <class T, int V>
inline void widen_rows(const uint8_t* low, int64_t low_bytes, int rows, const uint32_t* right, int64_t n, int depth, float scale,
                       T* to, int64_t stride) {
    constexpr int M = 4;
    for (; rows >= M; rows -= M, low += M * low_bytes, to += M * stride)
        widen_block<T, M, V>(low, low_bytes, right, n, depth, scale, to, stride);
    for (; rows; --rows, low += low_bytes, to += stride)
        widen_block<T, 1, V>(low, low_bytes, right, n, depth, scale, to, stride);
}

// The same with sums made by tiles: they come by way of memory.
inline void widen_by_tiles(const uint8_t* low, int64_t low_bytes, int rows, const uint32_t* right, int64_t n, int lanes, int depth,
                           float scale, float* sums, uint16_t* to, int64_t stride) {
    product<uint16_t, LORA_UNITS>({low, low_bytes, 4}, rows, right, int(n), lanes, depth, sums, LORA_LANES, false);
    for (int i = 0; i < rows; ++i)
        for (int k = 0; k < lanes; k += LANES) {
            uint16_t* at = to + i * stride + k;
            store16(at, _mm512_fmadd_ps(_mm512_loadu_ps(sums + i * LORA_LANES + k), _mm512_set1_ps(scale), load16(at)));
        }
}

// wide [rows][n] += scale * (low [rows][rank] right [rank][n])
template <class T>
void lora_widen(const LoraRows& r, int64_t begin, int64_t end, Lines<float>& sums) {
    const PairTiles tiles(LORA_UNITS);
    sums.resize(LORA_TILE * LORA_LANES);
    const int depth = r.rank / PER_UNIT<T>;
    const int64_t low_bytes = r.low.stride * sizeof(T), stride = r.wide.stride;
    for (int64_t row = begin; row < end; row += LORA_TILE) {
        const int rows = int(std::min<int64_t>(LORA_TILE, end - row));
        const uint8_t* low = (const uint8_t*)r.low.at<T>(row);
        for (int64_t lane = 0; lane < r.n; lane += LORA_LANES) {
            const int lanes = int(std::min<int64_t>(LORA_LANES, r.n - lane));
            const uint32_t* right = (const uint32_t*)r.widening + lane;
            T* to = r.wide.at<T>(row) + lane;
            if constexpr (sizeof(T) == 2)
                if (use_tiles) {
                    widen_by_tiles(low, low_bytes, rows, right, r.n, lanes, depth, r.scale, sums.data(), to, stride);
                    continue;
                }
            if (lanes == LORA_LANES) widen_rows<T, 4>(low, low_bytes, rows, right, r.n, depth, r.scale, to, stride);
            else widen_rows<T, 2>(low, low_bytes, rows, right, r.n, depth, r.scale, to, stride);
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

// The sum of all blocks at `at`, sixteen values, in order.
inline f32x16 sum_of_blocks(const LoraRows& r, int64_t num_blocks, int64_t at) {
    f32x16 sum = _mm512_setzero_ps();
    for (int64_t b = 0; b < num_blocks; ++b) sum = _mm512_add_ps(sum, _mm512_loadu_ps(r.blocks + b * r.rank * r.n + at));
    return sum;
}

// sums [n][turned] of the lanes [begin, end), which are whole sixteens.
inline void add_up_turned(const LoraRows& r, int64_t num_blocks, int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; lane += LANES)
        for (int rank = 0; rank < r.turned; rank += LANES) {
            i32x16 sums[16];
            each<16>([&](auto k) CB_INLINE {
                const f32x16 sum = sum_of_blocks(r, num_blocks, (rank + k) * r.n + lane);
                sums[k] = _mm512_castps_si512(_mm512_mul_ps(sum, _mm512_set1_ps(r.scale)));
            });
            transpose_16x16(sums);
            const __mmask16 there = lanes_at(rank, r.turned);
            each<16>([&](auto i) CB_INLINE {
                _mm512_mask_storeu_epi32(r.sums + (lane + i) * r.turned + rank, there, sums[i]);
            });
        }
}

// sums = the sum of all blocks, in order; of each of `count`.
inline void lora_add_up(const Team& team, const LoraRows* all, int count) {
    constexpr int64_t SOME = 4096, LANES_OF_TASK = 128;
    const auto size = [](const LoraRows& r) { return r.turned ? r.n : r.rank * r.n; };
    const auto step = [](const LoraRows& r) { return r.turned ? LANES_OF_TASK : SOME; };
    each_layer(team, all, count, [&](const LoraRows& r) { return int((size(r) + step(r) - 1) / step(r)); },
               [&](const LoraRows& r, int number, LoraScratch&) {
        const int64_t num_blocks = (r.num_rows + LORA_ROWS - 1) / LORA_ROWS;
        const int64_t begin = number * step(r), end = std::min(begin + step(r), size(r));
        if (r.turned) return add_up_turned(r, num_blocks, begin, end);
        for (int64_t i = begin; i < end; i += LANES) _mm512_storeu_ps(r.sums + i, sum_of_blocks(r, num_blocks, i));
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

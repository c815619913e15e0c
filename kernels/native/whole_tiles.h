// Sums that stay on the tile unit along the whole of K: BFLOAT16, and INT8 with inputs of 16 bits.
//
// The unit multiplies 8 bits. An input of 16 is 256 times a high half and a low half, each multiplied as int8 and added up
// in whole numbers, which costs twice the products and saves all that groups of inputs with a scale each cost beside them.
// A row's sums are the same whatever other rows there are: the unit adds along K, in one order.
#pragma once

#include "tile_sums.h"

namespace cb {

constexpr int STEP_BYTES = 64;  // of a row of inputs at a time: 32 bf16, or 64 halves
constexpr int STEP_PANEL = STEP_BYTES * PANEL;

#ifdef CB_TILES

// Tiles 4 and 5 are inputs, 6 and 7 the two halves of the panel, 0 to 3 sums.
CB_INLINE inline void load_panel_step(const uint8_t* panel) {
    _tile_loadd(6, panel, 4 * PANEL);
    _tile_loadd(7, panel + 64, 4 * PANEL);
}

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// R blocks of 16 rows: sums [R * 16][32].
template <int R>
inline void bf16_on_tiles(const uint8_t* x, int64_t row_bytes, const uint8_t* panel, int steps, Ahead next, float* sums) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read and write memory
    zero_sums();
    const uint8_t* below = x + MAX_TILE * row_bytes;
    for (int step = 0; step < steps; ++step, x += STEP_BYTES, below += STEP_BYTES, panel += STEP_PANEL) {
        prefetch_far(next.from, next.bytes), next.from += next.bytes;
        load_panel_step(panel);
        _tile_loadd(4, x, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (R == 2) {
            _tile_loadd(5, below, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(1, sums + LANES, 4 * PANEL);
    if constexpr (R == 2) {
        _tile_stored(2, sums + MAX_TILE * PANEL, 4 * PANEL);
        _tile_stored(3, sums + MAX_TILE * PANEL + LANES, 4 * PANEL);
    }
    asm volatile("" ::: "memory");
}

// 16 rows: sums of the high halves [16][32], then of the low ones.
inline void halves_on_tiles(const uint8_t* x, int k, const uint8_t* panel, int steps, Ahead next, int32_t* sums) {
    asm volatile("" ::: "memory");
    zero_sums();
    for (int step = 0; step < steps; ++step, x += STEP_BYTES, panel += STEP_PANEL) {
        prefetch_far(next.from, next.bytes), next.from += next.bytes;
        load_panel_step(panel);
        _tile_loadd(4, x, 2 * int64_t(k));
        _tile_loadd(5, x + k, 2 * int64_t(k));
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * PANEL);
    _tile_stored(1, sums + LANES, 4 * PANEL);
    _tile_stored(2, sums + MAX_TILE * PANEL, 4 * PANEL);
    _tile_stored(3, sums + MAX_TILE * PANEL + LANES, 4 * PANEL);
    asm volatile("" ::: "memory");
}

#else

template <int R>
inline void bf16_on_tiles(const uint8_t*, int64_t, const uint8_t*, int, Ahead, float*) {}
inline void halves_on_tiles(const uint8_t*, int, const uint8_t*, int, Ahead, int32_t*) {}

#endif

// What a row of HALVES gives: `scales` of the columns.
CB_INLINE inline f32x16 of_halves(i32x16 high, i32x16 low, const Rows& x, int row, const float* scales) {
    const f32x16 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low));
    return _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(x.scales[row])), _mm512_loadu_ps(scales));
}

// The products of `rows` rows from `first` on, 16 at most.
inline void halves_by_panel(const uint8_t* panel, const Rows& x, int first, int rows, const float* scales, Ahead next,
                            Acc<MAX_TILE>& out) {
    alignas(64) int32_t sums[2 * MAX_TILE * PANEL];
    halves_on_tiles(x.row(first), x.k, panel, x.k / STEP_BYTES, next, sums);
    for (int m = 0; m < rows; ++m) {
        const int32_t* offsets = x.offsets.data() + 2 * (first + m);
        each<2>([&](auto half) CB_INLINE {
            const int32_t* from = sums + m * PANEL + half * LANES;
            const i32x16 high = _mm512_add_epi32(_mm512_load_si512(from), _mm512_set1_epi32(offsets[0]));
            const i32x16 low =
                _mm512_add_epi32(_mm512_load_si512(from + MAX_TILE * PANEL), _mm512_set1_epi32(offsets[1]));
            out.v[m][half] = of_halves(high, low, x, first + m, scales + half * LANES);
        });
    }
}

// The same of BFLOAT16, for two blocks of rows where there are so many: `take(products, first, rows)` gets each.
template <class Take>
inline void bf16_by_panel(const uint8_t* panel, const Rows& x, int first, int rows, Ahead next, Take&& take) {
    alignas(64) float sums[2 * MAX_TILE * PANEL];
    const int steps = x.k * 2 / STEP_BYTES;
    if (rows > MAX_TILE) bf16_on_tiles<2>(x.row(first), int64_t(x.k) * 2, panel, steps, next, sums);
    else bf16_on_tiles<1>(x.row(first), int64_t(x.k) * 2, panel, steps, next, sums);
    for (int at = 0; at < rows; at += MAX_TILE) {
        Acc<MAX_TILE> acc;
        const int count = std::min(MAX_TILE, rows - at);
        for (int m = 0; m < count; ++m)
            each<2>([&](auto half) CB_INLINE { acc.v[m][half] = _mm512_load_ps(sums + (at + m) * PANEL + half * LANES); });
        take(acc, first + at, count);
    }
}

}  // namespace cb

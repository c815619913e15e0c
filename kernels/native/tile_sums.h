// The sums of a panel of INT4 on the tile unit: bit for bit those that linear.h makes in registers, whatever the number of
// rows, since whole numbers have one sum and the groups are added up in the same order.
#pragma once

#include "rows.h"

namespace cb {

// What is fetched meanwhile, in so many bytes for a group.
struct Ahead {
    const uint8_t* from = nullptr;
    int bytes = 0;
};

template <int M>
struct Acc {
    f32x16 v[M][2];
};

inline f32x16 load_half(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }

// A half of the panel after the other. A group takes three steps: it is multiplied, its sums are
// stored, and they are added up. While that is done for a group, the next two are in the steps before. `codes` is the
// panel as INT8 lies; scales and minimums are in `panel`.
template <int M>
inline void sum_on_tiles(const uint8_t* codes, const uint8_t* panel, const Rows& x, int first, Ahead next, Acc<M>& out) {
    alignas(64) int32_t even[MAX_TILE * LANES], odd[MAX_TILE * LANES];
    const int64_t groups = x.k / GROUP;  // an even number, as k is padded
    for (int half = 0; half < 2; ++half) {
        const uint8_t *a = x.row(first), *b = codes + half * 64;
        const uint16_t* halves = (const uint16_t*)(panel + GROUP * PANEL / 2) + half * LANES;
        const Rows::Block* upper = x.block(first);
        const Rows::Block* lower = upper + (M > BLOCK_ROWS ? groups : 0);
        f32x16 total[M];
        each<M>([&](auto m) CB_INLINE { total[m] = _mm512_setzero_ps(); });
        const auto multiply = [&](auto slot) CB_INLINE {
            multiply_group<slot>(a, x.k, b);
            a += GROUP, b += GROUP * PANEL;
        };
        const auto add = [&](const int32_t* sums) CB_INLINE {
            const f32x16 scale = load_half(halves), low = load_half(halves + PANEL);
            halves += GROUP_BYTES / 2;
            each<M>([&](auto m) CB_INLINE {
                const Rows::Block* block = m < BLOCK_ROWS ? upper : lower;
                const i32x16 sum = _mm512_load_si512(sums + m * LANES);
                const f32x16 least = _mm512_mul_ps(_mm512_set1_ps(block->sums[m % BLOCK_ROWS]), low);
                const f32x16 part = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, least);
                dot_f32(total[m], part, block->scales + m % BLOCK_ROWS);
            });
            ++upper, ++lower;
        };
        multiply(std::integral_constant<int, 0>{});
        multiply(std::integral_constant<int, 1>{});
        store_sums<0>(even);
        for (int64_t left = groups - 2; left > 0; left -= 2) {
            prefetch_far(next.from, next.bytes), next.from += next.bytes;
            multiply(std::integral_constant<int, 0>{});
            store_sums<1>(odd);
            add(even);
            multiply(std::integral_constant<int, 1>{});
            store_sums<0>(even);
            add(odd);
        }
        store_sums<1>(odd);
        add(even);
        add(odd);
        each<M>([&](auto m) CB_INLINE { out.v[m][half] = total[m]; });
    }
}

// A panel of INT4 as one of INT8 lies, in a place of this thread: once for all rows.
inline const uint8_t* unpack_int4(const uint8_t* panel, int k) {
    static thread_local Lines<uint8_t> place;
    if (place.size() < size_t(k) * PANEL) place.resize(size_t(k) * PANEL);
    const i32x16 low_half = _mm512_set1_epi8(0x0f);
    uint8_t* to = place.data();
    for (int group = 0; group < k / GROUP; ++group, panel += GROUP_BYTES)
        for (int pair = 0; pair < 4; ++pair, to += 256)
            each<2>([&](auto half) CB_INLINE {
                const i32x16 both = _mm512_loadu_si512(panel + pair * 128 + half * 64);
                _mm512_store_si512(to + half * 64, _mm512_and_si512(both, low_half));
                _mm512_store_si512(to + 128 + half * 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half));
            });
    return place.data();
}

}  // namespace cb

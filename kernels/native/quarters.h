// Keys and values of a token's head in four bits: turned by a Hadamard matrix, and each quarter rounded between ends of its
// own. The arithmetic is that of kernels/packed_heads.py, which says why; here it is as these kernels lay it out.
//
//   keys    codes [head_dim / 8][16 tokens][4], a dimension of the first half in the low half of a byte and its like of
//           the second half in the high one; numbers [4 scales, 4 minimums][16 tokens] half
//   values  codes [16 tokens][head_dim / 2], dimension d of 32 with d + 16 in a byte, and of 16 that are left over d with
//           d + 8; numbers [16 tokens][4 scales, 4 minimums] half
#pragma once

#include <algorithm>
#include <numeric>

#include "weights.h"

namespace cb {

constexpr int QUARTERS = 4;
constexpr float MAX_CODE = 15;
constexpr float SPANS[2] = {1.0f, 0.88f};  // how far the ends of a quarter are drawn in, before a line is fitted

inline f32x16 load_halves(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }

// x times Sylvester's Hadamard matrix of its size, a power of two, and `scale`, in place.
inline void hadamard(float* x, int n, float scale) {
    for (int half = 1; half < n; half *= 2)
        for (int first = 0; first < n; first += 2 * half)
            for (int i = first; i < first + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    for (int i = 0; i < n; ++i) x[i] *= scale;
}

inline bool turns(int head_dim) { return (head_dim & (head_dim - 1)) == 0; }

inline int halvings(int head_dim) { return __builtin_ctz(head_dim); }

// Keys and values as they are kept. Heads whose size is no power of two are not turned.
inline void turn_head(float* x, int hd) {
    if (turns(hd)) hadamard(x, hd, std::ldexp(1.0f, -(halvings(hd) / 2)));
}

// What undoes it; also of queries.
inline void turn_head_back(float* x, int hd) {
    if (turns(hd)) hadamard(x, hd, std::ldexp(1.0f, -(halvings(hd) - halvings(hd) / 2)));
}

// A quarter between given ends: codes, and what is lost in squares.
inline float round_quarter(const float* x, int n, float scale, float minimum, float* codes) {
    const float steps = scale > 0 ? 1 / scale : 0;
    float lost = 0;
    for (int i = 0; i < n; ++i) {
        codes[i] = std::min(std::max(std::nearbyint((x[i] - minimum) * steps), 0.0f), MAX_CODE);
        const float away = minimum + codes[i] * scale - x[i];
        lost += away * away;
    }
    return lost;
}

inline float as_half(float x) { return half_to_f32(f32_to_half(x)); }

// x [n] -> codes [n], scale and minimum: the best of ends as they are and drawn in, and of the lines that fit their codes.
inline void fit_quarter(const float* x, int n, uint8_t* codes, uint16_t* scale_out, uint16_t* minimum_out) {
    const float low = *std::min_element(x, x + n), high = *std::max_element(x, x + n);
    float mean = 0;
    for (int i = 0; i < n; ++i) mean += x[i];
    mean /= float(n);
    float tried[64], kept[64];
    float least = INFINITY, best_scale = 0, best_minimum = 0;
    const auto take = [&](float scale, float minimum) {
        const float lost = round_quarter(x, n, scale, minimum, tried);
        if (lost < least) {
            least = lost, best_scale = scale, best_minimum = minimum;
            std::copy_n(tried, n, kept);
        }
    };
    float lines[2][2];
    for (int span = 0; span < 2; ++span) {
        const float width = (high - low) * SPANS[span];
        take(as_half(width / MAX_CODE), as_half((low + high - width) / 2));
        float middle = 0, slope = 0, spread = 0;
        for (int i = 0; i < n; ++i) middle += tried[i];
        middle /= float(n);
        for (int i = 0; i < n; ++i) {
            slope += (tried[i] - middle) * x[i];
            spread += (tried[i] - middle) * (tried[i] - middle);
        }
        slope /= std::max(spread, 1 / float(n));  // of two codes or more it is over a half
        lines[span][0] = as_half(slope);
        lines[span][1] = as_half(mean - slope * middle);
    }
    for (const auto& line : lines) take(line[0], line[1]);
    for (int i = 0; i < n; ++i) codes[i] = uint8_t(kept[i]);
    *scale_out = f32_to_half(best_scale);
    *minimum_out = f32_to_half(best_minimum);
}

// x [hd] -> codes [hd], numbers [4 scales, 4 minimums].
inline void pack_head(const float* x, int hd, uint8_t* codes, uint16_t* numbers) {
    float turned[256];
    std::copy_n(x, hd, turned);
    turn_head(turned, hd);
    const int n = hd / QUARTERS;
    for (int quarter = 0; quarter < QUARTERS; ++quarter)
        fit_quarter(turned + quarter * n, n, codes + quarter * n, numbers + quarter, numbers + QUARTERS + quarter);
}

// codes [hd] of a value -> [hd / 2] bytes.
inline void pack_values(const uint8_t* codes, int hd, uint8_t* to) {
    for (int first = 0; first < hd; first += 2 * LANES) {
        const int half = std::min(2 * LANES, hd - first) / 2;
        for (int i = 0; i < half; ++i) to[first / 2 + i] = codes[first + i] | codes[first + half + i] << 4;
    }
}

// The codes of dimensions d to d + 15 of a value.
inline i32x16 value_codes(const uint8_t* from, int d, int hd) {
    const __m128i low_half = _mm_set1_epi8(0x0f);
    const int first = d / (2 * LANES) * (2 * LANES);
    if (hd - first >= 2 * LANES) {
        const __m128i both = _mm_loadu_si128((const __m128i*)(from + first / 2));
        const __m128i shifted = d == first ? both : _mm_srli_epi16(both, 4);
        return _mm512_cvtepu8_epi32(_mm_and_si128(shifted, low_half));
    }
    const __m128i both = _mm_loadl_epi64((const __m128i*)(from + first / 2));
    const __m128i codes = _mm_unpacklo_epi64(both, _mm_srli_epi16(both, 4));
    return _mm512_cvtepu8_epi32(_mm_and_si128(codes, low_half));
}

// codes [n] -> the sum of each quarter; n is a multiple of 16.
inline void sum_quarters(const int8_t* codes, int n, int32_t* out) {
    alignas(64) int32_t fours[64];
    for (int i = 0; i < n; i += 64) {
        const __mmask64 here = n - i >= 64 ? ~0ull : (1ull << (n - i)) - 1;
        _mm512_store_si512(fours + i / 4, _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                                              _mm512_maskz_loadu_epi8(here, codes + i)));
    }
    const int32_t* from = fours;
    for (int quarter = 0; quarter < QUARTERS; ++quarter, from += n / 4 / QUARTERS)
        out[quarter] = std::accumulate(from, from + n / 4 / QUARTERS, 0);
}

// The quarters that dimensions d to d + 15 lie in.
inline i32x16 quarter_of(int d, int hd) {
    alignas(64) int32_t of[LANES];
    for (int i = 0; i < LANES; ++i) of[i] = (d + i) / (hd / QUARTERS);
    return _mm512_load_si512(of);
}

}  // namespace cb

// Weight matrices in the layouts that the products read: panels of 32 output columns, each one stream of memory.
//
//   format    a panel                                                      per column or group
//   FLOAT32   [K][32] float
//   BFLOAT16  [K / 2][32][2] bf16
//   INT8      [K / 4][32][4] uint8 (value + 128)                           scale (float), after all panels
//   INT4      per group of 32: [4][2][16][4] bytes, two codes each, then   scale, minimum (half), in the panel
//             scale [32], minimum [32]; value = code * scale + minimum
//   NF4       per group of 64: [16][2][16][2] bytes, two codes each, then  largest magnitude (half), in the panel
//             scale [32]; value = NF4_VALUES[code] * scale
//
// In a byte of two codes the low half belongs to the earlier step along K. Columns are padded to 32 and K to a multiple
// of 64 with weights that are zero, so no product looks at a border.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace cb {

enum Format : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, NF4 = 4 };

constexpr int PANEL = 32;     // columns
constexpr int K_MULTIPLE = 64;
constexpr int GROUP = 32;     // inputs that share a scale in INT8, and weights that share one in INT4
constexpr int GROUP_NF4 = 64;
constexpr int GROUP_BYTES = GROUP * PANEL / 2 + 4 * PANEL;
constexpr int GROUP_NF4_BYTES = GROUP_NF4 * PANEL / 2 + 2 * PANEL;

// Quantiles of the normal distribution, scaled to [-1, 1]: Dettmers et al., "QLoRA" (2023), appendix E.
constexpr float NF4_VALUES[16] = {-1.0f,
                                  -0.6961928009986877f,
                                  -0.5250730514526367f,
                                  -0.39491748809814453f,
                                  -0.28444138169288635f,
                                  -0.18477343022823334f,
                                  -0.09105003625154495f,
                                  0.0f,
                                  0.07958029955625534f,
                                  0.16093020141124725f,
                                  0.24611230194568634f,
                                  0.33791524171829224f,
                                  0.44070982933044434f,
                                  0.5626170039176941f,
                                  0.7229568362236023f,
                                  1.0f};

struct Weight {
    int32_t format;
    int32_t n;         // outputs
    int32_t k;         // inputs
    int32_t reserved;
    const uint8_t* data;
    const float* bias;  // [n padded to 32], or null
    const int32_t* order;  // [k]: column i multiplies input order[i] (GPTQ's act-order); null: input i
};

inline int padded_k(int k) { return round_up(k, K_MULTIPLE); }
inline int num_panels(int n) { return (n + PANEL - 1) / PANEL; }

inline int64_t panel_bytes(int format, int k) {
    const int64_t kp = padded_k(k);
    switch (format) {
        case FLOAT32: return kp * PANEL * 4;
        case BFLOAT16: return kp * PANEL * 2;
        case INT8: return kp * PANEL;
        case INT4: return kp / GROUP * GROUP_BYTES;
        case NF4: return kp / GROUP_NF4 * GROUP_NF4_BYTES;
    }
    return -1;
}

inline int64_t weight_bytes(int format, int n, int k) {
    const int64_t panels = num_panels(n);
    return panels * panel_bytes(format, k) + (format == INT8 ? panels * PANEL * 4 : 0);
}

inline const float* int8_scales(const Weight& w) {
    return (const float*)(w.data + num_panels(w.n) * panel_bytes(INT8, w.k));
}

inline uint16_t f32_to_half(float x) {
    return uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 0));
}
inline float half_to_f32(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }

inline int nearest_nf4(float x) {
    int code = 0;
    for (int step = 8; step; step /= 2) {
        const int above = code + step;
        if (x > (NF4_VALUES[above - 1] + NF4_VALUES[above]) / 2) code = above;
    }
    return code;
}

// Where the byte (and for a bf16 or float, the element) of weight (k, column) lies within its panel.
inline int64_t element_index(int format, int k, int column) {
    switch (format) {
        case FLOAT32: return int64_t(k) * PANEL + column;
        case BFLOAT16: return int64_t(k / 2) * PANEL * 2 + column * 2 + k % 2;
        case INT8: return int64_t(k / 4) * PANEL * 4 + column * 4 + k % 4;
        case INT4: {
            const int group = k / GROUP, step = k % GROUP / 4;  // steps 2s and 2s + 1 share bytes
            return int64_t(group) * GROUP_BYTES + (step / 2 * 2 + column / LANES) * 64 + column % LANES * 4 + k % 4;
        }
        default: {
            const int group = k / GROUP_NF4, step = k % GROUP_NF4 / 2;
            return int64_t(group) * GROUP_NF4_BYTES + (step / 2 * 2 + column / LANES) * 32 + column % LANES * 2 + k % 2;
        }
    }
}

inline bool is_high_half(int format, int k) {
    return format == INT4 ? (k % GROUP / 4) % 2 : (k % GROUP_NF4 / 2) % 2;
}

inline uint16_t* group_halves(int format, uint8_t* panel, int group) {
    return format == INT4 ? (uint16_t*)(panel + int64_t(group) * GROUP_BYTES + GROUP * PANEL / 2)
                          : (uint16_t*)(panel + int64_t(group) * GROUP_NF4_BYTES + GROUP_NF4 * PANEL / 2);
}

// One column, `row` [k] of the matrix, into its panel.
inline void pack_column(int format, const float* row, int k, uint8_t* panel, int column, float* scale_out) {
    const int kp = padded_k(k);
    auto at = [&](int i) { return i < k ? row[i] : 0.0f; };
    if (format == FLOAT32) {
        for (int i = 0; i < kp; ++i) ((float*)panel)[element_index(format, i, column)] = at(i);
    } else if (format == BFLOAT16) {
        for (int i = 0; i < kp; ++i) ((uint16_t*)panel)[element_index(format, i, column)] = f32_to_bf16(at(i));
    } else if (format == INT8) {
        float largest = 0;
        for (int i = 0; i < k; ++i) largest = std::max(largest, std::fabs(row[i]));
        const float scale = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
        for (int i = 0; i < kp; ++i)
            panel[element_index(format, i, column)] = uint8_t(int(std::nearbyint(at(i) * inverse)) + 128);
        *scale_out = scale;
    } else {
        const int group_size = format == INT4 ? GROUP : GROUP_NF4;
        for (int group = 0; group < kp / group_size; ++group) {
            uint16_t* halves = group_halves(format, panel, group);
            const int first = group * group_size, last = std::min(first + group_size, k);
            float scale = 0, low = 0, inverse = 0;
            if (first < k) {
                if (format == INT4) {
                    auto [smallest, largest] = std::minmax_element(row + first, row + last);
                    low = half_to_f32(f32_to_half(*smallest));
                    scale = half_to_f32(f32_to_half((*largest - *smallest) / 15));
                } else {
                    for (int i = first; i < last; ++i) scale = std::max(scale, std::fabs(row[i]));
                    scale = half_to_f32(f32_to_half(scale));
                }
                inverse = scale > 0 ? 1 / scale : 0;
            }
            halves[column] = f32_to_half(scale);
            if (format == INT4) halves[PANEL + column] = f32_to_half(low);
            for (int i = first; i < first + group_size; ++i) {
                int code;
                if (format == INT4)
                    code = i < k ? std::clamp(int(std::nearbyint((row[i] - low) * inverse)), 0, 15) : 0;
                else
                    code = nearest_nf4(at(i) * inverse);
                uint8_t& byte = panel[element_index(format, i, column)];
                byte = is_high_half(format, i) ? uint8_t((byte & 0x0f) | (code << 4)) : uint8_t((byte & 0xf0) | code);
            }
        }
    }
}

// One column of INT8 or INT4 that is quantized already, into its panel (zeroed): `codes` int8 [k] and one float `scale`,
// or two codes a byte [k / 2], the earlier in the low half, with a half `scale` and `minimum` for each group.
inline void pack_codes(int format, const uint8_t* codes, const void* scales, const uint16_t* minimums, int k,
                       uint8_t* panel, int column, float* scale_out) {
    if (format == INT8) {
        const int kp = padded_k(k);
        for (int i = 0; i < kp; ++i)
            panel[element_index(format, i, column)] = uint8_t((i < k ? int8_t(codes[i]) : 0) + 128);
        *scale_out = *(const float*)scales;
        return;
    }
    for (int group = 0; group < k / GROUP; ++group) {
        uint16_t* halves = group_halves(format, panel, group);
        halves[column] = ((const uint16_t*)scales)[group];
        halves[PANEL + column] = minimums[group];
    }
    for (int i = 0; i < k; ++i) {
        const uint8_t code = i % 2 ? codes[i / 2] >> 4 : codes[i / 2] & 0x0f;
        uint8_t& byte = panel[element_index(format, i, column)];
        byte = is_high_half(format, i) ? uint8_t((byte & 0x0f) | (code << 4)) : uint8_t((byte & 0xf0) | code);
    }
}

// Row `n` of the matrix, as the products see it, into `out` [k], in the order of the inputs.
inline void unpack_row(const Weight& w, int n, float* out) {
    uint8_t* panel = (uint8_t*)w.data + int64_t(n / PANEL) * panel_bytes(w.format, w.k);
    const int column = n % PANEL;
    const float scale8 = w.format == INT8 ? int8_scales(w)[n] : 0;
    for (int i = 0; i < w.k; ++i) {
        const int64_t at = element_index(w.format, i, column);
        float& value = out[w.order ? w.order[i] : i];
        switch (w.format) {
            case FLOAT32: value = ((const float*)panel)[at]; break;
            case BFLOAT16: value = bf16_to_f32(((const uint16_t*)panel)[at]); break;
            case INT8: value = float(int(panel[at]) - 128) * scale8; break;
            default: {
                const int code = is_high_half(w.format, i) ? panel[at] >> 4 : panel[at] & 0x0f;
                const uint16_t* halves =
                    group_halves(w.format, panel, i / (w.format == INT4 ? GROUP : GROUP_NF4));
                const float scale = half_to_f32(halves[column]);
                value = w.format == INT4 ? float(code) * scale + half_to_f32(halves[PANEL + column])
                                         : bf16_to_f32(f32_to_bf16(NF4_VALUES[code])) * scale;
            }
        }
    }
}

}  // namespace cb

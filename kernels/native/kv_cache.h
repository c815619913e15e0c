// Keys and values as they are kept, and queries as they are multiplied with them: tiles of 16 tokens, laid out for
// whole-register products.
//
//   kv format   keys of a tile and head          values of a tile and head     scales of each
//   FLOAT32     [head_dim][16] float             [16][head_dim] float
//   BFLOAT16    [head_dim / 2][16][2] bf16       [8][head_dim][2] bf16         (pairs of tokens)
//   INT8        [head_dim / 4][16][4] u8 (+128)  [4][head_dim][4] int8         [16] float, a token and head
//   INT4        [head_dim / 8][16][4] u8         [16][head_dim / 2] u8         see quarters.h
//
// A cache is [num_tiles][num_layers][keys, values][num_kv_heads][that], and so are the scales; a block of the pool is
// block_size / 16 tiles in a row. All layers of a tile lie together, so that a sequence has few pages.
#pragma once

#include "quarters.h"

namespace cb {

constexpr int TILE = 16;

struct KVLayout {
    int format, num_kv_heads, head_dim, num_layers;

    int query_bytes() const { return head_dim * (format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1); }
    int64_t tile_bytes() const { return int64_t(TILE) * (format == INT4 ? head_dim / 2 : query_bytes()); }
    // From where a layer's keys, values or scales begin.
    int64_t at(int64_t tile, int head) const { return heads_before(tile, head) * tile_bytes(); }
    int64_t scale_at(int64_t tile, int head) const { return heads_before(tile, head) * TILE; }
    int64_t halves_at(int64_t tile, int head) const { return scale_at(tile, head) * 2 * QUARTERS; }

private:
    int64_t heads_before(int64_t tile, int head) const { return tile * num_layers * 2 * num_kv_heads + head; }
};

struct KVCache {  // of one layer
    uint8_t* keys;
    uint8_t* values;
    float* key_scales;    // INT8; INT4: halves; else null
    float* value_scales;

    uint16_t* key_halves() const { return (uint16_t*)key_scales; }
    uint16_t* value_halves() const { return (uint16_t*)value_scales; }
};

inline float quantize_row(const float* x, int n, int8_t* out) {
    f32x16 largest = _mm512_setzero_ps();
    for (int i = 0; i < n; i += LANES) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    const float top = _mm512_reduce_max_ps(largest);
    const f32x16 inverse = _mm512_set1_ps(top > 0 ? 127 / top : 0.0f);
    for (int i = 0; i < n; i += LANES)
        _mm_storeu_si128((__m128i*)(out + i),
                         _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse))));
    return top / 127;
}

// The key and value of one token and head, [head_dim] each, into `slot`.
inline void write_kv(const KVLayout& layout, const KVCache& cache, int64_t slot, int head, const float* key,
                     const float* value) {
    const int64_t tile = slot / TILE;
    const int lane = int(slot % TILE), hd = layout.head_dim;
    uint8_t* keys = cache.keys + layout.at(tile, head);
    uint8_t* values = cache.values + layout.at(tile, head);
    if (layout.format == FLOAT32) {
        for (int d = 0; d < hd; ++d) ((float*)keys)[d * TILE + lane] = key[d];
        std::memcpy((float*)values + lane * hd, value, hd * sizeof(float));
    } else if (layout.format == BFLOAT16) {
        uint16_t* k = (uint16_t*)keys;
        uint16_t* v = (uint16_t*)values + lane / 2 * hd * 2 + lane % 2;
        for (int d = 0; d < hd; d += 2) {
            k[d * TILE + lane * 2] = f32_to_bf16(key[d]);
            k[d * TILE + lane * 2 + 1] = f32_to_bf16(key[d + 1]);
        }
        for (int d = 0; d < hd; ++d) v[d * 2] = f32_to_bf16(value[d]);
    } else if (layout.format == INT4) {
        uint8_t codes[256];
        uint16_t numbers[2 * QUARTERS];  // scales, minimums
        pack_head(key, hd, codes, numbers);
        uint16_t* halves = cache.key_halves() + layout.halves_at(tile, head);
        for (int i = 0; i < 2 * QUARTERS; ++i) halves[i * TILE + lane] = numbers[i];
        for (int d = 0; d < hd / 2; d += 4)
            for (int i = 0; i < 4; ++i) keys[d * TILE + lane * 4 + i] = codes[d + i] | codes[hd / 2 + d + i] << 4;
        pack_head(value, hd, codes, cache.value_halves() + layout.halves_at(tile, head) + lane * 2 * QUARTERS);
        pack_values(codes, hd, values + lane * hd / 2);
    } else {
        int8_t codes[256];
        cache.key_scales[layout.scale_at(tile, head) + lane] = quantize_row(key, hd, codes);
        for (int d = 0; d < hd; d += 4) {
            uint32_t four;
            std::memcpy(&four, codes + d, 4);
            four ^= 0x80808080;  // each + 128
            std::memcpy(keys + d * TILE + lane * 4, &four, 4);
        }
        cache.value_scales[layout.scale_at(tile, head) + lane] = quantize_row(value, hd, codes);
        const i32x16 shift = _mm512_set1_epi32(lane % 4 * 8);
        const __mmask64 ours = 0x1111111111111111 << lane % 4;
        uint8_t* v = values + lane / 4 * hd * 4;
        for (int d = 0; d < hd; d += LANES) {
            const i32x16 wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + d)));
            _mm512_mask_storeu_epi8(v + d * 4, ours, _mm512_sllv_epi32(wide, shift));
        }
    }
}

// Queries of one step, turned and scaled (by log2 e too), as the scores multiply them.
struct Queries {
    Lines<uint8_t> data;   // [rows][head_dim] float, bf16 or int8 (INT8, INT4)
    Lines<float> scales;   // of int8
    Lines<int32_t> sums;   // [rows][QUARTERS] of int8, by quarters: for the keys' + 128, or their minimums

    void shape(const KVLayout& layout, size_t rows) {
        const size_t bytes = rows * layout.query_bytes();
        if (data.size() < bytes) data.resize(bytes);
        if (scales.size() < rows) scales.resize(rows), sums.resize(rows * QUARTERS);
    }

    void set(const KVLayout& layout, size_t row, const float* q) {
        const int hd = layout.head_dim;
        uint8_t* to = data.data() + row * layout.query_bytes();
        if (layout.format == FLOAT32) {
            std::memcpy(to, q, hd * sizeof(float));
        } else if (layout.format == BFLOAT16) {
            for (int d = 0; d < hd; d += LANES) store_bf16((uint16_t*)to + d, _mm512_loadu_ps(q + d));
        } else {
            float turned[256];
            if (layout.format == INT4) {
                std::memcpy(turned, q, hd * sizeof(float));
                turn_head_back(turned, hd);
                q = turned;
            }
            scales[row] = quantize_row(q, hd, (int8_t*)to);
            sum_quarters((const int8_t*)to, hd, sums.data() + row * QUARTERS);
        }
    }
};

}  // namespace cb

// Attention over a paged key/value cache whose tiles of 16 tokens are laid out for whole-register products.
//
//   kv format   keys of a tile and head          values of a tile and head     scales of each
//   FLOAT32     [head_dim][16] float             [16][head_dim] float
//   BFLOAT16    [head_dim / 2][16][2] bf16       [8][head_dim][2] bf16         (pairs of tokens)
//   INT8        [head_dim / 4][16][4] u8 (+128)  [16][head_dim] int8           [16] float, a token and head
//   INT4        [head_dim / 8][16][4] u8         [16][head_dim / 2] u8         see quarters.h
//
// A cache is [num_tiles][num_kv_heads][that]; a block of the pool is block_size / 16 tiles in a row.
//
// Every query row is computed as if it were alone: scores tile by tile, softmax over chunks of 1,024 keys that begin at
// multiples of 1,024, so a result depends neither on the batch nor on how a prompt was divided.
#pragma once

#include "linear.h"
#include "quarters.h"

namespace cb {

constexpr int TILE = 16;
constexpr int CHUNK = 1024;
constexpr int ROWS = 6;  // query rows that share a load of keys or values
constexpr int PREFETCH_ROWS = 4;
constexpr float LOG2_E = 1.44269504089f;

struct KVLayout {
    int format, num_kv_heads, head_dim;

    int query_bytes() const { return head_dim * (format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1); }
    int64_t tile_bytes() const { return int64_t(TILE) * (format == INT4 ? head_dim / 2 : query_bytes()); }
    int64_t at(int64_t tile, int head) const { return (tile * num_kv_heads + head) * tile_bytes(); }
    int64_t scale_at(int64_t tile, int head) const { return (tile * num_kv_heads + head) * TILE; }
    int64_t halves_at(int64_t tile, int head) const { return scale_at(tile, head) * 2 * QUARTERS; }
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
        cache.value_scales[layout.scale_at(tile, head) + lane] = quantize_row(value, hd, (int8_t*)values + lane * hd);
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

// One task: up to ROWS query rows that read the same key/value head of the same sequence.
struct RowGroup {
    const KVLayout* layout;
    const KVCache* cache;
    const int64_t* blocks;  // of the sequence
    int tiles_per_block;
    int head;
    int num_rows;
    const uint8_t* queries[ROWS];
    float query_scales[ROWS];
    const int32_t* query_sums[ROWS];  // [QUARTERS]
    int first_key[ROWS];  // keys first_key .. last_key are seen
    int last_key[ROWS];
    float* out[ROWS];     // [head_dim] each

    int64_t tile(int index) const { return blocks[index / tiles_per_block] * tiles_per_block + index % tiles_per_block; }
};

struct AttentionScratch {
    Lines<float> scores;     // [ROWS][CHUNK]
    Lines<uint16_t> halves;  // [ROWS][CHUNK], bf16 weights
    Lines<float> sums;       // [ROWS][head_dim]
    int64_t tiles[CHUNK / TILE];  // of the chunk
    AttentionScratch() : scores(ROWS * CHUNK), halves(ROWS * CHUNK), sums(ROWS * 256) {}
};

// Scores of M rows against one tile of keys: s[m] holds 16 of them.
template <int FORMAT, int M>
CB_INLINE inline void score_tile(const RowGroup& g, const uint8_t* keys, int64_t tile, f32x16 (&out)[M]) {
    const int hd = g.layout->head_dim;
    f32x16 s[M];
    each<M>([&](auto m) CB_INLINE { s[m] = _mm512_setzero_ps(); });
    if constexpr (FORMAT == FLOAT32) {
        for (int d = 0; d < hd; ++d) {
            const f32x16 k = _mm512_loadu_ps((const float*)keys + d * TILE);
            each<M>([&](auto m) CB_INLINE { dot_f32(s[m], k, (const float*)g.queries[m] + d); });
        }
    } else if constexpr (FORMAT == BFLOAT16) {
        // Two sums a row hide the latency of the products.
        f32x16 t[M];
        each<M>([&](auto m) CB_INLINE { t[m] = _mm512_setzero_ps(); });
        for (int d = 0; d < hd; d += 4) {
            const i32x16 k0 = _mm512_loadu_si512(keys + d * TILE * 2), k1 = _mm512_loadu_si512(keys + d * TILE * 2 + 64);
            each<M>([&](auto m) CB_INLINE {
                dot_bf16(s[m], k0, g.queries[m] + d * 2);
                dot_bf16(t[m], k1, g.queries[m] + d * 2 + 4);
            });
        }
        each<M>([&](auto m) CB_INLINE { s[m] = _mm512_add_ps(s[m], t[m]); });
    } else if constexpr (FORMAT == INT4) {
        const uint16_t* halves = g.cache->key_halves() + g.layout->halves_at(tile, g.head);
        const i32x16 low_half = _mm512_set1_epi8(0x0f);
        // A byte holds a dimension of the first half of the head and its like of the second: two quarters at a time.
        for (int first = 0; first < 2; ++first) {
            i32x16 acc[2][M];
            each<M>([&](auto m) CB_INLINE { acc[0][m] = acc[1][m] = _mm512_setzero_si512(); });
            for (int d = first * hd / 4; d < (first + 1) * hd / 4; d += 4) {
                const i32x16 both = _mm512_loadu_si512(keys + d * TILE);
                const i32x16 low = _mm512_and_si512(both, low_half);
                const i32x16 high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
                each<M>([&](auto m) CB_INLINE {
                    dot_int8(acc[0][m], low, g.queries[m] + d);
                    dot_int8(acc[1][m], high, g.queries[m] + hd / 2 + d);
                });
            }
            for (int second = 0; second < 2; ++second) {
                const int quarter = first + 2 * second;
                const f32x16 scale = load_halves(halves + quarter * TILE);
                const f32x16 minimum = load_halves(halves + (QUARTERS + quarter) * TILE);
                each<M>([&](auto m) CB_INLINE {
                    const f32x16 least = _mm512_mul_ps(minimum, _mm512_set1_ps(float(g.query_sums[m][quarter])));
                    s[m] = _mm512_add_ps(s[m], _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[second][m]), scale, least));
                });
            }
        }
        each<M>([&](auto m) CB_INLINE { s[m] = _mm512_mul_ps(s[m], _mm512_set1_ps(g.query_scales[m])); });
    } else {
        const float* key_scales = g.cache->key_scales + g.layout->scale_at(tile, g.head);
        i32x16 acc[M];
        each<M>([&](auto m) CB_INLINE { acc[m] = _mm512_setzero_si512(); });
        for (int d = 0; d < hd; d += 4) {
            const i32x16 k = _mm512_loadu_si512(keys + d * TILE);
            each<M>([&](auto m) CB_INLINE { dot_int8(acc[m], k, g.queries[m] + d); });
        }
        const f32x16 scale = _mm512_loadu_ps(key_scales);
        each<M>([&](auto m) CB_INLINE {
            const i32x16 exact = _mm512_sub_epi32(acc[m], _mm512_set1_epi32(128 * (g.query_sums[m][0] + g.query_sums[m][1] + g.query_sums[m][2] + g.query_sums[m][3])));
            s[m] = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, _mm512_set1_ps(g.query_scales[m])));
        });
    }
    each<M>([&](auto m) CB_INLINE { out[m] = s[m]; });
}

// INT8: the weights have the values' scales in them.
// sums[m][d .. d + 16 V) += weights x values over the tiles [begin, end), which lie in the chunk that starts at `base`.
template <int FORMAT, int M, int V>
inline void add_values(const RowGroup& g, AttentionScratch& scratch, int base, int begin, int end, int d) {
    const KVLayout& layout = *g.layout;
    const int hd = layout.head_dim;
    f32x16 acc[M][V];
    i32x16 quarter[V];
    if constexpr (FORMAT == INT4)
        each<V>([&](auto v) CB_INLINE { quarter[v] = quarter_of(d + v * LANES, hd); });
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE { acc[m][v] = _mm512_loadu_ps(scratch.sums.data() + m * 256 + d + v * LANES); });
    });
    for (int index = begin; index < end; ++index) {
        const int at = index * TILE - base;
        const int64_t tile = scratch.tiles[at / TILE];
        const uint8_t* values = g.cache->values + layout.at(tile, g.head);
        if constexpr (FORMAT == BFLOAT16) {
            for (int pair = 0; pair < TILE / 2; ++pair) {
                const uint8_t* row = values + (pair * hd + d) * 4;
                i32x16 b[V];
                each<V>([&](auto v) CB_INLINE { b[v] = _mm512_loadu_si512(row + v * 64); });
                each<M>([&](auto m) CB_INLINE {
                    const uint16_t* p = scratch.halves.data() + m * CHUNK + at + pair * 2;
                    each<V>([&](auto v) CB_INLINE { dot_bf16(acc[m][v], b[v], p); });
                });
            }
        } else {
            for (int key = 0; key < TILE; ++key) {
                f32x16 b[V];
                if constexpr (FORMAT == FLOAT32) {
                    each<V>([&](auto v) CB_INLINE { b[v] = _mm512_loadu_ps((const float*)values + key * hd + d + v * LANES); });
                } else if constexpr (FORMAT == INT4) {
                    const __m128i numbers = _mm_loadu_si128(
                        (const __m128i*)(g.cache->value_halves() + layout.halves_at(tile, g.head) + key * 2 * QUARTERS));
                    const f32x16 quarters = _mm512_castps256_ps512(_mm256_cvtph_ps(numbers));
                    each<V>([&](auto v) CB_INLINE {
                        const int at = d + v * LANES;
                        const f32x16 scale = _mm512_permutexvar_ps(quarter[v], quarters);
                        const f32x16 minimum =
                            _mm512_permutexvar_ps(_mm512_add_epi32(quarter[v], _mm512_set1_epi32(QUARTERS)), quarters);
                        b[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(value_codes(values + key * hd / 2, at, hd)), scale, minimum);
                    });
                } else {
                    each<V>([&](auto v) CB_INLINE {
                        const __m128i codes = _mm_loadu_si128((const __m128i*)(values + key * hd + d + v * LANES));
                        b[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
                    });
                }
                each<M>([&](auto m) CB_INLINE {
                    const float* p = scratch.scores.data() + m * CHUNK + at + key;
                    each<V>([&](auto v) CB_INLINE { dot_f32(acc[m][v], b[v], p); });
                });
            }
        }
    }
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE { _mm512_storeu_ps(scratch.sums.data() + m * 256 + d + v * LANES, acc[m][v]); });
    });
}

template <int FORMAT, int M>
void attend_rows(const RowGroup& g, AttentionScratch& scratch) {
    const KVLayout& layout = *g.layout;
    const int hd = layout.head_dim;
    float top[M], total[M];
    int first = INT_MAX, last = 0;
    for (int m = 0; m < M; ++m) {
        top[m] = -INFINITY;
        total[m] = 0;
        first = std::min(first, g.first_key[m]);
        last = std::max(last, g.last_key[m]);
        std::fill_n(scratch.sums.data() + m * 256, hd, 0.0f);
    }
    const i32x16 iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int base = first / CHUNK * CHUNK; base <= last; base += CHUNK) {
        const int begin = std::max(base, first / TILE * TILE) / TILE;
        const int end = (std::min(base + CHUNK, last + 1) + TILE - 1) / TILE;
        f32x16 largest[M];
        for (int m = 0; m < M; ++m) largest[m] = _mm512_set1_ps(-INFINITY);
        const int first_tile = base / TILE;
        for (int index = begin; index < end; ++index) scratch.tiles[index - first_tile] = g.tile(index);
        for (int index = begin; index < end; ++index) {
            const int64_t tile = scratch.tiles[index - first_tile];
            // What is read next lies in blocks that no hardware foresees. A prompt finds them in the cache.
            if (M <= PREFETCH_ROWS) {
                prefetch(g.cache->values + layout.at(tile, g.head), layout.tile_bytes());
                if (index + 1 < end)
                    prefetch(g.cache->keys + layout.at(scratch.tiles[index + 1 - first_tile], g.head), layout.tile_bytes());
            }
            f32x16 s[M];
            score_tile<FORMAT, M>(g, g.cache->keys + layout.at(tile, g.head), tile, s);
            const int key = index * TILE;
            each<M>([&](auto m) CB_INLINE {
                if (key < g.first_key[m] || key + TILE - 1 > g.last_key[m]) {
                    const i32x16 keys = _mm512_add_epi32(iota, _mm512_set1_epi32(key));
                    const __mmask16 seen =
                        _mm512_cmple_epi32_mask(keys, _mm512_set1_epi32(g.last_key[m])) &
                        _mm512_cmpge_epi32_mask(keys, _mm512_set1_epi32(g.first_key[m]));
                    s[m] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, s[m]);
                }
                largest[m] = _mm512_max_ps(largest[m], s[m]);
                _mm512_storeu_ps(scratch.scores.data() + m * CHUNK + key - base, s[m]);
            });
        }
        for (int m = 0; m < M; ++m) {
            const float old = top[m];
            top[m] = std::max(old, _mm512_reduce_max_ps(largest[m]));
            float* scores = scratch.scores.data() + m * CHUNK;
            uint16_t* halves = scratch.halves.data() + m * CHUNK;
            f32x16 sum = _mm512_setzero_ps();
            const float* value_scales = g.cache->value_scales;
            // No key seen so far: all weights are zero, and exp2(-inf - -inf) would be none.
            const f32x16 shift = _mm512_set1_ps(top[m] == -INFINITY ? 0.0f : top[m]);
            for (int at = begin * TILE - base; at < end * TILE - base; at += LANES) {
                const f32x16 x = _mm512_sub_ps(_mm512_loadu_ps(scores + at), shift);
                f32x16 p;
                if constexpr (FORMAT == BFLOAT16) {
                    p = exp2_coarse(x);
                    _mm256_storeu_si256((__m256i*)(halves + at), narrow_bf16_coarse(p));
                } else {
                    p = exp2_16(x);
                    f32x16 weight = p;
                    if constexpr (FORMAT == INT8)
                        weight = _mm512_mul_ps(p, _mm512_loadu_ps(value_scales + layout.scale_at(scratch.tiles[at / TILE], g.head)));
                    _mm512_storeu_ps(scores + at, weight);
                }
                sum = _mm512_add_ps(sum, p);
            }
            const float fade = old == -INFINITY ? 0.0f : std::exp2(old - top[m]);
            total[m] = total[m] * fade + _mm512_reduce_add_ps(sum);
            if (fade != 1.0f) {
                float* sums = scratch.sums.data() + m * 256;
                for (int d = 0; d < hd; d += LANES)
                    _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), _mm512_set1_ps(fade)));
            }
        }
        int d = 0;
        for (; d + 64 <= hd; d += 64) add_values<FORMAT, M, 4>(g, scratch, base, begin, end, d);
        for (; d < hd; d += LANES) add_values<FORMAT, M, 1>(g, scratch, base, begin, end, d);
    }
    for (int m = 0; m < M; ++m) {
        for (int d = 0; d < hd; d += LANES)
            _mm512_storeu_ps(g.out[m] + d, _mm512_mul_ps(_mm512_loadu_ps(scratch.sums.data() + m * 256 + d),
                                                         _mm512_set1_ps(1.0f / total[m])));
        if constexpr (FORMAT == INT4) turn_head_back(g.out[m], hd);
    }
}

template <int FORMAT>
void attend_in(const RowGroup& g, AttentionScratch& scratch) {
    switch (g.num_rows) {
        case 1: return attend_rows<FORMAT, 1>(g, scratch);
        case 2: return attend_rows<FORMAT, 2>(g, scratch);
        case 3: return attend_rows<FORMAT, 3>(g, scratch);
        case 4: return attend_rows<FORMAT, 4>(g, scratch);
        case 5: return attend_rows<FORMAT, 5>(g, scratch);
        default: return attend_rows<FORMAT, 6>(g, scratch);
    }
}

inline void attend(const RowGroup& g, AttentionScratch& scratch) {
    switch (g.layout->format) {
        case FLOAT32: return attend_in<FLOAT32>(g, scratch);
        case BFLOAT16: return attend_in<BFLOAT16>(g, scratch);
        case INT4: return attend_in<INT4>(g, scratch);
        default: return attend_in<INT8>(g, scratch);
    }
}

}  // namespace cb

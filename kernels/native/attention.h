// Attention over a paged key/value cache (kv_cache.h).
//
// Every query row is computed as if it were alone: scores tile by tile, softmax over chunks of 1,024 keys that begin at
// multiples of 1,024, so a result depends neither on the batch nor on how a prompt was divided.
#pragma once

#include "kv_cache.h"
#include "linear.h"

namespace cb {

constexpr int CHUNK = 1024;
constexpr int ROWS = 6;  // query rows that share a load of keys or values
constexpr int PREFETCH_ROWS = 4;
constexpr float LOG2_E = 1.44269504089f;
// Values of INT8 are multiplied by weights of 16 bits, as two halves: with a scale for a row and chunk, so that the sums
// are of whole numbers and the same in whatever order.
constexpr float LARGEST_WEIGHT = 65535;
// Places of a row, in floats and in bytes: rows that lay a power of two apart would share too few lines of a cache.
constexpr int SCORE_ROW = CHUNK + 16, CODE_ROW = CHUNK + 64;

// One task: query rows, up to ROWS or MAX_TILE of them, that read the same key/value head of the same sequence.
struct RowGroup {
    const KVLayout* layout;
    const KVCache* cache;
    const int64_t* blocks;  // of the sequence
    int tiles_per_block;
    int head;
    int num_rows;
    const uint8_t* queries[MAX_TILE];
    float query_scales[MAX_TILE];
    const int32_t* query_sums[MAX_TILE];  // INT4: [QUARTERS]
    int32_t query_offsets[MAX_TILE];      // INT8: what the keys' 128 add to a product
    int first_key[MAX_TILE];  // keys first_key .. last_key are seen
    int last_key[MAX_TILE];
    float* out[MAX_TILE];     // [head_dim] each

    int64_t tile(int index) const { return blocks[index / tiles_per_block] * tiles_per_block + index % tiles_per_block; }
};

struct AttentionScratch {
    Lines<float> scores;     // [MAX_TILE][SCORE_ROW]
    Lines<uint16_t> halves;  // [ROWS][CHUNK], bf16 weights
    Lines<uint8_t> codes;    // [MAX_TILE][2][CODE_ROW], the halves of weights of 16 bits
    Lines<float> sums;       // [MAX_TILE][256]
    Lines<uint8_t> queries;  // [MAX_TILE][head_dim], side by side for tiles
    Lines<uint8_t> values;   // [CHUNK / 4][head_dim][4], the same
    int64_t tiles[CHUNK / TILE];  // of the chunk
    float scales[MAX_TILE];       // of `codes`
    AttentionScratch()
        : scores(MAX_TILE * SCORE_ROW), halves(ROWS * CHUNK), codes(MAX_TILE * 2 * CODE_ROW), sums(MAX_TILE * 256) {}

    uint8_t* high(int row) { return codes.data() + row * 2 * CODE_ROW; }
    uint8_t* low(int row) { return high(row) + CODE_ROW; }
};

// The softmax of a row, as far as it has come.
struct Softmax {
    float top = -INFINITY, total = 0;
};

// Scores of a row from its products with the 16 keys of a tile, to which 128 was added.
CB_INLINE inline f32x16 int8_scores(const RowGroup& g, int m, i32x16 products, f32x16 key_scales) {
    const i32x16 exact = _mm512_sub_epi32(products, _mm512_set1_epi32(g.query_offsets[m]));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(key_scales, _mm512_set1_ps(g.query_scales[m])));
}

// The scores of a row and tile, where those that it does not see are minus infinity.
CB_INLINE inline f32x16 only_seen(const RowGroup& g, int m, int first_of_tile, f32x16 scores) {
    if (first_of_tile >= g.first_key[m] && first_of_tile + TILE - 1 <= g.last_key[m]) return scores;
    const i32x16 iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const i32x16 keys = _mm512_add_epi32(iota, _mm512_set1_epi32(first_of_tile));
    const __mmask16 seen = _mm512_cmple_epi32_mask(keys, _mm512_set1_epi32(g.last_key[m])) &
                           _mm512_cmpge_epi32_mask(keys, _mm512_set1_epi32(g.first_key[m]));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, scores);
}

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
        each<M>([&](auto m) CB_INLINE { s[m] = int8_scores(g, m, acc[m], scale); });
    }
    each<M>([&](auto m) CB_INLINE { out[m] = s[m]; });
}

// A chunk's scores of a row become weights for its values: of INT8 with the values' scales in them. What was summed up
// before fades as the largest score grows.
template <int FORMAT>
inline void weigh(const RowGroup& g, AttentionScratch& scratch, int m, f32x16 largest, int base, int begin, int end,
                  Softmax& softmax) {
    const int from = begin * TILE - base, to = end * TILE - base;
    const float old = softmax.top;
    softmax.top = std::max(old, _mm512_reduce_max_ps(largest));
    float* scores = scratch.scores.data() + m * SCORE_ROW;
    uint16_t* halves = scratch.halves.data() + m * CHUNK;
    f32x16 sum = _mm512_setzero_ps(), heaviest = sum;
    // No key seen so far: all weights are zero, and exp2(-inf - -inf) would be none.
    const f32x16 shift = _mm512_set1_ps(softmax.top == -INFINITY ? 0.0f : softmax.top);
    for (int at = from; at < to; at += LANES) {
        const f32x16 x = _mm512_sub_ps(_mm512_loadu_ps(scores + at), shift);
        f32x16 p;
        if constexpr (FORMAT == BFLOAT16) {
            p = exp2_coarse(x);
            _mm256_storeu_si256((__m256i*)(halves + at), narrow_bf16_coarse(p));
        } else {
            p = exp2_16(x);
            f32x16 weight = p;
            if constexpr (FORMAT == INT8) {
                const float* scales = g.cache->value_scales + g.layout->scale_at(scratch.tiles[at / TILE], g.head);
                weight = _mm512_mul_ps(p, _mm512_loadu_ps(scales));
                heaviest = _mm512_max_ps(weight, heaviest);  // the second one where the first is no number
            }
            _mm512_storeu_ps(scores + at, weight);
        }
        sum = _mm512_add_ps(sum, p);
    }
    if constexpr (FORMAT == INT8) {
        const float most = _mm512_reduce_max_ps(heaviest);
        // Of what is smaller the inverse would be infinite.
        const f32x16 inverse = _mm512_set1_ps(most > 1e-30f ? LARGEST_WEIGHT / most : 0.0f);
        for (int at = from; at < to; at += LANES) {
            const i32x16 code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(scores + at), inverse));
            _mm_store_si128((__m128i*)(scratch.high(m) + at), _mm512_cvtepi32_epi8(_mm512_srli_epi32(code, 8)));
            _mm_store_si128((__m128i*)(scratch.low(m) + at), _mm512_cvtepi32_epi8(code));
        }
        scratch.scales[m] = most / LARGEST_WEIGHT;
    }
    const float fade = old == -INFINITY ? 0.0f : std::exp2(old - softmax.top);
    softmax.total = softmax.total * fade + _mm512_reduce_add_ps(sum);
    if (fade != 1.0f) {
        float* sums = scratch.sums.data() + m * 256;
        for (int d = 0; d < g.layout->head_dim; d += LANES)
            _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), _mm512_set1_ps(fade)));
    }
}

inline void finish_row(const RowGroup& g, const AttentionScratch& scratch, int m, const Softmax& softmax) {
    const f32x16 factor = _mm512_set1_ps(1.0f / softmax.total);
    for (int d = 0; d < g.layout->head_dim; d += LANES)
        _mm512_storeu_ps(g.out[m] + d, _mm512_mul_ps(_mm512_loadu_ps(scratch.sums.data() + m * 256 + d), factor));
}

// What a chunk's products with the halves of a row's weights add to its sums.
CB_INLINE inline f32x16 add_halves(f32x16 sums, i32x16 high, i32x16 low, float scale) {
    const f32x16 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low));
    return _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), sums);
}

// The same as `add_values`, of INT8.
template <int M, int V>
inline void add_int8_values(const RowGroup& g, AttentionScratch& scratch, int base, int begin, int end, int d) {
    const int hd = g.layout->head_dim;
    i32x16 high[M][V], low[M][V];
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE { high[m][v] = low[m][v] = _mm512_setzero_si512(); });
    });
    for (int index = begin; index < end; ++index) {
        const int at = index * TILE - base;
        const uint8_t* values = g.cache->values + g.layout->at(scratch.tiles[at / TILE], g.head) + d * 4;
        for (int key = 0; key < TILE; key += 4, values += hd * 4) {
            i32x16 b[V];
            each<V>([&](auto v) CB_INLINE { b[v] = _mm512_loadu_si512(values + v * 64); });
            each<M>([&](auto m) CB_INLINE {
                int32_t fours[2];
                std::memcpy(fours, scratch.high(m) + at + key, 4);
                std::memcpy(fours + 1, scratch.low(m) + at + key, 4);
                const i32x16 h = _mm512_set1_epi32(fours[0]), l = _mm512_set1_epi32(fours[1]);
                each<V>([&](auto v) CB_INLINE {
                    dot_int8(high[m][v], h, b[v]);
                    dot_int8(low[m][v], l, b[v]);
                });
            });
        }
    }
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE {
            float* sums = scratch.sums.data() + m * 256 + d + v * LANES;
            _mm512_storeu_ps(sums, add_halves(_mm512_loadu_ps(sums), high[m][v], low[m][v], scratch.scales[m]));
        });
    });
}

// sums[m][d .. d + 16 V) += weights x values over the tiles [begin, end), which lie in the chunk that starts at `base`.
template <int FORMAT, int M, int V>
inline void add_values(const RowGroup& g, AttentionScratch& scratch, int base, int begin, int end, int d) {
    if constexpr (FORMAT == INT8) return add_int8_values<M, V>(g, scratch, base, begin, end, d);
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
                } else {
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
                }
                each<M>([&](auto m) CB_INLINE {
                    const float* p = scratch.scores.data() + m * SCORE_ROW + at + key;
                    each<V>([&](auto v) CB_INLINE { dot_f32(acc[m][v], b[v], p); });
                });
            }
        }
    }
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE { _mm512_storeu_ps(scratch.sums.data() + m * 256 + d + v * LANES, acc[m][v]); });
    });
}

// `body(base, begin, end)` for each chunk of keys that a row sees, from key `base` on, and the tiles [begin, end) in it;
// the rows' sums are zero before the first.
template <class Body>
CB_INLINE inline void each_chunk(const RowGroup& g, int num_rows, AttentionScratch& scratch, Body&& body) {
    int first = INT_MAX, last = 0;
    for (int m = 0; m < num_rows; ++m) {
        first = std::min(first, g.first_key[m]);
        last = std::max(last, g.last_key[m]);
        std::fill_n(scratch.sums.data() + m * 256, g.layout->head_dim, 0.0f);
    }
    for (int base = first / CHUNK * CHUNK; base <= last; base += CHUNK) {
        const int begin = std::max(base, first / TILE * TILE) / TILE;
        const int end = (std::min(base + CHUNK, last + 1) + TILE - 1) / TILE;
        for (int index = begin; index < end; ++index) scratch.tiles[index - base / TILE] = g.tile(index);
        body(base, begin, end);
    }
}

template <int FORMAT, int M>
void attend_rows(const RowGroup& g, AttentionScratch& scratch) {
    const KVLayout& layout = *g.layout;
    const int hd = layout.head_dim;
    Softmax softmax[M];
    each_chunk(g, M, scratch, [&](int base, int begin, int end) CB_INLINE {
        f32x16 largest[M];
        for (int m = 0; m < M; ++m) largest[m] = _mm512_set1_ps(-INFINITY);
        const int first_tile = base / TILE;
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
                s[m] = only_seen(g, m, key, s[m]);
                largest[m] = _mm512_max_ps(largest[m], s[m]);
                _mm512_storeu_ps(scratch.scores.data() + m * SCORE_ROW + key - base, s[m]);
            });
        }
        for (int m = 0; m < M; ++m) weigh<FORMAT>(g, scratch, m, largest[m], base, begin, end, softmax[m]);
        constexpr int WIDTH = FORMAT == INT8 && M > 3 ? 2 : 4;  // whose sums fit in registers
        int d = 0;
        for (; d + WIDTH * LANES <= hd; d += WIDTH * LANES) add_values<FORMAT, M, WIDTH>(g, scratch, base, begin, end, d);
        for (; d < hd; d += LANES) add_values<FORMAT, M, 1>(g, scratch, base, begin, end, d);
    });
    for (int m = 0; m < M; ++m) {
        finish_row(g, scratch, m, softmax[m]);
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

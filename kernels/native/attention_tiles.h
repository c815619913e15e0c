// Attention of many rows of a prompt on the unit for tiles, where keys and values are INT8: bit for bit what attention.h
// makes in registers, since scores and the sums of values are of whole numbers, and all else is the same code.
#pragma once

#include "attention.h"

namespace cb {

// What the unit takes at a time: 64 bytes of a row, which are as many dimensions of a query or weights of keys.
constexpr int TILE_BYTES = 64;
constexpr int TILES_AT_ONCE = 4;  // of keys

inline bool attends_on_tiles(const KVLayout& layout) {
    return tiles_allowed() && layout.format == INT8 && layout.head_dim % TILE_BYTES == 0;
}

#ifdef CB_TILES

// The four tiles of sums -> [4][16][16].
inline void store_sums(int32_t* out) {
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + 512, 64);
    _tile_stored(3, out + 768, 64);
}

// Queries [16][hd] times four tiles of keys -> [4][16 rows][16 keys].
inline void products_on_tiles(const uint8_t* queries, int hd, const uint8_t* const (&keys)[TILES_AT_ONCE], int32_t* out) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read and write memory
    zero_sums();
    for (int d = 0; d < hd; d += TILE_BYTES) {
        _tile_loadd(4, queries + d, hd);
        _tile_loadd(6, keys[0] + d * TILE, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, keys[1] + d * TILE, 64);
        _tile_dpbsud(1, 4, 7);
        _tile_loadd(6, keys[2] + d * TILE, 64);
        _tile_dpbsud(2, 4, 6);
        _tile_loadd(7, keys[3] + d * TILE, 64);
        _tile_dpbsud(3, 4, 7);
    }
    store_sums(out);
    asm volatile("" ::: "memory");
}

// Weights of the keys [from, to) of a chunk times 32 dimensions of their values, from `values` [keys / 4][hd][4] on ->
// [high halves, low halves of weights][2][16 rows][16 dimensions].
inline void values_on_tiles(const uint8_t* high, const uint8_t* low, const uint8_t* values, int hd, int from, int to,
                            int32_t* out) {
    asm volatile("" ::: "memory");
    zero_sums();
    for (int at = from; at < to; at += TILE_BYTES) {
        _tile_loadd(6, values + int64_t(at) * hd, hd * 4);
        _tile_loadd(7, values + int64_t(at) * hd + 64, hd * 4);
        _tile_loadd(4, high + at, 2 * CODE_ROW);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, low + at, 2 * CODE_ROW);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    store_sums(out);
    asm volatile("" ::: "memory");
}

#else

inline void products_on_tiles(const uint8_t*, int, const uint8_t* const (&)[TILES_AT_ONCE], int32_t*) {}
inline void values_on_tiles(const uint8_t*, const uint8_t*, const uint8_t*, int, int, int, int32_t*) {}

#endif

// The scores of the tiles [begin, end) of a chunk, and the largest of each row.
inline void score_on_tiles(const RowGroup& g, AttentionScratch& scratch, int base, int begin, int end, f32x16* largest) {
    alignas(64) int32_t products[TILES_AT_ONCE * MAX_TILE * TILE];
    const KVLayout& layout = *g.layout;
    for (int index = begin; index < end; index += TILES_AT_ONCE) {
        const int count = std::min(TILES_AT_ONCE, end - index);
        const uint8_t* keys[TILES_AT_ONCE];
        for (int t = 0; t < TILES_AT_ONCE; ++t)  // of fewer the last one more than once
            keys[t] = g.cache->keys + layout.at(scratch.tiles[index + std::min(t, count - 1) - base / TILE], g.head);
        products_on_tiles(scratch.queries.data(), layout.head_dim, keys, products);
        for (int t = 0; t < count; ++t) {
            const int at = (index + t) * TILE - base;
            const f32x16 scales = _mm512_loadu_ps(g.cache->key_scales + layout.scale_at(scratch.tiles[at / TILE], g.head));
            for (int m = 0; m < g.num_rows; ++m) {
                const i32x16 product = _mm512_load_si512(products + (t * MAX_TILE + m) * TILE);
                const f32x16 scores = only_seen(g, m, at + base, int8_scores(g, m, product, scales));
                largest[m] = _mm512_max_ps(largest[m], scores);
                _mm512_store_ps(scratch.scores.data() + m * SCORE_ROW + at, scores);
            }
        }
    }
}

// sums[m] += weights x values over the tiles [begin, end) of a chunk.
inline void add_values_on_tiles(const RowGroup& g, AttentionScratch& scratch, int base, int begin, int end) {
    alignas(64) int32_t products[4 * MAX_TILE * LANES];
    const int hd = g.layout->head_dim, from = begin * TILE - base, to = end * TILE - base;
    const int first = from / TILE_BYTES * TILE_BYTES, last = round_up(to, TILE_BYTES);
    for (int at = from; at < to; at += TILE)
        std::memcpy(scratch.values.data() + int64_t(at) * hd,
                    g.cache->values + g.layout->at(scratch.tiles[at / TILE], g.head), TILE * hd);
    for (int m = 0; m < g.num_rows; ++m)  // of keys that are not there
        for (uint8_t* codes : {scratch.high(m), scratch.low(m)}) {
            std::memset(codes + first, 0, from - first);
            std::memset(codes + to, 0, last - to);
        }
    for (int d = 0; d < hd; d += 2 * LANES) {
        values_on_tiles(scratch.high(0), scratch.low(0), scratch.values.data() + d * 4, hd, first, last, products);
        for (int m = 0; m < g.num_rows; ++m)
            each<2>([&](auto half) CB_INLINE {
                const int32_t* product = products + (half * MAX_TILE + m) * LANES;
                float* sums = scratch.sums.data() + m * 256 + d + half * LANES;
                const i32x16 high = _mm512_load_si512(product), low = _mm512_load_si512(product + 2 * MAX_TILE * LANES);
                _mm512_store_ps(sums, add_halves(_mm512_load_ps(sums), high, low, scratch.scales[m]));
            });
    }
}

// `attend` for up to 16 rows; this thread's tiles are those of PanelTiles, along the whole of K.
inline void attend_on_tiles(const RowGroup& g, AttentionScratch& scratch) {
    const int hd = g.layout->head_dim;
    Softmax softmax[MAX_TILE];
    if (scratch.queries.size() < size_t(MAX_TILE) * hd) scratch.queries.resize(size_t(MAX_TILE) * hd);
    if (scratch.values.size() < size_t(CHUNK) * hd) scratch.values.resize(size_t(CHUNK) * hd);
    for (int m = 0; m < g.num_rows; ++m) std::memcpy(scratch.queries.data() + m * hd, g.queries[m], hd);
    each_chunk(g, g.num_rows, scratch, [&](int base, int begin, int end) CB_INLINE {
        f32x16 largest[MAX_TILE];
        for (int m = 0; m < g.num_rows; ++m) largest[m] = _mm512_set1_ps(-INFINITY);
        score_on_tiles(g, scratch, base, begin, end, largest);
        for (int m = 0; m < g.num_rows; ++m) weigh<INT8>(g, scratch, m, largest[m], base, begin, end, softmax[m]);
        add_values_on_tiles(g, scratch, base, begin, end);
    });
    for (int m = 0; m < g.num_rows; ++m) finish_row(g, scratch, m, softmax[m]);
}

}  // namespace cb

// Attention within sequences that lie end to end, as FlashAttention-2 (arXiv:2307.08691) goes about it: scores exist for
// a tile of queries and a block of keys at a time.
//
//   q, out     [tokens][num_heads][head_dim]         of any strides between tokens and between heads
//   k, v       [tokens][num_kv_heads][head_dim]      likewise
//   lse        [tokens][num_heads]                   log2 of a query's sum of exp, kept for the gradient
//
// A task is some neighbouring queries of one sequence with all heads that read one key/value head. It packs each block of
// keys once for all of them.
#pragma once

#include <algorithm>
#include <vector>

#include "tile_product.h"

namespace cb {

constexpr int QUERY_TILE = 32;    // at most
constexpr int KEY_BLOCK = 64;
constexpr int QUERY_CHUNK = 128;  // queries of a task
constexpr int MAX_HEAD_DIM = 256;

struct Strided {
    void* data;
    int64_t token, head;  // strides, in values

    template <class T>
    T* at(int64_t t, int h) const { return (T*)data + t * token + h * head; }
};

struct Varlen {
    Strided q, k, v, out;
    float* lse;
    const int64_t* bounds;  // [num_seqs + 1]
    int32_t num_seqs, num_heads, num_kv_heads, head_dim;
    int32_t causal, window;  // window 0: all
    float scale;
    int32_t is_bf16;
};

// Some of a sequence's queries against some of its keys, all by place within the sequence.
struct Span {
    int64_t begin;  // the sequence's first token
    int kv_head, length;
    int first_query, last_query;  // [first, last)
    int first_key, last_key;
    int64_t cost() const { return int64_t(last_query - first_query) * (last_key - first_key); }
};

// The keys [first, last) that a query at `place` sees.
struct Sight {
    bool causal;
    int window, length;
    int first(int place) const { return window ? std::max(0, place - window + 1) : 0; }
    int last(int place) const { return causal ? place + 1 : length; }
};

inline Sight sight_of(const Varlen& a, int length) { return {a.causal != 0, a.window, length}; }

// Largest first: what is claimed last then keeps no thread waiting for long.
inline void order(std::vector<Span>& spans) {
    std::stable_sort(spans.begin(), spans.end(), [](const Span& x, const Span& y) { return x.cost() > y.cost(); });
}

// Chunks of queries, each with the keys that it sees.
inline std::vector<Span> query_spans(const Varlen& a, int chunk) {
    std::vector<Span> spans;
    for (int s = 0; s < a.num_seqs; ++s) {
        const int length = int(a.bounds[s + 1] - a.bounds[s]);
        const Sight sight = sight_of(a, length);
        for (int first = 0; first < length; first += chunk) {
            const int last = std::min(first + chunk, length);
            for (int h = 0; h < a.num_kv_heads; ++h)
                spans.push_back({a.bounds[s], h, length, first, last, sight.first(first), sight.last(last - 1)});
        }
    }
    return spans;
}

// What is computed at once: of tiles, 16 rows and 32 lanes (which are 16 units of depth in the next product).
template <class T>
inline int row_step() { return sizeof(T) == 2 && use_tiles ? TILE_ROWS : 1; }
// Queries at once: of vectors few, so that little is computed of what they do not see.
template <class T>
inline int query_tile() { return sizeof(T) == 2 && use_tiles ? QUERY_TILE : QUERY_TILE / 2; }
template <class T>
inline int lane_step() { return sizeof(T) == 2 && use_tiles ? 2 * LANES : LANES; }

// `rows` rows of x [..][n] as a left matrix that may be read up to a whole `row_step`: where they end before, a copy.
template <class T>
inline Left left_rows(const T* x, int64_t stride, int rows, int n, Lines<T>& copy) {
    const int whole = round_up(rows, row_step<T>());
    if (whole == rows) return {(const uint8_t*)x, int64_t(stride * sizeof(T)), 4};
    copy.assign(size_t(whole) * n, T(0));
    for (int row = 0; row < rows; ++row) std::memcpy(copy.data() + row * n, x + row * stride, n * sizeof(T));
    return {(const uint8_t*)copy.data(), int64_t(n * sizeof(T)), 4};
}

// What `rows` queries from `query` on see of the `num_keys` from `key` on: how many lanes are worth computing, a multiple
// of `step` and 0 for none, and whether each query sees all of them.
struct Part {
    int lanes;
    bool all;
};

inline Part part_of(const Sight& sight, int query, int rows, int key, int num_keys, int step) {
    const int end = std::min(sight.last(query + rows - 1) - key, num_keys);
    if (end <= 0 || sight.first(query) >= key + num_keys) return {0, false};
    const int lanes = round_up(end, step);
    const bool all = sight.first(query + rows - 1) <= key && std::min(sight.last(query) - key, num_keys) >= lanes;
    return {lanes, all};
}

// Those of the 16 keys from `key` on that the query at `place` sees.
inline __mmask16 seen(const Sight& sight, int place, int key) {
    const int from = std::max(0, sight.first(place) - key), to = std::min(LANES, sight.last(place) - key);
    return to <= from ? __mmask16(0) : __mmask16(((1u << to) - 1) & ~((1u << from) - 1));
}

struct ForwardScratch {
    Lines<uint32_t> keys, values;           // a packed block
    Lines<float> scores;                    // [QUERY_TILE][KEY_BLOCK]
    Lines<float> out, top, total;           // [heads of a task][queries of it, up to whole tiles][head_dim], and [..]
    Lines<uint16_t> short_copy;             // of the last queries, see `left_rows`
    Lines<float> copy;

    template <class T>
    Lines<T>& copy_of() {
        if constexpr (sizeof(T) == 2) return short_copy;
        else return copy;
    }
};

// Turns a row of scores into weights in place (floats, or bf16 in its first half) and returns by how much what was
// summed before fades.
template <class T>
inline float soften(float* scores, int lanes, const Sight& sight, bool all, int place, int key, float factor, float& top,
                    float& total) {
    f32x16 s[KEY_BLOCK / LANES], largest = _mm512_set1_ps(-INFINITY);
    const int count = lanes / LANES;
    for (int i = 0; i < count; ++i) {
        s[i] = _mm512_mul_ps(_mm512_loadu_ps(scores + i * LANES), _mm512_set1_ps(factor));
        if (!all) s[i] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen(sight, place, key + i * LANES), s[i]);
        largest = _mm512_max_ps(largest, s[i]);
    }
    const float old = top;
    top = std::max(old, _mm512_reduce_max_ps(largest));
    // No key seen so far: all weights are zero, and exp2(-inf - -inf) would be none.
    const f32x16 shift = _mm512_set1_ps(top == -INFINITY ? 0.0f : top);
    f32x16 sum = _mm512_setzero_ps();
    for (int i = 0; i < count; ++i) {
        const f32x16 x = _mm512_sub_ps(s[i], shift);
        f32x16 p;
        if constexpr (sizeof(T) == 2) {
            p = exp2_coarse_nan(x);
            _mm256_storeu_si256((__m256i*)((uint16_t*)scores + i * LANES), narrow_bf16_coarse(p));
        } else {
            p = exp2_nan(x);
            _mm512_storeu_ps(scores + i * LANES, p);
        }
        sum = _mm512_add_ps(sum, p);
    }
    const float fade = old == -INFINITY ? 0.0f : old == top ? 1.0f : std::exp2(old - top);
    total = total * fade + _mm512_reduce_add_ps(sum);
    return fade;
}

inline void multiply_row(float* row, int n, float factor) {
    for (int i = 0; i < n; i += LANES)
        _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), _mm512_set1_ps(factor)));
}

template <class T>
void attend_span(const Varlen& a, const Span& span, ForwardScratch& scratch) {
    const int hd = a.head_dim, group = a.num_heads / a.num_kv_heads, queries = span.last_query - span.first_query;
    const int padded = round_up(queries, row_step<T>()), step = lane_step<T>(), tile = query_tile<T>();
    const PairTiles tiles;
    const Sight sight = sight_of(a, span.length);
    scratch.keys.resize(KEY_BLOCK * hd / PER_UNIT<T>);
    scratch.values.resize(KEY_BLOCK * hd / PER_UNIT<T>);
    scratch.scores.resize(QUERY_TILE * KEY_BLOCK);
    scratch.out.assign(size_t(group) * padded * hd, 0.0f);
    scratch.top.assign(size_t(group) * padded, -INFINITY);
    scratch.total.assign(size_t(group) * padded, 0.0f);
    for (int key = span.first_key; key < span.last_key; key += KEY_BLOCK) {
        const int num_keys = std::min(KEY_BLOCK, span.last_key - key);
        pack_lanes(a.k.at<T>(span.begin + key, span.kv_head), a.k.token, num_keys, hd, scratch.keys.data(), KEY_BLOCK);
        if (num_keys < KEY_BLOCK) std::fill(scratch.values.begin(), scratch.values.end(), 0);
        pack_depth(a.v.at<T>(span.begin + key, span.kv_head), a.v.token, num_keys, hd, scratch.values.data());
        const int depth_there = round_up(num_keys, step > LANES ? step : PER_UNIT<T>) / PER_UNIT<T>;
        for (int g = 0; g < group; ++g) {
            for (int query = span.first_query; query < span.last_query; query += tile) {
                const int rows = std::min(tile, span.last_query - query);
                const Part part = part_of(sight, query, rows, key, num_keys, step);
                if (!part.lanes) continue;
                const int whole = round_up(rows, row_step<T>());
                const Left q = left_rows<T>(a.q.at<T>(span.begin + query, span.kv_head * group + g), a.q.token, rows, hd,
                                            scratch.copy_of<T>());
                float* scores = scratch.scores.data();
                product<T>(q, whole, scratch.keys.data(), KEY_BLOCK, part.lanes, hd / PER_UNIT<T>, scores, KEY_BLOCK, false);
                const int64_t at = int64_t(g) * padded + query - span.first_query;
                for (int row = 0; row < rows; ++row) {
                    const float fade = soften<T>(scores + row * KEY_BLOCK, part.lanes, sight, part.all, query + row, key,
                                                 a.scale * LOG2_OF_E, scratch.top[at + row], scratch.total[at + row]);
                    if (fade != 1.0f) multiply_row(scratch.out.data() + (at + row) * hd, hd, fade);
                }
                const Left weights{(const uint8_t*)scores, KEY_BLOCK * 4, 4};
                product<T>(weights, whole, scratch.values.data(), hd, hd, std::min(part.lanes / PER_UNIT<T>, depth_there),
                           scratch.out.data() + at * hd, hd, true);
            }
        }
    }
    for (int g = 0; g < group; ++g) {
        const int head = span.kv_head * group + g;
        for (int i = 0; i < queries; ++i) {
            const int64_t at = int64_t(g) * padded + i, token = span.begin + span.first_query + i;
            const f32x16 factor = _mm512_set1_ps(1.0f / scratch.total[at]);
            T* out = a.out.at<T>(token, head);
            for (int d = 0; d < hd; d += LANES)
                store16(out + d, _mm512_mul_ps(_mm512_loadu_ps(scratch.out.data() + at * hd + d), factor));
            a.lse[token * a.num_heads + head] = scratch.top[at] + std::log2(scratch.total[at]);
        }
    }
}

}  // namespace cb

// The gradients of attention within packed sequences: weights are computed again from the scores and the kept log of
// their sum, a tile of queries and a block of keys at a time.
//
// A short sequence is one task for each key/value head, which makes all three gradients. A long one is chunks of keys,
// which make those of keys and values, and chunks of queries, which make those of queries: the scores are computed twice,
// but nobody adds to what another writes.
#pragma once

#include "varlen.h"

namespace cb {

constexpr int WHOLE_SEQUENCE = 1024;  // up to which one task makes all gradients
constexpr int KEY_CHUNK = 256;

struct VarlenGradient {
    Varlen forward;
    Strided grad, grad_q, grad_k, grad_v;
    float* delta;  // [tokens][num_heads], made here: the sum of grad * out over a head
};

struct GradientSpan : Span {
    bool queries, keys;  // whose gradients it makes
};

struct GradientScratch {
    Lines<uint32_t> keys, values, key_depth;      // a packed block, the keys in both ways
    Lines<uint32_t> query_depth, grad_depth;      // a packed tile of queries and of the gradient
    Lines<float> scores, slopes;                  // [QUERY_TILE][KEY_BLOCK]; slopes end as [..] T
    Lines<uint32_t> weights_of_keys, slopes_of_keys;  // [QUERY_TILE / PER_UNIT][KEY_BLOCK] units
    Lines<uint32_t> turned;                       // one of these as tiles take it, [KEY_BLOCK][TILE_UNITS]
    Lines<float> grad_q, grad_k, grad_v;
    ForwardScratch queries, grads;                // for copies
};

inline std::vector<GradientSpan> gradient_spans(const Varlen& a) {
    std::vector<GradientSpan> spans;
    for (int s = 0; s < a.num_seqs; ++s) {
        const int length = int(a.bounds[s + 1] - a.bounds[s]);
        const Sight sight = sight_of(a, length);
        for (int h = 0; h < a.num_kv_heads; ++h) {
            if (length <= WHOLE_SEQUENCE) {
                if (length) spans.push_back({{a.bounds[s], h, length, 0, length, 0, length}, true, true});
                continue;
            }
            for (int first = 0; first < length; first += KEY_CHUNK) {
                const int last = std::min(first + KEY_CHUNK, length);
                // The last query that sees the chunk's last key is `window - 1` further.
                const int end = a.window ? std::min(length, last - 1 + a.window) : length;
                spans.push_back({{a.bounds[s], h, length, a.causal ? first : 0, end, first, last}, false, true});
            }
            for (int first = 0; first < length; first += QUERY_CHUNK) {
                const int last = std::min(first + QUERY_CHUNK, length);
                spans.push_back({{a.bounds[s], h, length, first, last, sight.first(first), sight.last(last - 1)}, true, false});
            }
        }
    }
    std::stable_sort(spans.begin(), spans.end(),
                     [](const GradientSpan& x, const GradientSpan& y) { return x.cost() > y.cost(); });
    return spans;
}

template <class T>
float delta_of(const VarlenGradient& a, int64_t token, int head) {
    const T *grad = a.grad.at<T>(token, head), *out = a.forward.out.at<T>(token, head);
    f32x16 sum = _mm512_setzero_ps();
    for (int d = 0; d < a.forward.head_dim; d += LANES) sum = _mm512_fmadd_ps(load16(grad + d), load16(out + d), sum);
    return _mm512_reduce_add_ps(sum);
}

// Two rows of a tile, the second missing at an odd end: scores and the gradient by weights become weights p and the
// gradient by scores, ds = p (dp - delta) scale: both as units along the queries, ds along the keys too.
struct Pair {
    int place, key, lanes;
    bool all, second;
    float lse[2], delta[2];
};

template <class T>
inline void slope_rows(const Sight& sight, const Pair& pair, float factor, float scale, const float* scores, float* slopes,
                       uint32_t* weights_of_keys, uint32_t* slopes_of_keys) {
    for (int i = 0; i < pair.lanes; i += LANES) {
        f32x16 p[2], ds[2];
        for (int row = 0; row < 2; ++row) {
            if (row && !pair.second) {
                p[1] = ds[1] = _mm512_setzero_ps();
                break;
            }
            const float* s = scores + row * KEY_BLOCK + i;
            const f32x16 x = _mm512_fmsub_ps(_mm512_loadu_ps(s), _mm512_set1_ps(factor), _mm512_set1_ps(pair.lse[row]));
            p[row] = sizeof(T) == 2 ? exp2_coarse_nan(x) : exp2_nan(x);
            if (!pair.all) p[row] = _mm512_maskz_mov_ps(seen(sight, pair.place + row, pair.key + i), p[row]);
            const f32x16 dp = _mm512_loadu_ps(slopes + row * KEY_BLOCK + i);
            ds[row] = _mm512_mul_ps(_mm512_mul_ps(p[row], _mm512_set1_ps(scale)),
                                    _mm512_sub_ps(dp, _mm512_set1_ps(pair.delta[row])));
        }
        if constexpr (sizeof(T) == 2) {
            const __m256i first = narrow_bf16_coarse(ds[0]), second = narrow_bf16_coarse(ds[1]);
            const auto joined = [](__m256i low, __m256i high) {
                return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            };
            _mm512_storeu_si512(weights_of_keys + i, joined(narrow_bf16_coarse(p[0]), narrow_bf16_coarse(p[1])));
            _mm512_storeu_si512(slopes_of_keys + i, joined(first, second));
            // A row of bf16 ends before what is still to be read of it.
            _mm256_storeu_si256((__m256i*)((uint16_t*)slopes + i), first);
            _mm256_storeu_si256((__m256i*)((uint16_t*)(slopes + KEY_BLOCK) + i), second);
        } else {
            for (int row = 0; row < 2; ++row) {
                _mm512_storeu_ps((float*)weights_of_keys + row * KEY_BLOCK + i, p[row]);
                _mm512_storeu_ps((float*)slopes_of_keys + row * KEY_BLOCK + i, ds[row]);
                _mm512_storeu_ps(slopes + row * KEY_BLOCK + i, ds[row]);
            }
        }
    }
}

// Units [depth][KEY_BLOCK], of a tile of queries, with the keys as rows: a left matrix for `product`.
template <class T>
inline Left keys_as_rows(const Lines<uint32_t>& units, int lanes, Lines<uint32_t>& turned) {
    if (row_step<T>() == 1) return {(const uint8_t*)units.data(), 4, KEY_BLOCK * 4};
    static_assert(QUERY_TILE / PER_UNIT<uint16_t> == TILE_UNITS);
    for (int lane = 0; lane < lanes; lane += LANES) {
        i32x16 r[16];
        each<16>([&](auto i) CB_INLINE { r[i] = _mm512_loadu_si512(units.data() + i * KEY_BLOCK + lane); });
        transpose_16x16(r);
        each<16>([&](auto i) CB_INLINE { _mm512_storeu_si512(turned.data() + (lane + i) * TILE_UNITS, r[i]); });
    }
    return {(const uint8_t*)turned.data(), TILE_UNITS * 4, 4};
}

template <class T>
void gradient_span(const VarlenGradient& gradient, const GradientSpan& span, GradientScratch& scratch) {
    const Varlen& a = gradient.forward;
    constexpr int PER = PER_UNIT<T>;
    const int hd = a.head_dim, group = a.num_heads / a.num_kv_heads, queries = span.last_query - span.first_query;
    const int padded = round_up(queries, row_step<T>()), step = lane_step<T>(), tile = query_tile<T>();
    const PairTiles tiles;
    const Sight sight = sight_of(a, span.length);
    scratch.turned.resize(KEY_BLOCK * TILE_UNITS);
    for (auto* block : {&scratch.keys, &scratch.values, &scratch.key_depth}) block->resize(KEY_BLOCK * hd / PER);
    for (auto* tile : {&scratch.query_depth, &scratch.grad_depth}) tile->resize(QUERY_TILE * hd / PER);
    for (auto* tile : {&scratch.scores, &scratch.slopes}) tile->resize(QUERY_TILE * KEY_BLOCK);
    for (auto* tile : {&scratch.weights_of_keys, &scratch.slopes_of_keys}) tile->resize(QUERY_TILE * KEY_BLOCK);
    if (span.queries) scratch.grad_q.assign(size_t(group) * padded * hd, 0.0f);
    float *scores = scratch.scores.data(), *slopes = scratch.slopes.data();
    const float factor = a.scale * LOG2_OF_E;
    for (int key = span.first_key; key < span.last_key; key += KEY_BLOCK) {
        const int num_keys = std::min(KEY_BLOCK, span.last_key - key);
        const T* keys = a.k.at<T>(span.begin + key, span.kv_head);
        if (num_keys < KEY_BLOCK)
            for (auto* block : {&scratch.keys, &scratch.values, &scratch.key_depth}) std::fill(block->begin(), block->end(), 0);
        pack_lanes(keys, a.k.token, num_keys, hd, scratch.keys.data(), KEY_BLOCK);
        pack_lanes(a.v.at<T>(span.begin + key, span.kv_head), a.v.token, num_keys, hd, scratch.values.data(), KEY_BLOCK);
        if (span.queries) pack_depth(keys, a.k.token, num_keys, hd, scratch.key_depth.data());
        if (span.keys) {
            scratch.grad_k.assign(KEY_BLOCK * hd, 0.0f);
            scratch.grad_v.assign(KEY_BLOCK * hd, 0.0f);
        }
        const int depth_there = round_up(num_keys, step > LANES ? step : PER) / PER;
        for (int g = 0; g < group; ++g) {
            const int head = span.kv_head * group + g;
            for (int query = span.first_query; query < span.last_query; query += tile) {
                const int rows = std::min(tile, span.last_query - query);
                const int whole = round_up(rows, row_step<T>());
                const Part part = part_of(sight, query, rows, key, num_keys, step);
                if (!part.lanes) continue;
                const int64_t token = span.begin + query;
                const T *q = a.q.at<T>(token, head), *grad = gradient.grad.at<T>(token, head);
                product<T>(left_rows<T>(q, a.q.token, rows, hd, scratch.queries.copy_of<T>()), whole, scratch.keys.data(),
                           KEY_BLOCK, part.lanes, hd / PER, scores, KEY_BLOCK, false);
                product<T>(left_rows<T>(grad, gradient.grad.token, rows, hd, scratch.grads.copy_of<T>()), whole,
                           scratch.values.data(), KEY_BLOCK, part.lanes, hd / PER, slopes, KEY_BLOCK, false);
                for (int row = 0; row < rows; row += 2) {
                    const int64_t at = (token + row) * a.num_heads + head, next = row + 1 < rows ? at + a.num_heads : at;
                    const Pair pair{query + row, key, part.lanes, part.all, row + 1 < rows,
                                    {a.lse[at], a.lse[next]}, {gradient.delta[at], gradient.delta[next]}};
                    const int place = row / PER * KEY_BLOCK;
                    slope_rows<T>(sight, pair, factor, a.scale, scores + row * KEY_BLOCK, slopes + row * KEY_BLOCK,
                                  scratch.weights_of_keys.data() + place, scratch.slopes_of_keys.data() + place);
                }
                if (span.queries)
                    product<T>({(const uint8_t*)slopes, KEY_BLOCK * 4, 4}, whole, scratch.key_depth.data(), hd, hd,
                               std::min(part.lanes / PER, depth_there),
                               scratch.grad_q.data() + (int64_t(g) * padded + query - span.first_query) * hd, hd, true);
                if (span.keys) {
                    // Of tiles, all units of depth, those without queries zero.
                    const bool of_tiles = row_step<T>() > 1;
                    const int there = (rows + PER - 1) / PER, depth = of_tiles ? TILE_UNITS : there;
                    const int lanes = of_tiles ? part.lanes : std::min(part.lanes, num_keys);
                    pack_depth(q, a.q.token, rows, hd, scratch.query_depth.data());
                    pack_depth(grad, gradient.grad.token, rows, hd, scratch.grad_depth.data());
                    for (auto* tile : {&scratch.query_depth, &scratch.grad_depth})
                        std::fill_n(tile->data() + there * hd, (depth - there) * hd, 0);
                    for (auto* tile : {&scratch.slopes_of_keys, &scratch.weights_of_keys})
                        std::fill_n(tile->data() + there * KEY_BLOCK, (depth - there) * KEY_BLOCK, 0);
                    product<T>(keys_as_rows<T>(scratch.slopes_of_keys, lanes, scratch.turned), lanes,
                               scratch.query_depth.data(), hd, hd, depth, scratch.grad_k.data(), hd, true);
                    product<T>(keys_as_rows<T>(scratch.weights_of_keys, lanes, scratch.turned), lanes,
                               scratch.grad_depth.data(), hd, hd, depth, scratch.grad_v.data(), hd, true);
                }
            }
        }
        for (int i = 0; span.keys && i < num_keys; ++i) {
            T *to_k = gradient.grad_k.at<T>(span.begin + key + i, span.kv_head);
            T *to_v = gradient.grad_v.at<T>(span.begin + key + i, span.kv_head);
            for (int d = 0; d < hd; d += LANES) {
                store16(to_k + d, _mm512_loadu_ps(scratch.grad_k.data() + i * hd + d));
                store16(to_v + d, _mm512_loadu_ps(scratch.grad_v.data() + i * hd + d));
            }
        }
    }
    for (int g = 0; span.queries && g < group; ++g)
        for (int i = 0; i < queries; ++i) {
            T* to = gradient.grad_q.at<T>(span.begin + span.first_query + i, span.kv_head * group + g);
            const float* from = scratch.grad_q.data() + (int64_t(g) * padded + i) * hd;
            for (int d = 0; d < hd; d += LANES) store16(to + d, _mm512_loadu_ps(from + d));
        }
}

}  // namespace cb

// Drawing tokens from rows of logits, and log-probabilities of rows, without ever sorting a vocabulary.
//
// A token's distance is how far its logit lies below the row's largest. Every cut (top_k, top_p, min_p) keeps the tokens
// up to some distance, so a row has one bound, and equals at a cut all stay. The bound is found by halving an interval of
// distances, over ever fewer tokens, until no float lies between its ends. Sums are in double, row by row in one fixed
// order, so a row's result depends on nothing but the row.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace cb {

struct Drawing {
    double temperature;
    int64_t top_k;  // 0: all
    double top_p, min_p, uniform;
};

class RowSampler {
public:
    // The token that `drawing` picks from x [n]; -1 where the largest logit is not finite.
    int64_t draw(const float* x, int64_t n, const Drawing& drawing) {
        const float largest = max_of(x, n);
        if (!std::isfinite(largest)) return -1;
        if (drawing.temperature == 0) return first_equal(x, n, largest);
        weigh(x, n, largest, drawing.temperature);
        return pick(bound(n, drawing), drawing.uniform);
    }

    // The first of the largest of x [n]; -1 where it is not finite.
    static int64_t greedy(const float* x, int64_t n) {
        const float largest = max_of(x, n);
        return std::isfinite(largest) ? first_equal(x, n, largest) : -1;
    }

    // The logarithm of the sum of exp(x[i]); NaN where the largest is not finite.
    static double log_sum(const float* x, int64_t n) {
        const float largest = max_of(x, n);
        if (!std::isfinite(largest)) return std::numeric_limits<double>::quiet_NaN();
        const f32x16 top = _mm512_set1_ps(largest), factor = _mm512_set1_ps(LOG2_OF_E);
        __m512d sum = _mm512_setzero_pd();
        for (int64_t i = 0; i < n; i += LANES) {
            const __mmask16 here = mask_at(i, n);
            const f32x16 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(here, x + i), top);
            sum = add(sum, _mm512_maskz_mov_ps(here, exp2_16(_mm512_mul_ps(below, factor))));
        }
        return double(largest) + std::log(_mm512_reduce_add_pd(sum));
    }

    // The `count` largest of x [n], largest first and the first of equals first. count <= n.
    static void largest(const float* x, int64_t n, int count, int64_t* ids, float* values) {
        if (count == 0) return;
        int have = 0;
        int64_t i = 0;
        for (; i < count; ++i) insert(x[i], i, count, have, ids, values);
        for (; i < n; i += LANES) {
            const f32x16 v = _mm512_maskz_loadu_ps(mask_at(i, n), x + i);
            for (unsigned found = _mm512_mask_cmp_ps_mask(mask_at(i, n), v, _mm512_set1_ps(values[count - 1]), _CMP_GT_OQ);
                 found; found &= found - 1) {
                const int64_t at = i + __builtin_ctz(found);
                if (x[at] > values[count - 1]) insert(x[at], at, count, have, ids, values);
            }
        }
    }

private:
    static constexpr float LOG2_OF_E = 1.44269504f;
    static constexpr int BLOCK = 64 * LANES;           // whose sums say where a token lies
    static constexpr int32_t INFINITE = 0x7f800000;    // the bits of infinity
    static constexpr int32_t NOWHERE = 0x7fffffff;     // a distance beyond any bound: what fills up a vector

    static __mmask16 mask_at(int64_t i, int64_t n) {
        return n - i >= LANES ? 0xffff : __mmask16((1u << (n - i)) - 1);
    }

    static __m512d add(__m512d sum, f32x16 x) {
        const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
        const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
        return _mm512_add_pd(_mm512_add_pd(sum, low), high);
    }

    static float max_of(const float* x, int64_t n) {
        const f32x16 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        f32x16 most = lowest;
        __mmask16 nan = 0;
        for (int64_t i = 0; i < n; i += LANES) {
            const f32x16 v = _mm512_mask_loadu_ps(lowest, mask_at(i, n), x + i);
            nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
            most = _mm512_max_ps(most, v);
        }
        return nan ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
    }

    static int64_t first_equal(const float* x, int64_t n, float value) {
        const f32x16 wanted = _mm512_set1_ps(value);
        for (int64_t i = 0; i < n; i += LANES) {
            const __mmask16 here = mask_at(i, n);
            const __mmask16 found = _mm512_mask_cmp_ps_mask(here, _mm512_maskz_loadu_ps(here, x + i), wanted, _CMP_EQ_OQ);
            if (found) return i + __builtin_ctz(found);
        }
        return -1;
    }

    static void insert(float value, int64_t id, int count, int& have, int64_t* ids, float* values) {
        int at = have < count ? have++ : count - 1;
        for (; at > 0 && values[at - 1] < value; --at) values[at] = values[at - 1], ids[at] = ids[at - 1];
        values[at] = value;
        ids[at] = id;
    }

    // Each token's distance and weight; the likeliest weighs 1.
    void weigh(const float* x, int64_t n, float largest, double temperature) {
        size_ = (n + LANES - 1) / LANES * LANES;
        for (auto* v : {&distance_, &near_}) v->resize(std::max<size_t>(v->size(), size_ + LANES));
        for (auto* v : {&weight_, &near_weight_}) v->resize(std::max<size_t>(v->size(), size_ + LANES));
        // Bounded, so that zero times it stays zero and infinity times it infinity.
        const double per_unit = std::min(std::max(-1.4426950408889634 / temperature, -double(std::numeric_limits<float>::max())),
                                         -double(std::numeric_limits<float>::min()));
        const f32x16 factor = _mm512_set1_ps(float(per_unit)), top = _mm512_set1_ps(largest);
        // Distances are not negative: their bits order as they do.
        i32x16 nearest = _mm512_set1_epi32(NOWHERE);
        __m512d sum = _mm512_setzero_pd();
        total_ = 0;
        sums_.clear();
        group_nearest_.clear();
        for (int64_t i = 0; i < size_; i += LANES) {
            const __mmask16 here = mask_at(i, n);
            const f32x16 below = _mm512_abs_ps(_mm512_sub_ps(top, _mm512_maskz_loadu_ps(here, x + i)));
            const f32x16 weight = _mm512_maskz_mov_ps(here, exp2_16(_mm512_mul_ps(below, factor)));
            const i32x16 d = _mm512_mask_mov_epi32(_mm512_set1_epi32(NOWHERE), here, _mm512_castps_si512(below));
            _mm512_storeu_si512(distance_.data() + i, d);
            _mm512_storeu_ps(weight_.data() + i, weight);
            nearest = _mm512_min_epi32(nearest, d);
            sum = add(sum, weight);
            if ((i + LANES) % BLOCK == 0 || i + LANES == size_) {
                sums_.push_back(total_ += _mm512_reduce_add_pd(sum));
                group_nearest_.resize(group_nearest_.size() + LANES);
                _mm512_storeu_si512(group_nearest_.data() + group_nearest_.size() - LANES, nearest);
                nearest = _mm512_set1_epi32(NOWHERE);
                sum = _mm512_setzero_pd();
            }
        }
    }

    // Up to which distance tokens stay, as bits.
    int32_t bound(int64_t n, const Drawing& drawing) {
        int32_t furthest = INFINITE;
        if (drawing.top_k > 0 && drawing.top_k < n)
            furthest = reach<true>(double(drawing.top_k), kth_nearest_group(drawing.top_k));
        if (drawing.top_p < 1) {
            const double total = mass(furthest);
            // What weighs less than this each is together too light to matter: the cut lies nearer.
            const double lightest = (1 - drawing.top_p) * total / double(n);
            const int32_t most = below_bits(1.001 * -drawing.temperature * std::log(lightest) + 1e-3 * drawing.temperature);
            furthest = reach<false>(drawing.top_p * total, std::min(furthest, most));
        }
        if (drawing.min_p > 0)
            furthest = std::min(furthest, below_bits(-drawing.temperature * std::log(drawing.min_p)));
        return furthest;
    }

    // The bits of the largest float that is not above `distance`, at least 0.
    static int32_t below_bits(double distance) {
        if (!(distance > 0)) return 0;
        if (distance >= double(std::numeric_limits<float>::max())) return INFINITE;
        float value = float(distance);
        if (double(value) > distance) value = std::nextafterf(value, 0.0f);
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        return bits;
    }

    // The k-th nearest of the groups' nearest tokens: at least k tokens are as near.
    int32_t kth_nearest_group(int64_t k) {
        if (k > int64_t(group_nearest_.size())) return INFINITE;
        std::nth_element(group_nearest_.begin(), group_nearest_.begin() + (k - 1), group_nearest_.end());
        return std::min(group_nearest_[k - 1], INFINITE);
    }

    double mass(int32_t furthest) const {
        if (furthest == INFINITE) return total_;
        const i32x16 last = _mm512_set1_epi32(furthest);
        __m512d sum = _mm512_setzero_pd();
        for (int64_t i = 0; i < size_; i += LANES) {
            const __mmask16 kept = _mm512_cmple_epi32_mask(_mm512_loadu_si512(distance_.data() + i), last);
            if (kept) sum = add(sum, _mm512_maskz_loadu_ps(kept, weight_.data() + i));
        }
        return _mm512_reduce_add_pd(sum);
    }

    // The smallest distance, not above `high`, up to which there are `goal` tokens, or tokens of that weight; `high`
    // where there are not.
    template <bool COUNT>
    int32_t reach(double goal, int32_t high) {
        int32_t low = -1;
        double nearer = 0;  // of those up to `low`
        const int32_t* distance = distance_.data();
        const float* weight = weight_.data();
        int64_t size = size_;
        size = narrow(distance, weight, size, low, high);
        distance = near_.data(), weight = near_weight_.data();
        for (int turn = 0; high - low > 1 && size; ++turn) {
            const int32_t middle = between(low, high, turn);
            const i32x16 last = _mm512_set1_epi32(middle), past = _mm512_set1_epi32(low);
            int64_t count = 0;
            __m512d sum = _mm512_setzero_pd();
            for (int64_t i = 0; i < size; i += LANES) {
                const i32x16 d = _mm512_loadu_si512(distance + i);
                const __mmask16 inside = _mm512_mask_cmple_epi32_mask(_mm512_cmpgt_epi32_mask(d, past), d, last);
                count += __builtin_popcount(inside);
                if (!COUNT) sum = add(sum, _mm512_maskz_loadu_ps(inside, weight + i));
            }
            const double here = COUNT ? double(count) : _mm512_reduce_add_pd(sum);
            if (nearer + here >= goal) {
                high = middle;
            } else {
                nearer += here;
                low = middle;
                count = size - count;
            }
            if (2 * count <= size) size = narrow(distance, weight, size, low, high);
        }
        return high;
    }

    // Halfway by value first, which is where tokens are, and then by bits, which comes to an end.
    static int32_t between(int32_t low, int32_t high, int turn) {
        const int32_t halfway = low + (high - low) / 2;
        if (turn >= 12 || high >= INFINITE) return halfway;
        float from = 0, to;
        if (low > 0) std::memcpy(&from, &low, 4);
        std::memcpy(&to, &high, 4);
        const float value = from + (to - from) / 2;
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        return bits > low && bits < high ? bits : halfway;
    }

    // Keep those between the two distances, in `near_`; how many places they take.
    int64_t narrow(const int32_t* distance, const float* weight, int64_t size, int32_t low, int32_t high) {
        const i32x16 past = _mm512_set1_epi32(low), last = _mm512_set1_epi32(high);
        int64_t count = 0;
        for (int64_t i = 0; i < size; i += LANES) {
            const i32x16 d = _mm512_loadu_si512(distance + i);
            const __mmask16 inside = _mm512_mask_cmple_epi32_mask(_mm512_cmpgt_epi32_mask(d, past), d, last);
            if (!inside) continue;
            const f32x16 w = _mm512_loadu_ps(weight + i);
            // Whole vectors are stored: what lies behind is overwritten by the next, and was read already.
            _mm512_storeu_si512(near_.data() + count, _mm512_maskz_compress_epi32(inside, d));
            _mm512_storeu_ps(near_weight_.data() + count, _mm512_maskz_compress_ps(inside, w));
            count += __builtin_popcount(inside);
        }
        _mm512_storeu_si512(near_.data() + count, _mm512_set1_epi32(NOWHERE));
        _mm512_storeu_ps(near_weight_.data() + count, _mm512_setzero_ps());
        return (count + LANES - 1) / LANES * LANES;
    }

    // The first token at which the sum of the weights that stay goes past `uniform` of their whole.
    int64_t pick(int32_t furthest, double uniform) {
        if (furthest != INFINITE) sum_blocks(furthest);
        const double total = total_;
        const double target = uniform * total;
        // Rounding may leave the target just past the last weight: the last token that has any is then meant.
        size_t block = std::upper_bound(sums_.begin(), sums_.end(), target) - sums_.begin();
        if (block == sums_.size()) block = std::lower_bound(sums_.begin(), sums_.end(), total) - sums_.begin();
        double reached = block ? sums_[block - 1] : 0;
        int64_t token = -1;
        for (int64_t i = int64_t(block) * BLOCK; i < std::min(int64_t(block + 1) * BLOCK, size_); ++i) {
            if (distance_[i] > furthest || weight_[i] == 0) continue;
            token = i;
            reached += weight_[i];
            if (reached > target) break;
        }
        return token;
    }

    // The cumulative sums of blocks, of the weights that stay.
    void sum_blocks(int32_t furthest) {
        sums_.clear();
        total_ = 0;
        const i32x16 last = _mm512_set1_epi32(furthest);
        for (int64_t begin = 0; begin < size_; begin += BLOCK) {
            __m512d sum = _mm512_setzero_pd();
            for (int64_t i = begin; i < std::min(begin + BLOCK, size_); i += LANES) {
                const __mmask16 kept = _mm512_cmple_epi32_mask(_mm512_loadu_si512(distance_.data() + i), last);
                if (kept) sum = add(sum, _mm512_maskz_loadu_ps(kept, weight_.data() + i));
            }
            sums_.push_back(total_ += _mm512_reduce_add_pd(sum));
        }
    }

    int64_t size_ = 0;
    double total_ = 0;
    std::vector<int32_t> distance_, near_, group_nearest_;
    std::vector<float> weight_, near_weight_;
    std::vector<double> sums_;
};

// The one of this thread: it keeps its work space.
inline RowSampler& row_sampler() {
    thread_local RowSampler sampler;
    return sampler;
}

}  // namespace cb

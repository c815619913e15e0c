// The likeliest token of each row while the product with the output matrix is made, panel by panel: logits that are read
// once and at once need not go to memory, where at 32 rows they are six megabytes.
#pragma once

#include <limits>

#include "linear.h"

namespace cb {

// What one thread has seen of its panels, which come in rising order. Lane by lane, the first of the largest is kept.
class Likeliest {
public:
    void begin(int num_rows) {
        if (int(rows.size()) < num_rows) rows.resize(num_rows);
        if (logits.size() < size_t(num_rows) * PANEL) logits.resize(size_t(num_rows) * PANEL);
        std::fill_n(rows.begin(), num_rows, Row{});
    }

    // Where the panel at `column` of the product goes.
    Output output(int column) { return {logits.data(), PANEL, STORE, column}; }

    // The panel, of which `num_columns` are no padding.
    void take(int num_rows, int column, int num_columns) {
        const i32x16 lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int half = 0; half * LANES < std::min(num_columns, PANEL); ++half) {
            const int left = num_columns - half * LANES;
            const __mmask16 here = left >= LANES ? 0xffff : __mmask16((1u << left) - 1);
            const i32x16 tokens = _mm512_add_epi32(lanes, _mm512_set1_epi32(column + half * LANES));
            for (int i = 0; i < num_rows; ++i) {
                Row& row = rows[i];
                const f32x16 x = _mm512_loadu_ps(logits.data() + i * PANEL + half * LANES);
                const f32x16 best = _mm512_load_ps(row.logits);
                const __mmask16 above = _mm512_mask_cmp_ps_mask(here, x, best, _CMP_GT_OQ);
                _mm512_store_ps(row.logits, _mm512_mask_mov_ps(best, above, x));
                _mm512_store_si512(row.tokens, _mm512_mask_mov_epi32(_mm512_load_si512(row.tokens), above, tokens));
                row.has_nan |= _mm512_mask_cmp_ps_mask(here, x, x, _CMP_UNORD_Q) != 0;
            }
        }
    }

    // Of row `i` by what all threads have seen: the first of the largest; -1 where that is not finite.
    template <class Threads>
    static int64_t token(Threads&& threads, int i) {
        float largest = LOWEST;
        int64_t first = -1;
        for (const auto& thread : threads) {
            const Row& row = thread.likeliest.rows[i];
            if (row.has_nan) return -1;
            for (int lane = 0; lane < LANES; ++lane) {
                const float x = row.logits[lane];
                if (x > largest || (x == largest && first >= 0 && row.tokens[lane] < first))
                    largest = x, first = row.tokens[lane];
            }
        }
        return std::isfinite(largest) ? first : -1;
    }

private:
    static constexpr float LOWEST = -std::numeric_limits<float>::infinity();

    struct alignas(64) Row {
        float logits[LANES];
        int32_t tokens[LANES];
        bool has_nan;
        Row() : tokens{}, has_nan(false) { std::fill_n(logits, LANES, LOWEST); }
    };

    Lines<Row> rows;
    Lines<float> logits;  // [num_rows][PANEL]
};

}  // namespace cb

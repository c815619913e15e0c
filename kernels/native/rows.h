// Rows of x in the form that a product's weights are multiplied in: float, bf16, int8 with a scale for 32 of them, or 16
// bits with a scale for all of them.
#pragma once

#include "tiles_int8.h"
#include "weights.h"

namespace cb {

constexpr int MAX_TILE = 16;  // rows that the unit for tiles takes
constexpr int MAX_IN_REGISTERS = 12;
constexpr int MAX_SUMS = 6;  // where sums of a group are kept in registers beside the whole sums
constexpr int BLOCK_ROWS = 8;
// Of whole numbers fewer rows are sooner multiplied without tiles: what these cost does not fall with the rows.
constexpr int FEWEST_ON_TILES = 8;
// A form of inputs only: int8 twice, the high halves of a row and then the low ones. For INT8 where there are tiles.
constexpr int HALVES = -1;
constexpr float LARGEST_OF_HALVES = 127 * 256 + 127;
// With more the sums of their products could be too large for 32 bits.
constexpr int MOST_OF_HALVES = 1 << 16;

// Rows of x as a product reads them. `k` is padded; what lies beyond the true k is zero.
struct Rows {
    int m = 0, k = 0;
    int format = FLOAT32;        // FLOAT32, BFLOAT16, INT8 or HALVES
    Lines<uint8_t> data;   // [m][k] of that type, [m][2][k] of HALVES
    // INT8, a group of 32 values: some inputs are a hundred times larger than the others of their row, and with one
    // scale a row these others would be all that is lost (measured: perplexity + 4% against + 0.5%).
    Lines<float> scales;   // [m][k / 32]
    Lines<int32_t> offsets;  // [m][k / 32]: -128 times the sum of the values
    Lines<float> sums;
    // Of HALVES there is one of `scales` for a row, and two of `offsets`; of groups, for products on tiles, the same again
    // as [m / 8][k / 32], so that a group's are side by side for eight rows.
    struct alignas(64) Block {
        float scales[BLOCK_ROWS];
        float sums[BLOCK_ROWS];
    };
    bool for_tiles = false;
    Lines<Block> blocks;

    // What rows are brought into for a weight of a format.
    static int form(int weight_format, int k) {
        if (weight_format == FLOAT32) return FLOAT32;
        if (weight_format == BFLOAT16 || weight_format == NF4) return BFLOAT16;
        return weight_format == INT8 && k <= MOST_OF_HALVES && tiles_allowed() ? HALVES : INT8;
    }

    int element_bytes() const { return format == FLOAT32 ? 4 : format == INT8 ? 1 : 2; }

    void shape(int num_rows, int num_columns, int weight_format) {
        m = num_rows;
        k = padded_k(num_columns);
        format = form(weight_format, num_columns);
        const size_t bytes = size_t(round_up(m, MAX_TILE)) * k * element_bytes() + 64;  // a tile is read as a whole
        at_least(data, bytes);
        const size_t groups = size_t(m) * (k / GROUP);
        if (format == INT8) at_least(scales, groups), at_least(sums, groups), at_least(offsets, groups);
        if (format == HALVES) at_least(scales, m), at_least(offsets, 2 * size_t(m));
        for_tiles = (format == INT8 || format == HALVES) && m >= FEWEST_ON_TILES && tiles_allowed();
        const size_t num_blocks = size_t(round_up(m, MAX_TILE) / BLOCK_ROWS) * (k / GROUP);
        if (for_tiles && format == INT8) at_least(blocks, num_blocks);
    }

    template <class T>
    static void at_least(Lines<T>& v, size_t size) {
        if (v.size() < size) v.resize(size);
    }

    // Row `i` from `x` [num_columns], whose values are taken in `order` (null: as they lie).
    void set(int i, const float* x, int num_columns, const int32_t* order) {
        const int whole = num_columns / LANES * LANES;
        const __mmask16 rest = __mmask16((1u << (num_columns - whole)) - 1);
        uint8_t* row = data.data() + size_t(i) * k * element_bytes();
        auto load = [&](int at) {
            if (order) {
                const int left = num_columns - at;
                const __mmask16 mask = left >= LANES ? 0xffff : left > 0 ? rest : 0;
                const i32x16 from = _mm512_maskz_loadu_epi32(mask, order + at);
                return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, from, x, 4);
            }
            if (at + LANES <= num_columns) return _mm512_loadu_ps(x + at);
            return at < num_columns ? _mm512_maskz_loadu_ps(rest, x + at) : _mm512_setzero_ps();
        };
        if (format == FLOAT32) {
            for (int at = 0; at < k; at += LANES) _mm512_storeu_ps((float*)row + at, load(at));
        } else if (format == BFLOAT16) {
            for (int at = 0; at < k; at += LANES) store_bf16((uint16_t*)row + at, load(at));
        } else if (format == HALVES) {
            set_halves(i, row, load);
        } else {
            float* scale = scales.data() + size_t(i) * (k / GROUP);
            float* sum = sums.data() + size_t(i) * (k / GROUP);
            int32_t* offset = offsets.data() + size_t(i) * (k / GROUP);
            for (int at = 0; at < k; at += GROUP) {
                const f32x16 low = load(at), high = load(at + LANES);
                const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
                const f32x16 inverse = _mm512_set1_ps(top > 0 ? 127 / top : 0.0f);
                const i32x16 a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
                const i32x16 b = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
                _mm_storeu_si128((__m128i*)(row + at), _mm512_cvtsepi32_epi8(a));
                _mm_storeu_si128((__m128i*)(row + at + LANES), _mm512_cvtsepi32_epi8(b));
                scale[at / GROUP] = top / 127;
                const int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
                sum[at / GROUP] = float(total);
                offset[at / GROUP] = -128 * total;
                if (for_tiles) {
                    Block& to = blocks[size_t(i / BLOCK_ROWS) * (k / GROUP) + at / GROUP];
                    to.scales[i % BLOCK_ROWS] = top / 127;
                    to.sums[i % BLOCK_ROWS] = float(total);
                }
            }
        }
    }

    template <class Load>
    void set_halves(int i, uint8_t* row, Load&& load) {
        f32x16 largest = _mm512_setzero_ps();
        __mmask16 no_numbers = 0;
        for (int at = 0; at < k; at += LANES) {
            const f32x16 x = load(at);
            no_numbers |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        }
        const float top = no_numbers ? NAN : _mm512_reduce_max_ps(largest);
        // Of what is smaller the inverse would be infinite.
        const f32x16 inverse = _mm512_set1_ps(top > 1e-30f ? LARGEST_OF_HALVES / top : 0.0f);
        i32x16 highs = _mm512_setzero_si512(), lows = highs;
        for (int at = 0; at < k; at += LANES) {
            const i32x16 code = _mm512_cvtps_epi32(_mm512_mul_ps(load(at), inverse));
            const i32x16 high = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
            const i32x16 low = _mm512_sub_epi32(code, _mm512_slli_epi32(high, 8));
            _mm_storeu_si128((__m128i*)(row + at), _mm512_cvtsepi32_epi8(high));
            _mm_storeu_si128((__m128i*)(row + k + at), _mm512_cvtsepi32_epi8(low));
            highs = _mm512_add_epi32(highs, high), lows = _mm512_add_epi32(lows, low);
        }
        scales[i] = top / LARGEST_OF_HALVES;
        offsets[2 * i] = -128 * _mm512_reduce_add_epi32(highs);
        offsets[2 * i + 1] = -128 * _mm512_reduce_add_epi32(lows);
    }

    // Of rows i to i + 7, of each group; i is a multiple of 8.
    const Block* block(int i) const { return blocks.data() + size_t(i / BLOCK_ROWS) * (k / GROUP); }
    const uint8_t* row(int i) const { return data.data() + size_t(i) * k * element_bytes(); }
    const float* row_scales(int i) const { return scales.data() + size_t(i) * (k / GROUP); }
    const int32_t* row_offsets(int i) const { return offsets.data() + size_t(i) * (k / GROUP); }
    const float* row_sums(int i) const { return sums.data() + size_t(i) * (k / GROUP); }
};

}  // namespace cb

// Rows of x in the form that a product's weights are multiplied in: float, bf16, or int8 with a scale for 32 of them.
#pragma once

#include "tiles_int8.h"
#include "weights.h"

namespace cb {

constexpr int MAX_TILE = 16;  // rows that the unit for tiles takes
constexpr int MAX_IN_REGISTERS = 12;
constexpr int MAX_SUMS = 6;  // where sums of a group are kept in registers beside the whole sums
constexpr int BLOCK_ROWS = 8;
// Fewer rows are sooner multiplied without tiles: what these cost does not fall with the rows.
constexpr int FEWEST_ON_TILES = 8;

// Rows of x as a product reads them. `k` is padded; what lies beyond the true k is zero.
struct Rows {
    int m = 0, k = 0;
    int format = FLOAT32;        // FLOAT32, BFLOAT16 or INT8
    Lines<uint8_t> data;   // [m][k] of that type
    // INT8, a group of 32 values: some inputs are a hundred times larger than the others of their row, and with one
    // scale a row these others would be all that is lost (measured: perplexity + 4% against + 0.5%).
    Lines<float> scales;   // [m][k / 32]
    Lines<int32_t> offsets;  // [m][k / 32]: -128 times the sum of the values
    Lines<float> sums;
    // The same for products on tiles: [m / 8][k / 32], so that a group's are side by side for eight rows.
    struct alignas(64) Block {
        float scales[BLOCK_ROWS];
        int32_t offsets[BLOCK_ROWS];
        float sums[BLOCK_ROWS];
    };
    bool for_tiles = false;
    Lines<Block> blocks;

    // What rows are brought into for a weight of a format.
    static int form(int weight_format) {
        if (weight_format == FLOAT32) return FLOAT32;
        return weight_format == BFLOAT16 || weight_format == NF4 ? BFLOAT16 : INT8;
    }

    int element_bytes() const { return format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1; }

    void shape(int num_rows, int num_columns, int weight_format) {
        m = num_rows;
        k = padded_k(num_columns);
        format = form(weight_format);
        const size_t bytes = size_t(round_up(m, MAX_TILE)) * k * element_bytes() + 64;  // a tile is read as a whole
        if (data.size() < bytes) data.resize(bytes);
        if (format == INT8) {
            const size_t groups = size_t(m) * (k / GROUP);
            if (scales.size() < groups) scales.resize(groups), sums.resize(groups), offsets.resize(groups);
        }
        for_tiles = format == INT8 && m >= FEWEST_ON_TILES && tiles_allowed();
        const size_t num_blocks = size_t(round_up(m, MAX_TILE) / BLOCK_ROWS) * (k / GROUP);
        if (for_tiles && blocks.size() < num_blocks) blocks.resize(num_blocks);
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
                    to.offsets[i % BLOCK_ROWS] = -128 * total;
                    to.sums[i % BLOCK_ROWS] = float(total);
                }
            }
        }
    }

    // Of rows i to i + 7, of each group; i is a multiple of 8.
    const Block* block(int i) const { return blocks.data() + size_t(i / BLOCK_ROWS) * (k / GROUP); }
    const uint8_t* row(int i) const { return data.data() + size_t(i) * k * element_bytes(); }
    const float* row_scales(int i) const { return scales.data() + size_t(i) * (k / GROUP); }
    const int32_t* row_offsets(int i) const { return offsets.data() + size_t(i) * (k / GROUP); }
    const float* row_sums(int i) const { return sums.data() + size_t(i) * (k / GROUP); }
};

}  // namespace cb

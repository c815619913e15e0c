// y = x W^T for every weight format: rows of x are brought into the form that the format multiplies (bf16, or int8 with a
// scale for 32 of them), then tiles of up to 12 rows by one panel of 32 columns are kept in registers.
//
// Each output is one sum along K in one order, whatever the number of rows: results do not depend on the batch.
#pragma once

#include "pool.h"
#include "tiles.h"
#include "weights.h"

namespace cb {

// What is fetched meanwhile, in so many bytes for a group.
struct Ahead {
    const uint8_t* from = nullptr;
    int bytes = 0;
};

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
        const size_t num_blocks = size_t((m + BLOCK_ROWS - 1) / BLOCK_ROWS) * (k / GROUP);
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

enum Finish : int32_t {
    STORE = 0,     // y[:, n] = product
    ADD = 1,       // y[:, n] += product
    SILU_MUL = 2,  // of each panel, columns 0..15 are gates and 16..31 their factors: y[:, n / 2] = silu(gate) * up
};

struct Output {
    float* y;
    int64_t stride;  // floats between rows
    int finish;
    int origin = 0;  // the column that y begins with
};

template <int M>
struct Acc {
    f32x16 v[M][2];
};

template <int M>
inline void sum_float32(const uint8_t* panel, const Rows& x, int first, Acc<M>& out) {
    const float* b = (const float*)panel;
    const float* a = (const float*)x.row(first);
    f32x16 acc[M][2];
    each<M>([&](auto m) CB_INLINE { acc[m][0] = acc[m][1] = _mm512_setzero_ps(); });
    for (int k = 0; k < x.k; ++k, b += PANEL, ++a) {
        const f32x16 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + LANES);
        each<M>([&](auto m) CB_INLINE {
            dot_f32(acc[m][0], b0, a + int64_t(m) * x.k);
            dot_f32(acc[m][1], b1, a + int64_t(m) * x.k);
        });
    }
    each<M>([&](auto m) CB_INLINE { out.v[m][0] = acc[m][0], out.v[m][1] = acc[m][1]; });
}

template <int M>
inline void sum_bfloat16(const uint8_t* panel, const Rows& x, int first, Acc<M>& out) {
    const uint8_t* a = x.row(first);
    const int64_t stride = int64_t(x.k) * 2;
    f32x16 acc[M][2];
    each<M>([&](auto m) CB_INLINE { acc[m][0] = acc[m][1] = _mm512_setzero_ps(); });
    for (int k = 0; k < x.k / 2; ++k, panel += 128, a += 4) {
        const i32x16 b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        each<M>([&](auto m) CB_INLINE {
            dot_bf16(acc[m][0], b0, a + m * stride);
            dot_bf16(acc[m][1], b1, a + m * stride);
        });
    }
    each<M>([&](auto m) CB_INLINE { out.v[m][0] = acc[m][0], out.v[m][1] = acc[m][1]; });
}

template <int M>
inline void sum_int8(const uint8_t* panel, const Rows& x, int first, const float* scales, const uint8_t* next,
                     Acc<M>& out) {
    const uint8_t* a = x.row(first);
    const int64_t stride = x.k;
    const int64_t groups = x.k / GROUP;
    const float* row_scales = x.row_scales(first);
    const int32_t* offsets = x.row_offsets(first);
    f32x16 total[M][2];
    each<M>([&](auto m) CB_INLINE { total[m][0] = total[m][1] = _mm512_setzero_ps(); });
    for (int group = 0; group < groups; ++group) {
        i32x16 acc[M][2];
        each<M>([&](auto m) CB_INLINE { acc[m][0] = acc[m][1] = _mm512_set1_epi32(offsets[m * groups + group]); });
        if (next) prefetch_far(next + int64_t(group) * GROUP * PANEL, GROUP * PANEL);
#pragma GCC unroll 8
        for (int step = 0; step < GROUP / 4; ++step, panel += 128, a += 4) {
            const i32x16 b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
            each<M>([&](auto m) CB_INLINE {
                dot_int8(acc[m][0], b0, a + m * stride);
                dot_int8(acc[m][1], b1, a + m * stride);
            });
        }
        each<M>([&](auto m) CB_INLINE {
            dot_f32(total[m][0], _mm512_cvtepi32_ps(acc[m][0]), row_scales + m * groups + group);
            dot_f32(total[m][1], _mm512_cvtepi32_ps(acc[m][1]), row_scales + m * groups + group);
        });
    }
    const f32x16 s0 = _mm512_loadu_ps(scales), s1 = _mm512_loadu_ps(scales + LANES);
    each<M>([&](auto m) CB_INLINE {
        out.v[m][0] = _mm512_mul_ps(total[m][0], s0);
        out.v[m][1] = _mm512_mul_ps(total[m][1], s1);
    });
}

// The same sums on tiles, a half of the panel after the other. A group takes three steps: it is multiplied, its sums are
// stored, and they are added up. While that is done for a group, the next two are in the steps before.
template <int M>
inline void sum_int8_tiles(const uint8_t* panel, const Rows& x, int first, const float* scales, Ahead next,
                           Acc<M>& out) {
    alignas(64) int32_t even[MAX_TILE * LANES], odd[MAX_TILE * LANES];
    const int64_t groups = x.k / GROUP;  // an even number, as k is padded
    for (int half = 0; half < 2; ++half) {
        const uint8_t *a = x.row(first), *b = panel + half * 64;
        const Rows::Block* upper = x.block(first);
        const Rows::Block* lower = upper + (M > BLOCK_ROWS ? groups : 0);
        f32x16 total[M];
        each<M>([&](auto m) CB_INLINE { total[m] = _mm512_setzero_ps(); });
        const auto multiply = [&](auto slot) CB_INLINE {
            multiply_group<slot>(a, x.k, b);
            a += GROUP, b += GROUP * PANEL;
        };
        const auto add = [&](const int32_t* sums) CB_INLINE {
            each<M>([&](auto m) CB_INLINE {
                const Rows::Block* block = m < BLOCK_ROWS ? upper : lower;
                const i32x16 offset = _mm512_set1_epi32(block->offsets[m % BLOCK_ROWS]);
                const i32x16 sum = _mm512_add_epi32(_mm512_load_si512(sums + m * LANES), offset);
                dot_f32(total[m], _mm512_cvtepi32_ps(sum), block->scales + m % BLOCK_ROWS);
            });
            ++upper, ++lower;
        };
        multiply(std::integral_constant<int, 0>{});
        multiply(std::integral_constant<int, 1>{});
        store_sums<0>(even);
        for (int64_t left = groups - 2; left > 0; left -= 2) {
            prefetch_far(next.from, next.bytes), next.from += next.bytes;
            multiply(std::integral_constant<int, 0>{});
            store_sums<1>(odd);
            add(even);
            multiply(std::integral_constant<int, 1>{});
            store_sums<0>(even);
            add(odd);
        }
        store_sums<1>(odd);
        add(even);
        add(odd);
        const f32x16 scale = _mm512_loadu_ps(scales + half * LANES);
        each<M>([&](auto m) CB_INLINE { out.v[m][half] = _mm512_mul_ps(total[m], scale); });
    }
}

inline f32x16 load_half(const uint16_t* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }

template <int M>
inline void sum_int4(const uint8_t* panel, const Rows& x, int first, const uint8_t* next, Acc<M>& out) {
    const uint8_t* a = x.row(first);
    const int64_t stride = x.k;
    const i32x16 low_half = _mm512_set1_epi8(0x0f);
    const int64_t groups = x.k / GROUP;
    const float* row_scales = x.row_scales(first);
    const float* sums = x.row_sums(first);
    f32x16 total[M][2];
    each<M>([&](auto m) CB_INLINE { total[m][0] = total[m][1] = _mm512_setzero_ps(); });
    for (int group = 0; group < groups; ++group, panel += GROUP_BYTES) {
        if (next) prefetch_far(next + int64_t(group) * GROUP_BYTES, GROUP_BYTES);
        i32x16 acc[M][2];
        each<M>([&](auto m) CB_INLINE { acc[m][0] = acc[m][1] = _mm512_setzero_si512(); });
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair, a += 8) {
            const i32x16 c0 = _mm512_loadu_si512(panel + pair * 128), c1 = _mm512_loadu_si512(panel + pair * 128 + 64);
            const i32x16 early0 = _mm512_and_si512(c0, low_half), early1 = _mm512_and_si512(c1, low_half);
            const i32x16 late0 = _mm512_and_si512(_mm512_srli_epi16(c0, 4), low_half);
            const i32x16 late1 = _mm512_and_si512(_mm512_srli_epi16(c1, 4), low_half);
            each<M>([&](auto m) CB_INLINE {
                dot_int8(acc[m][0], early0, a + m * stride);
                dot_int8(acc[m][1], early1, a + m * stride);
                dot_int8(acc[m][0], late0, a + m * stride + 4);
                dot_int8(acc[m][1], late1, a + m * stride + 4);
            });
        }
        const uint16_t* halves = (const uint16_t*)(panel + GROUP * PANEL / 2);
        const f32x16 s0 = load_half(halves), s1 = load_half(halves + 16);
        const f32x16 low0 = load_half(halves + 32), low1 = load_half(halves + 48);
        each<M>([&](auto m) CB_INLINE {
            const f32x16 sum = _mm512_set1_ps(sums[m * groups + group]);
            const f32x16 part0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][0]), s0, _mm512_mul_ps(sum, low0));
            const f32x16 part1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][1]), s1, _mm512_mul_ps(sum, low1));
            dot_f32(total[m][0], part0, row_scales + m * groups + group);
            dot_f32(total[m][1], part1, row_scales + m * groups + group);
        });
    }
    each<M>([&](auto m) CB_INLINE { out.v[m][0] = total[m][0], out.v[m][1] = total[m][1]; });
}

struct Nf4Table {
    alignas(64) uint16_t values[32];
    Nf4Table() {
        for (int i = 0; i < 32; ++i) values[i] = f32_to_bf16(NF4_VALUES[i % 16]);
    }
};

template <int M>
inline void sum_nf4(const uint8_t* panel, const Rows& x, int first, Acc<M>& out) {
    static const Nf4Table table;
    const i32x16 values = _mm512_load_si512(table.values);
    const i32x16 low_half = _mm512_set1_epi16(0x0f);
    const uint8_t* a = x.row(first);
    const int64_t stride = int64_t(x.k) * 2;
    f32x16 total[M][2];
    each<M>([&](auto m) CB_INLINE { total[m][0] = total[m][1] = _mm512_setzero_ps(); });
    for (int group = 0; group < x.k / GROUP_NF4; ++group, panel += GROUP_NF4_BYTES) {
        f32x16 acc[M][2];
        each<M>([&](auto m) CB_INLINE { acc[m][0] = acc[m][1] = _mm512_setzero_ps(); });
        for (int pair = 0; pair < GROUP_NF4 / 4; ++pair, a += 8) {
            const i32x16 c0 = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(panel + pair * 64)));
            const i32x16 c1 = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(panel + pair * 64 + 32)));
            const i32x16 early0 = _mm512_permutexvar_epi16(_mm512_and_si512(c0, low_half), values);
            const i32x16 early1 = _mm512_permutexvar_epi16(_mm512_and_si512(c1, low_half), values);
            const i32x16 late0 = _mm512_permutexvar_epi16(_mm512_srli_epi16(c0, 4), values);
            const i32x16 late1 = _mm512_permutexvar_epi16(_mm512_srli_epi16(c1, 4), values);
            each<M>([&](auto m) CB_INLINE {
                dot_bf16(acc[m][0], early0, a + m * stride);
                dot_bf16(acc[m][1], early1, a + m * stride);
                dot_bf16(acc[m][0], late0, a + m * stride + 4);
                dot_bf16(acc[m][1], late1, a + m * stride + 4);
            });
        }
        const uint16_t* halves = (const uint16_t*)(panel + GROUP_NF4 * PANEL / 2);
        const f32x16 s0 = load_half(halves), s1 = load_half(halves + 16);
        each<M>([&](auto m) CB_INLINE {
            total[m][0] = _mm512_fmadd_ps(acc[m][0], s0, total[m][0]);
            total[m][1] = _mm512_fmadd_ps(acc[m][1], s1, total[m][1]);
        });
    }
    each<M>([&](auto m) CB_INLINE { out.v[m][0] = total[m][0], out.v[m][1] = total[m][1]; });
}

template <int M>
inline void finish_tile(const Weight& w, const Output& out, int panel, int first, Acc<M>& acc) {
    const int column = panel * PANEL;
    if (w.bias) {
        const f32x16 b0 = _mm512_loadu_ps(w.bias + column), b1 = _mm512_loadu_ps(w.bias + column + LANES);
        for (int m = 0; m < M; ++m) {
            acc.v[m][0] = _mm512_add_ps(acc.v[m][0], b0);
            acc.v[m][1] = _mm512_add_ps(acc.v[m][1], b1);
        }
    }
    if (out.finish == SILU_MUL) {
        for (int m = 0; m < M; ++m)
            _mm512_storeu_ps(out.y + (first + m) * out.stride + column / 2,
                             _mm512_mul_ps(silu_16(acc.v[m][0]), acc.v[m][1]));
        return;
    }
    const int left = w.n - column;
    const __mmask16 mask0 = left >= LANES ? 0xffff : __mmask16((1u << left) - 1);
    const __mmask16 mask1 = left >= PANEL ? 0xffff : left > LANES ? __mmask16((1u << (left - LANES)) - 1) : 0;
    for (int m = 0; m < M; ++m) {
        float* y = out.y + (first + m) * out.stride + column - out.origin;
        if (out.finish == ADD) {
            acc.v[m][0] = _mm512_add_ps(acc.v[m][0], _mm512_maskz_loadu_ps(mask0, y));
            acc.v[m][1] = _mm512_add_ps(acc.v[m][1], _mm512_maskz_loadu_ps(mask1, y + LANES));
        }
        _mm512_mask_storeu_ps(y, mask0, acc.v[m][0]);
        _mm512_mask_storeu_ps(y + LANES, mask1, acc.v[m][1]);
    }
}

inline bool on_tiles(const Weight& w, const Rows& x) { return w.format == INT8 && x.for_tiles; }

// Rows of the tiles that a thread must have for a product; 0: none.
inline int rows_of_tiles(const Weight& w, const Rows& x) { return on_tiles(w, x) ? std::min(x.m, MAX_TILE) : 0; }

template <int M>
void compute_tile(const Weight& w, const Rows& x, const Output& out, int panel, int first, Ahead next) {
    const uint8_t* data = w.data + int64_t(panel) * panel_bytes(w.format, w.k);
    Acc<M> acc;
    switch (w.format) {
        case FLOAT32:
            if constexpr (M <= MAX_IN_REGISTERS) sum_float32<M>(data, x, first, acc);
            break;
        case BFLOAT16:
            if constexpr (M <= MAX_IN_REGISTERS) sum_bfloat16<M>(data, x, first, acc);
            break;
        case INT8: {
            const float* scales = int8_scales(w) + panel * PANEL;
            if (HAVE_TILES && on_tiles(w, x)) sum_int8_tiles<M>(data, x, first, scales, next, acc);
            else if constexpr (M <= MAX_SUMS) sum_int8<M>(data, x, first, scales, next.from, acc);
            break;
        }
        case INT4:
            if constexpr (M <= MAX_SUMS) sum_int4<M>(data, x, first, next.from, acc);
            break;
        default:
            if constexpr (M <= MAX_SUMS) sum_nf4<M>(data, x, first, acc);
    }
    finish_tile<M>(w, out, panel, first, acc);
}

using TileFunction = void (*)(const Weight&, const Rows&, const Output&, int, int, Ahead);

inline TileFunction tile_function(int rows) {
    static const TileFunction functions[MAX_TILE + 1] = {
        nullptr,          compute_tile<1>,  compute_tile<2>,  compute_tile<3>, compute_tile<4>,
        compute_tile<5>,  compute_tile<6>,  compute_tile<7>,  compute_tile<8>, compute_tile<9>,
        compute_tile<10>, compute_tile<11>, compute_tile<12>, compute_tile<13>, compute_tile<14>,
        compute_tile<15>, compute_tile<16>,
    };
    return functions[rows];
}

// One panel for all rows, in tiles of nearly equal size, so that none is left with a single row. During the last one the
// panel `next` is fetched (null: none), which this thread will probably read: memory is then never idle.
inline void linear_panel(const Weight& w, const Rows& x, const Output& out, int panel, const uint8_t* next) {
    if (on_tiles(w, x)) {
        // All of them fetch: what comes from memory comes slower than it is multiplied.
        const int tiles = (x.m + MAX_TILE - 1) / MAX_TILE, share = round_up(GROUP * PANEL / tiles, 64);
        for (int first = 0; first < x.m; first += MAX_TILE) {
            Ahead ahead;
            if (next) ahead = {next, share}, next += share * (x.k / GROUP);
            tile_function(std::min(MAX_TILE, x.m - first))(w, x, out, panel, first, ahead);
        }
        return;
    }
    const int most = w.format == FLOAT32 || w.format == BFLOAT16 ? MAX_IN_REGISTERS : MAX_SUMS;
    const int num_tiles = (x.m + most - 1) / most;
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int first = int(int64_t(x.m) * tile / num_tiles), end = int(int64_t(x.m) * (tile + 1) / num_tiles);
        tile_function(end - first)(w, x, out, panel, first, {tile == num_tiles - 1 ? next : nullptr});
    }
}

}  // namespace cb

// y = x W^T for every weight format: rows of x are brought into the form that the format multiplies (rows.h), then tiles
// of up to 12 rows by one panel of 32 columns are kept in registers, or of 16 and 32 rows on the unit for tiles.
//
// Each output is one sum along K in one order, whatever the number of rows: results do not depend on the batch.
#pragma once

#include "pool.h"
#include "whole_tiles.h"

namespace cb {

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

template <int M>
inline void sum_halves(const uint8_t* panel, const Rows& x, int first, const float* scales, const uint8_t* next,
                       Acc<M>& out) {
    const uint8_t* a = x.row(first);
    const int64_t stride = 2 * int64_t(x.k);
    i32x16 high[M][2], low[M][2];
    each<M>([&](auto m) CB_INLINE {
        const int32_t* offsets = x.offsets.data() + 2 * (first + m);
        high[m][0] = high[m][1] = _mm512_set1_epi32(offsets[0]);
        low[m][0] = low[m][1] = _mm512_set1_epi32(offsets[1]);
    });
    for (int k = 0; k < x.k; k += GROUP) {
        if (next) prefetch_far(next + int64_t(k) * PANEL, GROUP * PANEL);
#pragma GCC unroll 8
        for (int step = 0; step < GROUP / 4; ++step, panel += 128, a += 4) {
            const i32x16 b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
            each<M>([&](auto m) CB_INLINE {
                dot_int8(high[m][0], b0, a + m * stride);
                dot_int8(high[m][1], b1, a + m * stride);
                dot_int8(low[m][0], b0, a + m * stride + x.k);
                dot_int8(low[m][1], b1, a + m * stride + x.k);
            });
        }
    }
    each<M>([&](auto m) CB_INLINE {
        each<2>([&](auto half) CB_INLINE {
            out.v[m][half] = of_halves(high[m][half], low[m][half], x, first + m, scales + half * LANES);
        });
    });
}

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

// Of a tile's M rows the first `rows` are finished.
template <int M>
inline void finish_tile(const Weight& w, const Output& out, int panel, int first, Acc<M>& acc, int rows = M) {
    const int column = panel * PANEL;
    if (w.bias) {
        const f32x16 b0 = _mm512_loadu_ps(w.bias + column), b1 = _mm512_loadu_ps(w.bias + column + LANES);
        for (int m = 0; m < rows; ++m) {
            acc.v[m][0] = _mm512_add_ps(acc.v[m][0], b0);
            acc.v[m][1] = _mm512_add_ps(acc.v[m][1], b1);
        }
    }
    if (out.finish == SILU_MUL) {
        for (int m = 0; m < rows; ++m)
            _mm512_storeu_ps(out.y + (first + m) * out.stride + column / 2,
                             _mm512_mul_ps(silu_16(acc.v[m][0]), acc.v[m][1]));
        return;
    }
    const int left = w.n - column;
    const __mmask16 mask0 = left >= LANES ? 0xffff : __mmask16((1u << left) - 1);
    const __mmask16 mask1 = left >= PANEL ? 0xffff : left > LANES ? __mmask16((1u << (left - LANES)) - 1) : 0;
    for (int m = 0; m < rows; ++m) {
        float* y = out.y + (first + m) * out.stride + column - out.origin;
        if (out.finish == ADD) {
            acc.v[m][0] = _mm512_add_ps(acc.v[m][0], _mm512_maskz_loadu_ps(mask0, y));
            acc.v[m][1] = _mm512_add_ps(acc.v[m][1], _mm512_maskz_loadu_ps(mask1, y + LANES));
        }
        _mm512_mask_storeu_ps(y, mask0, acc.v[m][0]);
        _mm512_mask_storeu_ps(y + LANES, mask1, acc.v[m][1]);
    }
}

inline bool in_groups(const Weight& w) { return w.format == INT4; }

inline bool on_tiles(const Weight& w, const Rows& x) {
    if (w.format == BFLOAT16) return tiles_allowed();  // its sums are not those of registers
    return x.for_tiles && (in_groups(w) || x.format == HALVES);
}

// Rows of the tiles that a thread must have for a product; 0: none.
inline int rows_of_tiles(const Weight& w, const Rows& x) { return on_tiles(w, x) ? std::min(x.m, MAX_TILE) : 0; }

template <int M>
void compute_tile(const Weight& w, const Rows& x, const Output& out, int panel, int first, const uint8_t* next) {
    const uint8_t* data = w.data + int64_t(panel) * panel_bytes(w.format, w.k);
    Acc<M> acc;
    if (w.format == FLOAT32) sum_float32<M>(data, x, first, acc);
    else if (w.format == BFLOAT16) sum_bfloat16<M>(data, x, first, acc);
    else if constexpr (M <= MAX_SUMS) {
        const float* scales = int8_scales(w) + panel * PANEL;
        if (w.format == INT8 && x.format == HALVES) sum_halves<M>(data, x, first, scales, next, acc);
        else if (w.format == INT8) sum_int8<M>(data, x, first, scales, next, acc);
        else if (w.format == INT4) sum_int4<M>(data, x, first, next, acc);
        else sum_nf4<M>(data, x, first, acc);
    }
    finish_tile<M>(w, out, panel, first, acc);
}

using TileFunction = void (*)(const Weight&, const Rows&, const Output&, int, int, const uint8_t*);

inline TileFunction tile_function(int rows) {
    static const TileFunction functions[MAX_IN_REGISTERS + 1] = {
        nullptr,          compute_tile<1>,  compute_tile<2>,  compute_tile<3>, compute_tile<4>,
        compute_tile<5>,  compute_tile<6>,  compute_tile<7>,  compute_tile<8>, compute_tile<9>,
        compute_tile<10>, compute_tile<11>, compute_tile<12>,
    };
    return functions[rows];
}

// INT4 for M rows from `first` on, of which `rows` are there.
template <int M>
void compute_groups(const Weight& w, const Rows& x, const Output& out, int panel, int first, int rows,
                    const uint8_t* codes, Ahead next) {
    Acc<M> acc;
    sum_on_tiles<M>(codes, w.data + int64_t(panel) * panel_bytes(INT4, w.k), x, first, next, acc);
    finish_tile<M>(w, out, panel, first, acc, rows);
}

// The rows [begin, end) of a product that are computed at once; begin is a multiple of 16.
struct Span {
    int begin, end;
};

inline void panel_on_tiles(const Weight& w, const Rows& x, Span span, const Output& out, int panel, const uint8_t* next) {
    const uint8_t* data = w.data + int64_t(panel) * panel_bytes(w.format, w.k);
    const int block = w.format == BFLOAT16 ? 2 * MAX_TILE : MAX_TILE;
    const int blocks = (span.end - span.begin + block - 1) / block;
    // All of them fetch: what comes from memory comes slower than it is multiplied.
    const int step = in_groups(w) ? GROUP_BYTES : STEP_PANEL;
    const int steps = in_groups(w) ? x.k / GROUP : int(panel_bytes(w.format, w.k) / STEP_PANEL);
    const int share = round_up(step / blocks, 64);
    const uint8_t* codes = in_groups(w) ? unpack_int4(data, x.k) : nullptr;
    for (int first = span.begin; first < span.end; first += block) {
        Ahead ahead;
        if (next) ahead = {next, share}, next += int64_t(share) * steps;
        const int rows = std::min(block, span.end - first);
        if (w.format == BFLOAT16) {
            bf16_by_panel(data, x, first, rows, ahead, [&](Acc<MAX_TILE>& acc, int at, int count) CB_INLINE {
                finish_tile<MAX_TILE>(w, out, panel, at, acc, count);
            });
        } else if (w.format == INT8) {
            Acc<MAX_TILE> acc;
            halves_by_panel(data, x, first, rows, int8_scales(w) + panel * PANEL, ahead, acc);
            finish_tile<MAX_TILE>(w, out, panel, first, acc, rows);
        } else if (rows <= BLOCK_ROWS) {
            compute_groups<BLOCK_ROWS>(w, x, out, panel, first, rows, codes, ahead);
        } else {
            compute_groups<MAX_TILE>(w, x, out, panel, first, rows, codes, ahead);
        }
    }
}

// One panel for some rows, in tiles of nearly equal size, so that none is left with a single row. During the last one the
// panel `next` is fetched (null: none), which this thread will probably read: memory is then never idle.
inline void linear_panel(const Weight& w, const Rows& x, Span span, const Output& out, int panel, const uint8_t* next) {
    const int64_t m = span.end - span.begin;
    if (m <= 0) return;
    if (on_tiles(w, x)) return panel_on_tiles(w, x, span, out, panel, next);
    const int most = w.format == FLOAT32 || w.format == BFLOAT16 ? MAX_IN_REGISTERS : MAX_SUMS;
    const int num_tiles = int((m + most - 1) / most);
    for (int tile = 0; tile < num_tiles; ++tile) {
        const int first = int(m * tile / num_tiles), end = int(m * (tile + 1) / num_tiles);
        tile_function(end - first)(w, x, out, panel, span.begin + first, tile == num_tiles - 1 ? next : nullptr);
    }
}

}  // namespace cb

// Products of small matrices that lie in the first caches, for T float or bf16 (as uint16_t), with sums in float.
//
// A unit is four bytes: one float, or two bf16 that stand one after the other along what is summed over. A left matrix
// is units at any strides, of which one at a time goes to all lanes; a right matrix is packed, [depth][lanes] units.
// Where the processor multiplies tiles (Intel's AMX), whole tiles of bf16 are made so, and vectors make the rest.
#pragma once

#include "elements.h"
#include "tiles_bf16.h"

namespace cb {

template <class T>
constexpr int PER_UNIT = 4 / int(sizeof(T));

struct Left {  // element (row, depth) is the unit at data + row * row_bytes + depth * step_bytes
    const uint8_t* data;
    int64_t row_bytes, step_bytes;
};

template <class T>
CB_INLINE inline void add_product(f32x16& sum, i32x16 b, const uint8_t* a) {
    if constexpr (sizeof(T) == 2) dot_bf16(sum, b, a);
    else dot_f32(sum, _mm512_castsi512_ps(b), (const float*)a);
}

template <class T, int M, int V>
inline void product_block(const Left& a, const uint8_t* b, int64_t b_bytes, int depth, float* c, int64_t c_row, bool add) {
    f32x16 sums[M][V];
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE {
            sums[m][v] = add ? _mm512_loadu_ps(c + m * c_row + v * LANES) : _mm512_setzero_ps();
        });
    });
    const uint8_t* left = a.data;
    for (int k = 0; k < depth; ++k, left += a.step_bytes, b += b_bytes) {
        i32x16 right[V];
        each<V>([&](auto v) CB_INLINE { right[v] = _mm512_loadu_si512(b + v * 64); });
        each<M>([&](auto m) CB_INLINE {
            each<V>([&](auto v) CB_INLINE { add_product<T>(sums[m][v], right[v], left + m * a.row_bytes); });
        });
    }
    each<M>([&](auto m) CB_INLINE {
        each<V>([&](auto v) CB_INLINE { _mm512_storeu_ps(c + m * c_row + v * LANES, sums[m][v]); });
    });
}

template <class T, int V>
inline void product_rows(Left a, int rows, const uint8_t* b, int64_t b_bytes, int depth, float* c, int64_t c_row, bool add) {
    if constexpr (V <= 2)  // as many sums as the products need to follow each other without a wait
        for (; rows >= 8; rows -= 8, a.data += 8 * a.row_bytes, c += 8 * c_row)
            product_block<T, 8, V>(a, b, b_bytes, depth, c, c_row, add);
    for (; rows >= 4; rows -= 4, a.data += 4 * a.row_bytes, c += 4 * c_row)
        product_block<T, 4, V>(a, b, b_bytes, depth, c, c_row, add);
    if (rows == 3) product_block<T, 3, V>(a, b, b_bytes, depth, c, c_row, add);
    if (rows == 2) product_block<T, 2, V>(a, b, b_bytes, depth, c, c_row, add);
    if (rows == 1) product_block<T, 1, V>(a, b, b_bytes, depth, c, c_row, add);
}

template <class T>
inline void product_of_vectors(const Left& a, int rows, const uint8_t* right, int64_t b_bytes, int lanes, int depth, float* c,
                               int64_t c_row, bool add) {
    for (; lanes >= 64; lanes -= 64, right += 256, c += 64)
        product_rows<T, 4>(a, rows, right, b_bytes, depth, c, c_row, add);
    if (lanes == 48) product_rows<T, 3>(a, rows, right, b_bytes, depth, c, c_row, add);
    if (lanes == 32) product_rows<T, 2>(a, rows, right, b_bytes, depth, c, c_row, add);
    if (lanes == 16) product_rows<T, 1>(a, rows, right, b_bytes, depth, c, c_row, add);
}

// c [rows][lanes] = or += a [rows][depth] b [depth][lanes], `depth` in units, `lanes` a multiple of 16 and b_lanes wide
// in memory. Of bf16, it is called while a `PairTiles` of so many UNITS is there.
template <class T, int UNITS = TILE_UNITS>
inline void product(Left a, int rows, const void* b, int b_lanes, int lanes, int depth, float* c, int64_t c_row, bool add) {
    const uint8_t* right = (const uint8_t*)b;
    const int64_t b_bytes = int64_t(b_lanes) * 4;
    if (sizeof(T) == 2 && use_tiles && a.step_bytes == 4 && rows >= TILE_ROWS && depth >= UNITS) {
        const int of_tiles = rows / TILE_ROWS * TILE_ROWS, deep = depth / UNITS * UNITS;
        product_of_tiles<UNITS>(a.data, a.row_bytes, of_tiles, right, b_bytes, lanes, deep, c, c_row, add);
        if (deep < depth)
            product_of_vectors<T>({a.data + deep * 4, a.row_bytes, 4}, of_tiles, right + deep * b_bytes, b_bytes, lanes,
                                  depth - deep, c, c_row, true);
        rows -= of_tiles, a.data += of_tiles * a.row_bytes, c += of_tiles * c_row;
    }
    if (rows) product_of_vectors<T>(a, rows, right, b_bytes, lanes, depth, c, c_row, add);
}

// ---- packing ----

inline void transpose_16x16(i32x16 (&r)[16]) {
    i32x16 t[16];
    each<8>([&](auto i) CB_INLINE {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    });
    each<4>([&](auto i) CB_INLINE {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    });
    each<4>([&](auto i) CB_INLINE {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    });
    each<4>([&](auto i) CB_INLINE {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
    });
}

// x [rows][n] as a right matrix whose lanes are the rows: out [n / PER_UNIT][out_lanes]. Lanes past `rows`, up to a
// multiple of 16, are zero. n is a multiple of 16 units, or of 8.
template <class T>
inline void pack_lanes(const T* x, int64_t stride, int rows, int n, uint32_t* out, int out_lanes) {
    const int units = n / PER_UNIT<T>;
    for (int row = 0; row < rows; row += LANES) {
        for (int unit = 0; unit < units; unit += LANES) {
            const __mmask16 mask = lanes_at(unit, units);
            i32x16 r[16];
            each<16>([&](auto i) CB_INLINE {
                const bool there = row + i < rows;
                r[i] = _mm512_maskz_loadu_epi32(there ? mask : __mmask16(0),
                                                (const uint32_t*)(x + (there ? row + i : 0) * stride) + unit);
            });
            transpose_16x16(r);
            each<16>([&](auto i) CB_INLINE {
                if (unit + i < units) _mm512_storeu_si512(out + int64_t(unit + i) * out_lanes + row, r[i]);
            });
        }
    }
}

// x [rows][n] as a right matrix whose depth is the rows: out [ceil(rows / PER_UNIT)][n]. A last half unit is zero.
template <class T>
inline void pack_depth(const T* x, int64_t stride, int rows, int n, uint32_t* out) {
    if constexpr (sizeof(T) == 4) {
        for (int row = 0; row < rows; ++row) std::memcpy(out + int64_t(row) * n, x + row * stride, n * 4);
    } else {
        for (int row = 0; row < rows; row += 2, out += n) {
            const uint16_t *first = x + row * stride, *second = first + stride;
            const bool both = row + 1 < rows;
            for (int i = 0; i < n; i += LANES) {
                i32x16 unit = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(first + i)));
                if (both) {
                    const i32x16 high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(second + i)));
                    unit = _mm512_or_si512(unit, _mm512_slli_epi32(high, 16));
                }
                _mm512_storeu_si512(out + i, unit);
            }
        }
    }
}

}  // namespace cb

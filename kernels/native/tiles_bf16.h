// Products of bf16 on the unit for tiles: 16 rows of pairs by 16 columns of them, with sums in float.
//
// Without such a unit `use_tiles` stays false and `PairTiles` does nothing.
#pragma once

#include "tiles.h"

namespace cb {

constexpr int TILE_ROWS = 16;
constexpr int TILE_UNITS = 16;

inline bool use_tiles = false;

#ifdef CB_TILES

// 0 to 3 are sums, 4 and 5 left with rows of `units`, 6 and 7 right.
class PairTiles : TileScope {
public:
    explicit PairTiles(int units = TILE_UNITS) {
        if (!use_tiles) return;
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile)
            shapes.shape(tile, tile < 6 ? TILE_ROWS : units, tile == 4 || tile == 5 ? 4 * units : 64);
        take(shapes);
    }
};

// Two by two tiles of sums at most: each tile that is loaded goes into two products.
template <int M, int V>
inline void tile_block(const uint8_t* a, int64_t a_bytes, const uint8_t* b, int64_t b_bytes, int units, int depth, float* c,
                       int64_t c_row, bool add) {
    const int64_t c_bytes = c_row * 4;
    float* const below = c + TILE_ROWS * c_row;
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if constexpr (V == 2) _tile_loadd(1, c + 16, c_bytes);
        if constexpr (M == 2) _tile_loadd(2, below, c_bytes);
        if constexpr (M == 2 && V == 2) _tile_loadd(3, below + 16, c_bytes);
    } else {
        _tile_zero(0);
        if constexpr (V == 2) _tile_zero(1);
        if constexpr (M == 2) _tile_zero(2);
        if constexpr (M == 2 && V == 2) _tile_zero(3);
    }
    for (int k = 0; k < depth; k += units, a += units * 4, b += units * b_bytes) {
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(4, a, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (V == 2) {
            _tile_loadd(7, b + 64, b_bytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (M == 2) {
            _tile_loadd(5, a + TILE_ROWS * a_bytes, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (V == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (V == 2) _tile_stored(1, c + 16, c_bytes);
    if constexpr (M == 2) _tile_stored(2, below, c_bytes);
    if constexpr (M == 2 && V == 2) _tile_stored(3, below + 16, c_bytes);
}

// c [rows][lanes] = or += a b: rows and lanes multiples of 16, depth of UNITS.
template <int UNITS>
inline void product_of_tiles(const uint8_t* a, int64_t a_bytes, int rows, const uint8_t* b, int64_t b_bytes, int lanes,
                             int depth, float* c, int64_t c_row, bool add) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    for (int lane = 0; lane < lanes; lane += 32) {
        const bool wide = lanes - lane >= 32;
        for (int row = 0; row < rows; row += 32) {
            const bool high = rows - row >= 32;
            const uint8_t *left = a + row * a_bytes, *right = b + lane * 4;
            float* to = c + row * c_row + lane;
            if (high && wide) tile_block<2, 2>(left, a_bytes, right, b_bytes, UNITS, depth, to, c_row, add);
            else if (high) tile_block<2, 1>(left, a_bytes, right, b_bytes, UNITS, depth, to, c_row, add);
            else if (wide) tile_block<1, 2>(left, a_bytes, right, b_bytes, UNITS, depth, to, c_row, add);
            else tile_block<1, 1>(left, a_bytes, right, b_bytes, UNITS, depth, to, c_row, add);
        }
    }
    asm volatile("" ::: "memory");
}

#else

struct PairTiles {
    explicit PairTiles(int = TILE_UNITS) {}
    ~PairTiles() {}
};

template <int UNITS>
inline void product_of_tiles(const uint8_t*, int64_t, int, const uint8_t*, int64_t, int, int, float*, int64_t, bool) {}

#endif

}  // namespace cb

// Products of int8 on the unit for tiles in groups of 32 inputs, and what the tiles are in products with panels.
//
// A panel of INT8 lies as the unit wants its second factor: a group of 32 inputs is 8 rows of 4 inputs for each of 16
// columns, twice. The first factor is rows of x as they are. Groups have a scale each, so their sums leave the tiles at
// once, and are added up in registers.
#pragma once

#include "simd.h"
#include "tiles.h"

namespace cb {

#ifdef CB_TILES

constexpr bool HAVE_TILES = true;

// In groups: 0 and 1 are sums [rows][16], 2 and 3 rows of x [rows][32 bytes], 4 and 5 half of a panel's group [8][64
// bytes]. Along the whole of K: 0 to 3 sums, 4 and 5 rows of x [rows][64 bytes], 6 and 7 half of a panel's step [16][64
// bytes]. Of no rows it does nothing.
class PanelTiles : TileScope {
public:
    PanelTiles(int rows, bool in_groups) {
        if (!rows) return;
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            if (in_groups) shapes.shape(tile, tile < 4 ? rows : 8, tile == 2 || tile == 3 ? 32 : 64);
            else shapes.shape(tile, tile < 6 ? rows : 16, 64);
        }
        take(shapes);
    }
};

// Tile SLOT (0 or 1) becomes a group's sums: of rows of x that are `row_bytes` apart, with half a panel.
template <int SLOT>
CB_INLINE inline void multiply_group(const uint8_t* x, int64_t row_bytes, const uint8_t* half_panel) {
    if constexpr (SLOT == 0) {
        _tile_zero(0);
        _tile_loadd(2, x, row_bytes);
        _tile_loadd(4, half_panel, 128);
        _tile_dpbsud(0, 2, 4);
    } else {
        _tile_zero(1);
        _tile_loadd(3, x, row_bytes);
        _tile_loadd(5, half_panel, 128);
        _tile_dpbsud(1, 3, 5);
    }
}

template <int SLOT>
CB_INLINE inline void store_sums(int32_t* to) {
    if constexpr (SLOT == 0) _tile_stored(0, to, 64);
    else _tile_stored(1, to, 64);
}

#else

constexpr bool HAVE_TILES = false;

struct PanelTiles {
    PanelTiles(int, bool) {}
    ~PanelTiles() {}
};

template <int SLOT>
inline void multiply_group(const uint8_t*, int64_t, const uint8_t*) {}
template <int SLOT>
inline void store_sums(int32_t*) {}

#endif

}  // namespace cb

// Products of int8 on the tile unit (AMX) of Intel's servers since Sapphire Rapids: of 32 inputs at a time, in whole
// numbers.
//
// A panel of INT8 lies as the unit wants its second factor: a group of 32 inputs is 8 rows of 4 inputs for each of 16
// columns, twice. The first factor is rows of x as they are. Groups have a scale each, so their sums leave the tiles at
// once, and are added up in registers.
#pragma once

#include "simd.h"

#if defined(__AMX_INT8__) && defined(__AMX_TILE__)
#define CB_TILES 1
#endif

#include <sys/syscall.h>
#include <unistd.h>

namespace cb {

#ifdef CB_TILES

constexpr bool HAVE_TILES = true;

// Tiles are 8 KiB of state a thread, so Linux gives them only to a process that asks.
inline bool tiles_allowed() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return allowed;
}

// The shapes of this thread's tiles, as long as this lives: 0 and 1 sums [rows][16], 2 and 3 rows of x [rows][32 bytes],
// 4 and 5 half of a panel's group [8][64 bytes].
class Tiles {
public:
    explicit Tiles(int rows) {
        if (!rows) return;
        alignas(64) Shapes shapes{};
        shapes.palette = 1;
        for (int tile = 0; tile < 6; ++tile) {
            shapes.rows[tile] = uint8_t(tile < 4 ? rows : 8);
            shapes.row_bytes[tile] = tile == 2 || tile == 3 ? 32 : 64;
        }
        _tile_loadconfig(&shapes);
        taken_ = true;
    }
    ~Tiles() {
        if (taken_) _tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

private:
    struct Shapes {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    static_assert(sizeof(Shapes) == 64);
    bool taken_ = false;
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
inline bool tiles_allowed() { return false; }

struct Tiles {
    explicit Tiles(int) {}
};

template <int SLOT>
inline void multiply_group(const uint8_t*, int64_t, const uint8_t*) {}
template <int SLOT>
inline void store_sums(int32_t*) {}

#endif

}  // namespace cb

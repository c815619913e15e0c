// Products of tiles, Intel's AMX: 16 rows of bf16 pairs by 16 columns of them, with sums in float.
//
// A thread's tiles are shaped by a register that oneDNN sets for its own products and compares before them, so it is put
// back as it was. Without such a processor `use_tiles` stays false and `Tiles` does nothing.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define CB_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cb {

constexpr int TILE_ROWS = 16;
constexpr int TILE_UNITS = 16;

inline bool use_tiles = false;

#ifdef CB_TILES

// Asks the kernel for the tiles' state, once for the process.
inline bool tiles_allowed() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return allowed;
}

struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// While it is there this thread's tiles are: 0 to 3 sums, 4 and 5 left with rows of `units`, 6 and 7 right.
class Tiles {
public:
    explicit Tiles(int units = TILE_UNITS) {
        if (!use_tiles) return;
        _tile_storeconfig(&before_);
        TileShapes mine{};
        mine.palette = 1;
        for (int i = 0; i < 8; ++i) {
            mine.rows[i] = uint8_t(i < 6 ? TILE_ROWS : units);
            mine.row_bytes[i] = uint16_t(i == 4 || i == 5 ? 4 * units : 64);
        }
        asm volatile("" ::: "memory");
        _tile_loadconfig(&mine);
    }
    ~Tiles() {
        if (use_tiles) _tile_loadconfig(&before_);
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

private:
    TileShapes before_;
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

inline bool tiles_allowed() { return false; }

struct Tiles {
    explicit Tiles(int = TILE_UNITS) {}
    ~Tiles() {}
};

template <int UNITS>
inline void product_of_tiles(const uint8_t*, int64_t, int, const uint8_t*, int64_t, int, int, float*, int64_t, bool) {}

#endif

}  // namespace cb

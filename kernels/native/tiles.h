// The unit for tiles (AMX) of Intel's servers since Sapphire Rapids: whether there is one, and what this thread's tiles
// are. Which products are made with it is in tiles_int8.h and tiles_bf16.h.
#pragma once

#include <cstdint>

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#define CB_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cb {

#ifdef CB_TILES

// Tiles are 8 KiB of state a thread, so Linux gives them only to a process that asks, which is done once.
inline bool tiles_allowed() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return allowed;
}

// The register that says what a thread's tiles are: how many rows, of how many bytes.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void shape(int tile, int num_rows, int num_bytes) {
        rows[tile] = uint8_t(num_rows);
        row_bytes[tile] = uint16_t(num_bytes);
    }
};
static_assert(sizeof(TileShapes) == 64);

// Sets the register for as long as it lives. oneDNN sets it for its own products and compares before them, so it is put
// back as it was.
class TileScope {
public:
    TileScope() = default;
    TileScope(const TileScope&) = delete;
    TileScope& operator=(const TileScope&) = delete;
    ~TileScope() {
        if (taken_) _tile_loadconfig(&before_);
    }

protected:
    void take(const TileShapes& shapes) {
        _tile_storeconfig(&before_);
        asm volatile("" ::: "memory");
        _tile_loadconfig(&shapes);
        taken_ = true;
    }

private:
    TileShapes before_;
    bool taken_ = false;
};

#else

inline bool tiles_allowed() { return false; }

#endif

}  // namespace cb

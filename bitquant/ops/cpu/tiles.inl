// The product by AMX: bits become bytes of +-1 in blocks that stay in the caches, and tiles multiply them. Included by
// avx512.cpp, after product.inl.

#if defined(BITQUANT_EMULATE_AMX)
// The tile instructions in plain code, so that the blocking can be tested on any AVX-512 processor.
struct Tile {
    int8_t bytes[16][64];
};
static thread_local Tile tile_registers[8];
static void written(const void *) {}
static void tiles_start() {}
static void tiles_end() {}
static void tile_zero(int t) { std::memset(&tile_registers[t], 0, sizeof(Tile)); }
static void tile_load(int t, const int8_t *p) { std::memcpy(&tile_registers[t], p, sizeof(Tile)); }
static void tile_store(int t, int32_t *p, int64_t stride) {
    for (int m = 0; m < 16; ++m) std::memcpy(p + m * stride, tile_registers[t].bytes[m], 64);
}
static void tile_multiply(int to, int a, int b) {
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            int32_t sum;
            std::memcpy(&sum, tile_registers[to].bytes[m] + 4 * n, 4);
            for (int k = 0; k < 64; ++k)
                sum += tile_registers[a].bytes[m][k] * tile_registers[b].bytes[k / 4][4 * n + k % 4];
            std::memcpy(tile_registers[to].bytes[m] + 4 * n, &sum, 4);
        }
}
#else
// The compiler does not know that tile instructions read memory: what p leads to is in place before those that follow.
static inline void written(const void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }
static void tiles_start() {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // bytes
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const eight_whole_tiles;
    written(&eight_whole_tiles);
    _tile_loadconfig(&eight_whole_tiles);
}
static void tiles_end() { _tile_release(); }
// Macros, as the instructions name their tiles by constants.
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p) _tile_loadd(t, p, 64)
#define tile_store(t, p, stride) _tile_stored(t, p, (stride) * 4)
#define tile_multiply(to, a, b) _tile_dpbssd(to, a, b)
#endif

constexpr int64_t TILE = 16, TILE_BYTES = 1024, TILE_K = 64;
constexpr int64_t TILE_BLOCK = 256;  // rows expanded at once: few enough for the second cache

// With less of either, expanding bits takes longer than it saves.
constexpr int64_t TILES_MIN_ROWS = 32, TILES_MIN_K = 512;

static int64_t tile_scratch(int64_t k) {
    const int64_t bytes = ceil_div(k, TILE_K) * TILE_BYTES * (TILE_BLOCK / TILE + 2) + 4 * TILE * TILE * 4 + 64;
    const int64_t packed = TILE_BLOCK * (ceil_div(k, WORD_BITS) + 1);
    return packed + bytes / 4;
}

// 16 rows of bits as tiles [k / 64][row][64] of +-1 or {0,1}; beyond k and beyond `rows` all is 0.
static void expand_rows(const uint32_t *bits, int64_t rows, int64_t k, bool is_signed, int8_t *to) {
    const int64_t words = ceil_div(k, WORD_BITS);
    const __m512i plus = _mm512_set1_epi8(1), other = _mm512_set1_epi8(is_signed ? -1 : 0);
    for (int64_t t = 0; t < ceil_div(k, TILE_K); ++t) {
        const __mmask64 inside = k - t * TILE_K < TILE_K ? (uint64_t{1} << (k - t * TILE_K)) - 1 : ~uint64_t{0};
        for (int64_t i = 0; i < TILE; ++i) {
            __m512i row = _mm512_setzero_si512();
            if (i < rows) {
                const uint32_t *const word = bits + i * words + 2 * t;
                const __mmask64 set = word[0] | (2 * t + 1 < words ? static_cast<uint64_t>(word[1]) << 32 : 0);
                row = _mm512_maskz_mov_epi8(inside, _mm512_mask_blend_epi8(set, other, plus));
            }
            _mm512_storeu_si512(to + t * TILE_BYTES + i * 64, row);
        }
    }
}

// One group of lanes as tiles [k / 64][k % 64 / 4][column][4] of +-1.
static void expand_group(const uint32_t *lanes, int64_t words, int8_t *to) {
    const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
    const __m512i nibble[2] = {_mm512_set1_epi32(0x08040201), _mm512_set1_epi32(static_cast<int>(0x80402010u))};
    const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    for (int64_t w = 0; w < 2 * ceil_div(words, 2); ++w) {
        const __m512i word = w < words ? _mm512_loadu_si512(lanes + w * LANES) : _mm512_setzero_si512();
        for (int i = 0; i < 8; ++i) {  // four bits of every column
            const __m512i byte = _mm512_shuffle_epi8(word, _mm512_add_epi8(spread, _mm512_set1_epi8(static_cast<char>(i / 2))));
            const __mmask64 set = _mm512_test_epi8_mask(byte, nibble[i % 2]);
            _mm512_storeu_si512(to + (w * 8 + i) * 64, _mm512_mask_blend_epi8(set, minus, plus));
        }
    }
}

template <template <int> class Panel>
static bool tiles_to(const Linear &call, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch) {
    const int64_t k = call.input.k, words = ceil_div(k, WORD_BITS), steps = ceil_div(k, TILE_K);
    auto *const a = reinterpret_cast<int8_t *>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63});
    int8_t *const b = a + TILE_BLOCK / TILE * steps * TILE_BYTES;
    auto *const counts = reinterpret_cast<int32_t *>(b + 2 * steps * TILE_BYTES);
    auto *const sums = counts + 4 * TILE * TILE;
    auto *const bits = reinterpret_cast<uint32_t *>(sums + TILE_BLOCK);
    bool clean = true;
    tiles_start();
    for (int64_t at = row; at < row + rows; at += TILE_BLOCK) {
        const int64_t here = row + rows - at < TILE_BLOCK ? row + rows - at : TILE_BLOCK;
        clean &= pack(call.input, at, here, bits, sums);
        for (int64_t i = 0; i < ceil_div(here, 2 * TILE) * 2 * TILE; i += TILE)
            expand_rows(bits + i * words, here - i, k, call.input.to.is_signed, a + i / TILE * steps * TILE_BYTES);
        for (int64_t g = 0; g < groups; g += 2) {
            const int columns = groups - g < 2 ? 1 : 2;
            const uint32_t *const lanes = call.lanes + (group + g) * words * LANES;
            expand_group(lanes, words, b);
            expand_group(lanes + (columns - 1) * words * LANES, words, b + steps * TILE_BYTES);
            written(a);
            Panel<2> panel(call, group + g);
            for (int64_t i = 0; i < here; i += 2 * TILE) {
                const int8_t *const a0 = a + i / TILE * steps * TILE_BYTES, *const a1 = a0 + steps * TILE_BYTES;
                const int8_t *const b0 = b, *const b1 = b + steps * TILE_BYTES;
                tile_zero(0);
                tile_zero(1);
                tile_zero(2);
                tile_zero(3);
                for (int64_t s = 0; s < steps * TILE_BYTES; s += TILE_BYTES) {
                    tile_load(6, b0 + s);
                    tile_load(4, a0 + s);
                    tile_multiply(0, 4, 6);
                    tile_load(7, b1 + s);
                    tile_multiply(1, 4, 7);
                    tile_load(5, a1 + s);
                    tile_multiply(2, 5, 6);
                    tile_multiply(3, 5, 7);
                }
                tile_store(0, counts, 2 * TILE);
                tile_store(1, counts + TILE, 2 * TILE);
                tile_store(2, counts + 2 * TILE * TILE, 2 * TILE);
                tile_store(3, counts + 2 * TILE * TILE + TILE, 2 * TILE);
                for (int64_t m = 0; m < 2 * TILE && i + m < here; ++m)
                    for (int n = 0; n < columns; ++n)
                        panel.write(at + i + m, n, Lanes::load(counts + m * 2 * TILE + n * TILE));
            }
            clean &= panel.clean();
        }
    }
    tiles_end();
    return clean;
}

static bool linear_by_tiles(const Linear &call, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch) {
    if (call.input.to.bits > 1 || rows < TILES_MIN_ROWS || call.input.k < TILES_MIN_K)
        return linear(call, row, rows, group, groups, scratch);
    return (call.next.words ? tiles_to<BitPanel> : tiles_to<FloatPanel>)(call, row, rows, group, groups, scratch);
}

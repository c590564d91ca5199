// What one instruction set offers to api.cpp: single-threaded kernels over a part of a call. api.cpp owns threads and memory.
#pragma once

#include <cstring>
#include <type_traits>

#include "bitquant.h"

// A compiler left to choose keeps blocks of registers in memory between an outlined kernel and its consumer.
#define BQ_INLINE inline __attribute__((always_inline))
#define BQ_INLINE_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define BQ_UNROLL _Pragma("unroll")
#else
#define BQ_UNROLL _Pragma("GCC unroll 16")
#endif

namespace bitquant {

constexpr int64_t LANES = 16;
constexpr int64_t WORD_BITS = 32;
constexpr int64_t TABLE_MAX = 4096;

// Internal linkage: a copy compiled for one instruction set must not serve another.
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How floats become levels of `bits` bits. 1 bit: x >= offset, or x > offset where not signed. More: x + offset in steps.
struct Quantizer {
    const float *offset;
    bool per_feature, is_signed;
    int bits;
    float step;
};

struct Rows {
    const float *x;
    int64_t k, stride;
    Quantizer to;
    const uint32_t *words = nullptr;  // in place of x: bits already, of 1 bit
};

// Where a result goes that only a binarizer reads: its bits.
struct Next {
    uint32_t *words;  // nullptr: floats
    const float *offset;
    bool per_feature, is_signed, relu;
};

struct Linear {
    Rows input;
    const uint32_t *lanes;
    int64_t n;
    const float *scale;
    bool per_row_scale;
    const float *bias;
    float *out;
    Next next;
};

// Neighbouring tiles of a convolution's output: a tile is up to 16 columns of one output row, for every channel.
struct Tiles {
    int64_t batch, from, to;
};

// The zero-padded input of a convolution as a grid of positions, row by row, and its tiled output.
struct Grid {
    int64_t width, positions;
    int64_t span;  // from the first to the last tap
    int64_t row_step, column_step;
    int64_t reach;  // positions from a tile's first column to its last
    int64_t out_height, out_width, row_tiles, tiles;
};
static inline Grid grid_of(const bq_convolution &c) {
    const int64_t height = c.height + c.before[0] + c.after[0], width = c.width + c.before[1] + c.after[1];
    const int64_t rows = (c.kernel[0] - 1) * c.dilation[0], columns = (c.kernel[1] - 1) * c.dilation[1];
    const int64_t out_height = (height - rows - 1) / c.stride[0] + 1, out_width = (width - columns - 1) / c.stride[1] + 1;
    const int64_t row_tiles = ceil_div(out_width, LANES);
    const int64_t reach = ((out_width < LANES ? out_width : LANES) - 1) * c.stride[1] + 1;
    return {width, height * width, rows * width + columns, c.stride[0] * width, c.stride[1], reach,
            out_height, out_width, row_tiles, out_height * row_tiles};
}
// Position of the first tap of a tile's first column.
static inline int64_t start_of(const Grid &grid, int64_t tile) {
    return tile / grid.row_tiles * grid.row_step + tile % grid.row_tiles * LANES * grid.column_step;
}
// Positions [first, end) are for these tiles: all that they read, and together the whole grid, so that no NaN escapes.
static inline int64_t first_position(const Grid &grid, const Tiles &part) {
    return part.from ? start_of(grid, part.from) : 0;
}
static inline int64_t end_position(const Grid &grid, const Tiles &part) {
    const int64_t read = start_of(grid, part.to - 1) + grid.reach + grid.span;
    const int64_t next = part.to < grid.tiles ? start_of(grid, part.to) : grid.positions;
    return read > next ? read : next;
}

// How a row of scores becomes a set of taken keys.
struct Selection {
    const int64_t *table;  // nullptr: by distance from the row's maximum
    int64_t margin, ratio;
};

struct Kernels {
    const char *name;
    int64_t macs_per_us;  // rough speed of one thread, to decide how many threads a call is worth
    int64_t (*linear_scratch)(int64_t k);  // 32-bit words
    // Each returns false if it met NaN. pack: bit planes of a row's levels, the top one first, and the sum of the levels.
    bool (*pack)(const Rows &, int64_t row, int64_t rows, uint32_t *words, int32_t *sums);
    bool (*linear)(const Linear &, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch);
    bool (*convolution)(const bq_convolution &, const Tiles &, uint32_t *scratch);
    bool (*attention)(const bq_attention &, const Selection &, int64_t batch, int64_t head, int64_t row, int64_t rows,
                      uint32_t *scratch);
    int64_t (*limit)(int64_t rounds);
    // plane: bytes from one bit of a row to the next.
    void (*embedding)(const uint8_t *packed_row, int64_t plane, int64_t bits, int64_t dim, float scale, float *out);
    bool (*elastic_levels)(const bq_elastic &, int64_t row, int64_t rows);
    void (*elastic_gradient)(const bq_elastic &, const float *grad, float *for_x, int64_t row, int64_t rows,
                             float *for_shift, float *for_alpha);
};

// 32-bit words of scratch that the kernels need.
constexpr int64_t BLOCK_ROWS = 32;  // rows of bits, so 32 / bits rows of levels: with a panel of weights, half a first cache
static constexpr int64_t linear_scratch(int64_t k) { return BLOCK_ROWS * (ceil_div(k, WORD_BITS) + 1); }
constexpr int64_t PASS_TILES = 4;  // tiles whose patches are multiplied at once
// Words of levels at a position: bit planes, or short integers of 16 groups of one channel and few outputs each.
static inline bool is_depthwise(const bq_convolution &c) { return c.channels == c.groups && c.out_channels < 4 * c.groups; }
static inline int64_t level_words(const bq_convolution &c) {
    return is_depthwise(c) ? LANES : c.bits * ceil_div(c.channels / c.groups, WORD_BITS);
}
int64_t convolution_scratch(const bq_convolution &, const Tiles &);
int64_t attention_scratch(const bq_attention &);

extern const Kernels portable_kernels;
#if defined(BITQUANT_X86)
extern const Kernels avx2_kernels, avx512_kernels, amx_kernels;
#elif defined(BITQUANT_ARM)
extern const Kernels neon_kernels;
#endif

}  // namespace bitquant

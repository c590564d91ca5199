// What one instruction set offers to api.cpp: single-threaded kernels over a part of a call. api.cpp owns threads and memory.
#pragma once

#include "bitquant.h"

namespace bitquant {

constexpr int64_t LANES = 16;
constexpr int64_t WORD_BITS = 32;
constexpr int64_t TABLE_MAX = 4096;

// Internal linkage: a copy compiled for one instruction set must not serve another.
static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Binarizer {
    const float *x;
    int64_t k, stride;
    const float *threshold;
    bool per_feature, strict;
};

struct Linear {
    Binarizer input;
    const uint32_t *lanes;
    int64_t n;
    const float *scale;
    bool per_row_scale;
    const float *bias;
    float *out;
};

// How a row of scores becomes a set of taken keys.
struct Selection {
    const int64_t *table;  // nullptr: by distance from the row's maximum
    int64_t margin, ratio;
};

struct Kernels {
    const char *name;
    int64_t macs_per_us;  // rough speed of one thread, to decide how many threads a call is worth
    // Each returns false if it met NaN.
    bool (*pack)(const Binarizer &, int64_t row, int64_t rows, uint32_t *words, int32_t *ones);
    bool (*linear)(const Linear &, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch);
    bool (*attention)(const bq_attention &, const Selection &, int64_t batch, int64_t head, int64_t row, int64_t rows,
                      uint32_t *scratch);
    void (*embedding)(const uint8_t *packed_row, int64_t dim, float scale, float *out);
};

// 32-bit words of scratch that `linear` and `attention` need.
constexpr int64_t BLOCK_ROWS = 64;
static constexpr int64_t linear_scratch(int64_t k) { return BLOCK_ROWS * (ceil_div(k, WORD_BITS) + 1); }
int64_t attention_scratch(const bq_attention &);

extern const Kernels portable_kernels;
#if defined(BITQUANT_X86)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

}  // namespace bitquant

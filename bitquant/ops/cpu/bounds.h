// What the C interface refuses before it reads or writes anything: sizes and geometries that would overflow an integer,
// read past an array or divide by 0.
#pragma once

#include <initializer_list>

#include "kernels.h"

namespace bitquant {

constexpr int64_t SIZE_END = int64_t{1} << 31;    // above every size
constexpr int64_t ARRAY_END = int64_t{1} << 48;   // above the elements that an array spans
constexpr int64_t MAX_EXACT = int64_t{1} << 24;   // integers up to here are exact in a float

static inline bool is_size(int64_t n, int64_t least = 1) { return n >= least && n < SIZE_END; }

// Whether an array of these sizes, none negative, is one.
template <class... Sizes>
static inline bool is_array(Sizes... sizes) {
    int64_t total = 1;
    bool fits = true;
    for (const int64_t n : {static_cast<int64_t>(sizes)...})
        fits = fits && n >= 0 && !__builtin_mul_overflow(total, n, &total) && total < ARRAY_END;
    return fits;
}

// Whether `n` steps of `stride` stay within an array. One step goes nowhere, whatever its stride.
static inline bool is_strided(int64_t n, int64_t stride) {
    return n <= 1 || (stride > -ARRAY_END && stride < ARRAY_END && is_array(n, stride < 0 ? -stride : stride));
}

static inline bool is_width(int64_t bits) { return bits == 1 || bits == 2 || bits == 4 || bits == 8; }

// Sums of k levels of `bits` bits are exact.
static inline bool is_exact(int64_t k, int64_t bits) {
    return k >= 1 && k < MAX_EXACT && is_width(bits) && (bits == 1 || k << bits <= MAX_EXACT);
}

// One value for each of n, or one for all.
static inline bool is_vector(int64_t size, int64_t n) { return size == 1 || size == n; }

static inline bool is_sound(const bq_linear &c) {
    return is_exact(c.k, c.bits) && is_size(c.n) && c.rows >= 0 && is_strided(c.rows, c.stride) && is_array(c.rows, c.k) &&
           is_array(c.rows, c.n) && is_array(c.n, ceil_div(c.k, WORD_BITS)) && is_vector(c.scale_size, c.n) &&
           (c.x_words ? c.bits == 1 : is_vector(c.offset_size, c.k)) && (!c.out_words || is_vector(c.next_offset_size, c.n));
}

static inline bool is_sound(const bq_convolution &c) {
    int64_t padded[2], space[2] = {c.height, c.width};
    for (int d = 0; d < 2; ++d) {
        if (!is_size(space[d]) || !is_size(c.kernel[d]) || !is_size(c.stride[d]) || !is_size(c.dilation[d])) return false;
        if (!is_size(c.before[d], 0) || !is_size(c.after[d], 0)) return false;
        padded[d] = space[d] + c.before[d] + c.after[d];
        if (!is_size(padded[d]) || c.dilation[d] * (c.kernel[d] - 1) >= padded[d]) return false;
    }
    if (!is_size(padded[0] * padded[1]) || !is_size(c.channels) || !is_size(c.out_channels) || !is_size(c.groups)) return false;
    if (c.channels % c.groups || c.out_channels % c.groups) return false;
    const int64_t taps = c.kernel[0] * c.kernel[1], channels = c.channels / c.groups;
    if (taps >= MAX_EXACT || channels >= MAX_EXACT || !is_exact(taps * channels, c.bits)) return false;
    const Grid grid = grid_of(c);
    return is_array(c.batch, c.channels, c.height, c.width) && is_array(c.batch, c.out_channels, grid.out_height, grid.out_width) &&
           is_array(c.out_channels, ceil_div(taps * channels, WORD_BITS)) && is_strided(c.batch, c.x_batch) &&
           is_strided(c.channels, c.x_channel) && is_strided(c.height, c.x_row) && is_strided(c.width, c.x_column) &&
           is_vector(c.offset_size, c.channels) && is_vector(c.scale_size, c.out_channels);
}

static inline bool is_sound(const bq_attention &c) {
    const auto heads = [&](int64_t rows, int64_t size, int64_t batch, int64_t head, int64_t row) {
        return is_array(c.batch, c.heads, rows, size) && is_strided(c.batch, batch) && is_strided(c.heads, head) &&
               is_strided(rows, row);
    };
    return is_size(c.queries, 0) && is_size(c.keys, 0) && is_exact(c.d, 1) && is_size(c.dv) && c.keys < MAX_EXACT &&
           is_size(c.keys * c.d, 0) && is_size(c.keys * c.dv, 0) && heads(c.queries, c.d, c.q_batch, c.q_head, c.q_row) &&
           heads(c.keys, c.d, c.k_batch, c.k_head, c.k_row) && heads(c.keys, c.dv, c.v_batch, c.v_head, c.v_row) &&
           is_array(c.batch, c.heads, c.queries, c.dv) &&
           (!c.keep || (heads(c.queries, 1, c.keep_batch, c.keep_head, c.keep_row) && is_strided(c.keys, c.keep_key)));
}

static inline bool is_sound(const bq_elastic &c) {
    constexpr int64_t most = int64_t{1} << 22;
    return is_size(c.k) && is_array(c.rows, c.k) && is_vector(c.shift_size, c.k) && c.low < c.high && c.low > -most &&
           c.high < most;
}

}  // namespace bitquant

/* bitquant CPU kernels: 1-bit products in plain C, usable without Python or torch.
 *
 * Layouts (little-endian hosts only)
 *   words   bit i of word w is element 32 w + i of a row; bits above the last element are zero. 1 = +1 (or 1 of {0,1}).
 *   lanes   a +-1 matrix of n rows and k columns as ceil(n/16) groups of ceil(k/32) x 16 words: word w of row 16 g + l is
 *           lanes[(g * ceil(k/32) + w) * 16 + l]. Missing rows of the last group are zero words.
 *   bytes   rows of ceil(k/8) bytes, bit i of byte j is element 8 j + i.
 *
 * Arithmetic: integer sums are exact below 2^24 (so k and lengths must be below it), and a float result is rounded after
 * each multiplication, division and addition in the order written here: no fused multiply-add. Every instruction set
 * and every number of threads gives the same bits.
 *
 * Bounds: sizes are below 2^31, and so are dilation * (kernel - 1), a padded plane of a convolution, and the keys or values of
 * a head; an array spans less than 2^48 elements. What is outside of them is refused with BQ_GEOMETRY.
 *
 * NaN is refused with BQ_NAN wherever it would decide a bit or a level, also where inf - inf or 0 / 0 makes it.
 *
 * Every function may be called from several threads at once. `threads` is the most OpenMP threads a call may use; a forked
 * process uses one, as threads do not survive a fork. Strides are in elements. Pointers need no more alignment than their
 * type.
 */
#ifndef BITQUANT_H
#define BITQUANT_H

#include <stdint.h>

#if defined(_WIN32)
#define BQ_API __declspec(dllexport)
#else
#define BQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BQ_ABI_VERSION 7

typedef enum bq_status {
    BQ_OK = 0,
    BQ_NAN = 1,         /* an input, or what it is compared with or rounded to, is NaN; the output is undefined */
    BQ_INDEX = 2,       /* an embedding index is out of range; the output is undefined */
    BQ_TABLE = 3,       /* a table entry is outside 0..4096 or the ratio is negative; nothing was written */
    BQ_NO_MEMORY = 4,   /* scratch memory could not be allocated; the output is undefined */
    BQ_UNSUPPORTED = 5, /* unknown instruction set, or one this processor or build lacks */
    BQ_GEOMETRY = 6,    /* a size, or a sum or product of sizes, is out of bounds; nothing was read or written */
} bq_status;

/* BQ_ABI_VERSION of the library, for callers that load it at run time. */
BQ_API int bq_abi_version(void);

/* Instruction sets of this build that this processor runs, best first; NULL from `index` = their number on. */
BQ_API const char *bq_instruction_set_name(int index);

/* The instruction set in use, at first the best one. */
BQ_API const char *bq_instruction_set(void);

/* Switch the whole process to the instruction set `name`. BQ_UNSUPPORTED changes nothing. */
BQ_API bq_status bq_use_instruction_set(const char *name);

/* The most that bq_multiply could do: its instructions for 1 bit in a loop over registers, `rounds` times on each of
 * `threads` threads. Returns the number of 1-bit multiply-adds done; benchmarks time it. */
BQ_API int64_t bq_limit(int64_t rounds, int threads);

/* Bits of `rows` x `k` floats, row `stride` apart: x >= threshold, or x > threshold where `strict`.
 * threshold: `threshold_size` = k of them, or 1 for all. words: rows x ceil(k/32). ones: set bits of each row. */
BQ_API bq_status bq_threshold_pack(const float *x, int64_t rows, int64_t k, int64_t stride, const float *threshold,
                                   int64_t threshold_size, int strict, uint32_t *words, int32_t *ones, int threads);

/* A product of `rows` x k floats, or bits, with a +-1 weight. */
typedef struct bq_linear {
    const float *x;              /* rows x k, rows `stride` apart; not read where x_words are given */
    float *out;                  /* rows x n, dense; not written where out_words are given */
    const float *offset;         /* k of them, or one: the threshold at 1 bit, else the shift of a level */
    const float *step;           /* one: the width of a level; NULL at 1 bit */
    const uint32_t *lanes;       /* n rows of k signs */
    const float *scale, *bias;   /* scale: n, or one. bias: n, or NULL */
    int64_t rows, k, stride, n, offset_size, scale_size;
    int64_t bits, is_signed;     /* 1, 2, 4 or 8; at 1 bit {-1,+1} where signed, else {0,1} */
    const uint32_t *x_words;     /* NULL, or x as rows x ceil(k/32) words, at 1 bit; offset is then not read */
    uint32_t *out_words;         /* NULL, or rows x ceil(n/32): the result as the bits that a next product starts from */
    const float *next_offset;    /* with out_words: n of them, or one: the bit is y >= offset, or > where not signed */
    int64_t next_offset_size, next_is_signed;
    int64_t next_relu;           /* with out_words: the bits are those of max(y, 0) */
} bq_linear;

/* out[m][n] = acc * scale[n] + bias[n], acc = sum over k of a[m][k] * w[n][k]. At 1 bit a is x >= offset as +-1, or
 * x > offset as {0,1}; else rint((x + offset) / *step), to even where it is a tie, clipped to -2^(bits-1) .. 2^(bits-1) - 1
 * where signed, else to 0 .. 2^bits - 1. Members from x_words on may be zero: floats in, floats out. */
BQ_API bq_status bq_multiply(const bq_linear *call, int threads);

/* A convolution over two dimensions; one over time has height 1. Pairs are (height, width). */
typedef struct bq_convolution {
    const float *x;              /* (batch, channels, height, width); fastest where x_column or x_channel is 1 */
    float *out;                  /* (batch, out_channels, *output size), dense */
    const float *offset;         /* of each channel, or one: as in bq_linear */
    const float *step;           /* as in bq_linear */
    const uint32_t *lanes;       /* out_channels rows of signs, in the order (row, column, channel within the group) */
    const float *scale, *bias;   /* as in bq_linear, per output channel */
    int64_t batch, channels, height, width, out_channels, groups, offset_size, scale_size;
    int64_t x_batch, x_channel, x_row, x_column; /* strides */
    int64_t kernel[2], stride[2], dilation[2];
    int64_t before[2], after[2]; /* padding */
    int64_t bits, is_signed;     /* 1, 2, 4 or 8; at 1 bit {-1,+1} where signed, else {0,1} */
} bq_convolution;

/* out = acc * scale + bias, acc = sum of level * sign over the taps inside the input and the channels of the group.
 * A position whose vector over all channels is exactly zero counts 0, like the padding. */
BQ_API bq_status bq_convolve(const bq_convolution *call, int threads);

/* Binary attention. Signs are x >= 0; the score s of a query and a key is the sum over d of the product of their signs. */
typedef struct bq_attention {
    const float *q, *k, *v;      /* (batch, heads, length, size), the last dimension dense */
    const uint8_t *keep;         /* (batch, heads, queries, keys), 0 = leave this key out; or NULL */
    float *out;                  /* (batch, heads, queries, dv), dense */
    int64_t batch, heads, queries, keys, d, dv;
    int64_t q_batch, q_head, q_row; /* strides */
    int64_t k_batch, k_head, k_row;
    int64_t v_batch, v_head, v_row;
    int64_t keep_batch, keep_head, keep_row, keep_key; /* 0 where the mask is broadcast */
    const float *scale;          /* one */
} bq_attention;

/* Key j is taken iff kept and s_ij >= max over kept keys of s_i - *margin. out = sum over taken of sign(v_j) / number taken
 * * scale; 0 where no key is kept. */
BQ_API bq_status bq_attention_rowmax(const bq_attention *call, const int64_t *margin, int threads);

/* With delta = (max over kept keys of s_i - s_ij) / 2 and z the sum of table[delta] over kept keys, key j is taken iff kept
 * and table[delta] * 2^24 > *ratio * z. out = sum over taken of sign(v_j) * scale. table: d + 1 entries in 0..4096. */
BQ_API bq_status bq_attention_table(const bq_attention *call, const int64_t *table, const int64_t *ratio, int threads);

/* out[i][c] = scale[row] * sum over bits of +-2^bit, for row = indices[i]. packed: `bits` x `rows` x ceil(dim/8) bytes, the
 * lowest bit first. scale: rows, or 1. */
BQ_API bq_status bq_embedding(const int64_t *indices, int64_t count, const uint8_t *packed, int64_t rows, int64_t bits,
                              int64_t dim, const float *scale, int64_t scale_size, float *out, int threads);

/* Elastic binarization in training: `rows` x k floats, dense, to levels in low..high, as floats. */
typedef struct bq_elastic {
    const float *x;
    const float *shift;          /* k of them, or one */
    const float *alpha;          /* one, positive */
    float *out;                  /* rows x k, dense; not used for gradients */
    int64_t rows, k;
    int64_t shift_size;          /* k, or 1 */
    int64_t low, high;           /* -1 and 1: x >= -shift; 0 and 1: x > alpha / 2 - shift; else rint((x + shift) / alpha),
                                  clipped; below 2^22 */
    int64_t smooth;              /* for gradients: slope 2 - 2 |u| instead of 1 in the window low..high of u */
} bq_elastic;

/* BQ_NAN: x or shift holds NaN, or a level is NaN. */
BQ_API bq_status bq_elastic_levels(const bq_elastic *call, int threads);

/* With u = (x + shift) / alpha: for_x = slope(u) * grad / alpha. The rows are summed in `blocks` blocks of equal size, each
 * with a row of k of for_shift (sums of for_x) and for_alpha (sums of -for_x * u). */
BQ_API bq_status bq_elastic_gradient(const bq_elastic *call, const float *grad, float *for_x, float *for_shift,
                                     float *for_alpha, int64_t blocks, int threads);

#ifdef __cplusplus
}
#endif
#endif

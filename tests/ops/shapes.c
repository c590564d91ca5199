/* Every function of bitquant.h over odd shapes, on every instruction set, against loops that define it. Buffers have exactly
 * the size that the header asks for, so that a sanitizer sees a byte too many. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitquant.h"

static uint32_t state = 1;
static uint32_t draw(void) { return state = state * 1664525u + 1013904223u; }
static int coin(void) { return draw() >> 31; }
static float number(void) { return (float)((int)(draw() >> 22) - 512) / 128.0f; } /* some are 0, many are ties */

static void *room(int64_t bytes) {
    void *p = malloc((size_t)(bytes ? bytes : 1));
    if (!p) exit(2);
    memset(p, 0x5a, (size_t)bytes);
    return p;
}
static float *floats(int64_t n) {
    float *p = room(n * 4);
    for (int64_t i = 0; i < n; ++i) p[i] = number();
    return p;
}
static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* n rows of k random signs, as lanes. */
static uint32_t *weight(int64_t n, int64_t k) {
    const int64_t words = up(k, 32), size = up(n, 16) * words * 16;
    uint32_t *lanes = room(size * 4);
    memset(lanes, 0, (size_t)size * 4);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j)
            if (coin()) lanes[(i / 16 * words + j / 32) * 16 + i % 16] |= 1u << j % 32;
    return lanes;
}
static int sign(const uint32_t *lanes, int64_t k, int64_t i, int64_t j) {
    return lanes[(i / 16 * up(k, 32) + j / 32) * 16 + i % 16] >> j % 32 & 1 ? 1 : -1;
}

static int level(float x, float offset, const float *step, int64_t bits, int64_t is_signed) {
    if (bits == 1) return is_signed ? (x >= offset ? 1 : -1) : x > offset;
    const float low = is_signed ? -(float)(1 << (bits - 1)) : 0, high = (float)((1 << (bits - is_signed)) - 1);
    volatile float sum = x + offset, quotient = sum / *step;
    const float rounded = rintf(quotient);
    return (int)(rounded < low ? low : rounded > high ? high : rounded);
}
static float affine(int64_t acc, float scale, const float *bias) {
    volatile float product = (float)acc * scale;
    return bias ? product + *bias : product;
}

static int failures = 0;
static void same(const char *what, const float *expected, const float *got, int64_t n) {
    if (n && memcmp(expected, got, (size_t)n * 4)) {
        printf("%s differs on %s\n", what, bq_instruction_set());
        ++failures;
    }
}

/* The same product from bits and to bits; `expected` is what it is as floats. */
static void between_bits(bq_linear call, const float *expected, int threads) {
    const int64_t words = up(call.n, 32), vector = coin(), relu = coin(), is_signed = coin();
    uint32_t *x = room(call.rows * up(call.k, 32) * 4), *out = room(call.rows * words * 4);
    int32_t *ones = room(call.rows * 4);
    float *offset = floats(vector ? call.n : 1);
    if (vector && call.rows) memcpy(offset, expected, (size_t)call.n * 4); /* ties */
    bq_threshold_pack(call.x, call.rows, call.k, call.stride, call.offset, call.offset_size, !call.is_signed, x, ones, threads);
    call.x = call.offset = NULL, call.x_words = x;
    if (bq_multiply(&call, threads) != BQ_OK) ++failures;
    same("linear of bits", expected, call.out, call.rows * call.n);
    call.out = NULL, call.out_words = out, call.next_offset = offset, call.next_offset_size = vector ? call.n : 1;
    call.next_relu = relu, call.next_is_signed = is_signed;
    if (bq_multiply(&call, threads) != BQ_OK) ++failures;
    for (int64_t i = 0; i < call.rows; ++i)
        for (int64_t j = 0; j < words * 32; ++j) {
            const float y = j < call.n ? expected[i * call.n + j] : 0, kept = relu && y < 0 ? 0 : y;
            const int wanted = j < call.n && level(kept, offset[vector && j < call.n ? j : 0], NULL, 1, is_signed) == 1;
            if ((int)(out[i * words + j / 32] >> j % 32 & 1) != wanted) ++failures;
        }
    free(x), free(out), free(ones), free(offset);
}

static void linear(int64_t rows, int64_t k, int64_t n, int64_t bits, int64_t is_signed, int threads) {
    const int64_t stride = k + draw() % 3, vector = coin(), with_bias = coin();
    float *x = floats(rows ? (rows - 1) * stride + k : 0), *offset = floats(vector ? k : 1), step = 0.37f;
    float *scale = floats(vector ? n : 1), *bias = floats(n), *out = room(rows * n * 4), *expected = room(rows * n * 4);
    uint32_t *lanes = weight(n, k);
    bq_linear call = {x,    out, offset, bits > 1 ? &step : NULL, lanes,           scale, with_bias ? bias : NULL, rows, k, stride,
                      n, vector ? k : 1, vector ? n : 1, bits, is_signed, NULL, NULL, NULL, 0, 0, 0};
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < n; ++j) {
            int64_t acc = 0;
            for (int64_t c = 0; c < k; ++c)
                acc += sign(lanes, k, j, c) * level(x[i * stride + c], offset[vector ? c : 0], &step, bits, is_signed);
            expected[i * n + j] = affine(acc, scale[vector ? j : 0], with_bias ? bias + j : NULL);
        }
    if (bq_multiply(&call, threads) != BQ_OK) ++failures;
    same("linear", expected, out, rows * n);
    if (bits == 1) between_bits(call, expected, threads);
    if (bits == 1 && k > 0) {
        uint32_t *words = room(rows * up(k, 32) * 4);
        int32_t *ones = room(rows * 4);
        if (bq_threshold_pack(x, rows, k, stride, offset, vector ? k : 1, !is_signed, words, ones, threads) != BQ_OK) ++failures;
        for (int64_t i = 0; i < rows; ++i) {
            int32_t set = 0;
            for (int64_t c = 0; c < up(k, 32) * 32; ++c) {
                const int bit = words[i * up(k, 32) + c / 32] >> c % 32 & 1;
                const int wanted = c < k && level(x[i * stride + c], offset[vector ? c : 0], &step, 1, is_signed) == 1;
                if (bit != wanted) ++failures;
                set += wanted;
            }
            if (set != ones[i]) ++failures;
        }
        free(words), free(ones);
    }
    free(x), free(offset), free(scale), free(bias), free(out), free(expected), free(lanes);
}

static void convolution(int64_t channels, int64_t outputs, int64_t groups, int64_t bits, int64_t is_signed, int by_channel) {
    const int64_t height = 1 + draw() % 6, width = 5 + draw() % 40, kh = 1 + draw() % 3, kw = 1 + draw() % 5;
    const int64_t batch = 1 + coin(), per = channels / groups, k = kh * kw * per;
    bq_convolution c;
    memset(&c, 0, sizeof c);
    for (int d = 0; d < 2; ++d) c.stride[d] = 1 + draw() % 3, c.dilation[d] = 1 + draw() % 2;
    c.kernel[0] = kh, c.kernel[1] = kw;
    c.before[0] = c.dilation[0] * kh, c.after[0] = draw() % 2, c.before[1] = c.dilation[1] * kw, c.after[1] = draw() % 4;
    c.batch = batch, c.channels = channels, c.height = height, c.width = width, c.out_channels = outputs, c.groups = groups;
    c.offset_size = c.scale_size = 1, c.bits = bits, c.is_signed = is_signed;
    const int64_t oh = (height + c.before[0] + c.after[0] - c.dilation[0] * (kh - 1) - 1) / c.stride[0] + 1;
    const int64_t ow = (width + c.before[1] + c.after[1] - c.dilation[1] * (kw - 1) - 1) / c.stride[1] + 1;
    const int64_t inputs = batch * channels * height * width, results = batch * outputs * oh * ow;
    float *x = floats(inputs), offset = 0.25f, step = 0.37f, scale = 0.3f, *out = room(results * 4), *expected = room(results * 4);
    uint32_t *lanes = weight(outputs, k);
    c.x = x, c.out = out, c.offset = &offset, c.step = bits > 1 ? &step : NULL, c.lanes = lanes, c.scale = &scale;
    c.x_batch = channels * height * width, c.x_channel = by_channel ? 1 : height * width;
    c.x_row = by_channel ? width * channels : width, c.x_column = by_channel ? channels : 1;
    for (int64_t b = 0; b < batch; ++b) /* one position that counts 0 */
        for (int64_t g = 0; g < channels; ++g) x[b * c.x_batch + g * c.x_channel + width / 2 * c.x_column] = 0;
    for (int64_t i = 0; i < results; ++i) {
        const int64_t b = i / (outputs * oh * ow), n = i / (oh * ow) % outputs, y = i / ow % oh, z = i % ow;
        int64_t acc = 0;
        for (int64_t tap = 0; tap < kh * kw; ++tap) {
            const int64_t row = y * c.stride[0] - c.before[0] + tap / kw * c.dilation[0];
            const int64_t column = z * c.stride[1] - c.before[1] + tap % kw * c.dilation[1];
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const float *at = x + b * c.x_batch + row * c.x_row + column * c.x_column;
            int valid = 0;
            for (int64_t g = 0; g < channels; ++g) valid |= at[g * c.x_channel] != 0;
            for (int64_t p = 0; valid && p < per; ++p)
                acc += sign(lanes, k, n, tap * per + p) *
                       level(at[(n / (outputs / groups) * per + p) * c.x_channel], offset, &step, bits, is_signed);
        }
        expected[i] = affine(acc, scale, NULL);
    }
    if (bq_convolve(&c, 2) != BQ_OK) ++failures;
    same("convolution", expected, out, results);
    free(x), free(out), free(expected), free(lanes);
}

static void attention(int64_t queries, int64_t keys, int64_t d, int64_t dv, int mask, int by_table) {
    const int64_t batch = 1, heads = 2, masks = mask == 2 ? queries : 1;
    float *q = floats(heads * queries * d), *k = floats(heads * keys * d), *v = floats(heads * keys * dv), scale = 0.7f;
    float *out = room(heads * queries * dv * 4), *expected = room(heads * queries * dv * 4);
    uint8_t *keep = room(masks * keys);
    for (int64_t i = 0; i < masks * keys; ++i) keep[i] = draw() % 4 > 0;
    for (int64_t i = 0; mask && i < keys; ++i) keep[i] = mask == 2 ? 0 : i < keys / 2; /* a row, or whole blocks, left out */
    int64_t *table = room((d + 1) * 8), margin = d / 4, ratio = 300000;
    for (int64_t i = 0; i <= d; ++i) table[i] = i < 12 ? 4096 >> i : 0;
    bq_attention c = {q, k, v, mask ? keep : NULL, out, batch, heads, queries, keys, d, dv, 0, queries * d, d, 0, keys * d, d,
                      0, keys * dv, dv, 0, 0, mask == 2 ? keys : 0, 1, &scale};
    int64_t *score = room(keys * 8);
    for (int64_t row = 0; row < heads * queries; ++row) {
        const int64_t h = row / queries, i = row % queries;
        const uint8_t *kept = keep + (mask == 2 ? i * keys : 0);
        int64_t best = INT64_MIN, z = 0, taken = 0;
        for (int64_t j = 0; j < keys; ++j) {
            score[j] = 0;
            for (int64_t e = 0; e < d; ++e)
                score[j] += (q[row * d + e] >= 0) == (k[(h * keys + j) * d + e] >= 0) ? 1 : -1;
            if ((!mask || kept[j]) && score[j] > best) best = score[j];
        }
        for (int64_t j = 0; j < keys; ++j)
            if (!mask || kept[j]) z += table[(best - score[j]) / 2];
        for (int64_t e = 0; e < dv; ++e) {
            int64_t sum = 0;
            taken = 0;
            for (int64_t j = 0; j < keys; ++j) {
                if (mask && !kept[j]) continue;
                const int take = by_table ? table[(best - score[j]) / 2] * (1 << 24) > ratio * z : score[j] >= best - margin;
                if (take) sum += v[(h * keys + j) * dv + e] >= 0 ? 1 : -1, ++taken;
            }
            volatile float mean = by_table ? (float)sum : (float)sum / (float)(taken ? taken : 1);
            expected[row * dv + e] = mean * scale;
        }
    }
    const bq_status status = by_table ? bq_attention_table(&c, table, &ratio, 2) : bq_attention_rowmax(&c, &margin, 2);
    if (status != BQ_OK) ++failures;
    same("attention", expected, out, heads * queries * dv);
    free(q), free(k), free(v), free(out), free(expected), free(keep), free(table), free(score);
}

static void embedding(int64_t dim, int64_t bits) {
    const int64_t rows = 5, count = 7, bytes = up(dim, 8);
    uint8_t *packed = room(bits * rows * bytes);
    float *scale = floats(rows), *out = room(count * dim * 4), *expected = room(count * dim * 4);
    int64_t indices[7];
    for (int64_t i = 0; i < bits * rows * bytes; ++i) packed[i] = (uint8_t)draw();
    for (int64_t i = 0; i < count * dim; ++i) {
        if (i % dim == 0) indices[i / dim] = draw() % rows;
        const int64_t row = indices[i / dim], c = i % dim;
        int level = 0;
        for (int64_t b = 0; b < bits; ++b)
            level += packed[(b * rows + row) * bytes + c / 8] >> c % 8 & 1 ? 1 << b : -(1 << b);
        expected[i] = (float)level * scale[row];
    }
    if (bq_embedding(indices, count, packed, rows, bits, dim, scale, rows, out, 2) != BQ_OK) ++failures;
    same("embedding", expected, out, count * dim);
    free(packed), free(scale), free(out), free(expected);
}

int main(void) {
    const int64_t rows[] = {0, 1, 3, 5, 33, 70}, widths[] = {1, 31, 33, 63, 100, 1000}, columns[] = {1, 15, 17, 65};
    for (int isa = 0; bq_instruction_set_name(isa); ++isa) {
        bq_use_instruction_set(bq_instruction_set_name(isa));
        for (int i = 0; i < 6; ++i)
            for (int j = 0; j < 6; ++j)
                for (int n = 0; n < 4; ++n) linear(rows[i], widths[j], columns[n], 1, coin(), 1 + coin());
        for (int i = 0; i < 4; ++i) linear(i % 2 ? 40 : 300, 520 + 13 * i, 40 + 3 * i, 1, i / 2, 1 + i % 2);
        for (int i = 0; i < 12; ++i) linear(rows[i % 6], widths[i % 5], columns[i % 4], 2 << i % 3, coin(), 2);
        for (int i = 0; i < 40; ++i) {
            convolution(3, 5, 1, 1 << i % 4, coin(), i % 2);
            convolution(6, 6, 6, 1 << i % 4, coin(), i % 2);
            convolution(66, 17, 1, 1, coin(), i % 2);
            convolution(8, 4, 2, 1 << i % 3, coin(), i % 2);
        }
        for (int i = 0; i < 18; ++i) {
            attention(1 + i * 3, 1 + i * 7, 1 + i * 9 % 70, 1 + i * 5 % 40, i % 3, i / 3 % 2);
            attention(5, 100 + i, 64, 16, i % 3, i / 3 % 2);
        }
        const int64_t dims[] = {1, 7, 8, 9, 16, 100};
        for (int i = 0; i < 24; ++i) embedding(dims[i % 6], 1 << i / 6);
        printf("%s: %d failures\n", bq_instruction_set(), failures);
    }
    return failures != 0;
}

/* A plain C program on bitquant.h: a linear layer and an attention small enough to check by hand. */
#include <stdio.h>
#include <string.h>

#include "bitquant.h"

#define EXPECT(condition)                        \
    if (!(condition)) {                          \
        printf("line %d: %s\n", __LINE__, #condition); \
        return 1;                                \
    }

int main(void) {
    EXPECT(bq_abi_version() == BQ_ABI_VERSION);
    EXPECT(bq_use_instruction_set("no such set") == BQ_UNSUPPORTED);
    for (int i = 0; bq_instruction_set_name(i); ++i) {
        EXPECT(bq_use_instruction_set(bq_instruction_set_name(i)) == BQ_OK);
        EXPECT(strcmp(bq_instruction_set(), bq_instruction_set_name(i)) == 0);

        /* signs of x: + - + + -; w0: + + + - -, w1: all minus */
        const float x[5] = {1.0f, -2.0f, 0.0f, 3.0f, -0.5f}, zero = 0.0f;
        uint32_t words[1], lanes[16] = {0x7, 0x0};
        int32_t ones[1];
        EXPECT(bq_threshold_pack(x, 1, 5, 5, &zero, 1, 0, words, ones, 1) == BQ_OK);
        EXPECT(words[0] == 0xd && ones[0] == 3);

        const float scale[2] = {0.5f, 2.0f}, bias[2] = {10.0f, 20.0f};
        float out[2];
        bq_linear product;
        memset(&product, 0, sizeof product);
        product.x = x, product.out = out, product.offset = &zero, product.lanes = lanes;
        product.scale = scale, product.bias = bias, product.scale_size = product.n = 2;
        product.rows = product.offset_size = product.bits = product.is_signed = 1, product.k = product.stride = 5;
        EXPECT(bq_multiply(&product, 2) == BQ_OK);
        EXPECT(out[0] == 10.5f && out[1] == 18.0f); /* acc 1 and -1 */
        product.is_signed = 0, product.bias = NULL;
        EXPECT(bq_multiply(&product, 1) == BQ_OK);
        EXPECT(out[0] == 0.0f && out[1] == -4.0f); /* {0,1}: ones at 0 and 3, acc 0 and -2 */

        /* levels 1, -2, 0, 1, 0 (2.5 to even, clipped; -0.5 to even) against the same weights */
        const float x4[5] = {1.0f, -9.0f, 0.0f, 2.5f, -0.5f}, step = 1.0f;
        product.x = x4, product.step = &step, product.bits = 2, product.is_signed = 1, product.bias = bias;
        EXPECT(bq_multiply(&product, 1) == BQ_OK);
        EXPECT(out[0] == 9.0f && out[1] == 20.0f); /* acc 1 - 2 - 1 and -(1 - 2 + 1) */

        /* signs of x: + - 0 + -, one column of padding on both sides; kernel + + - */
        const uint32_t kernel[16] = {0x3};
        float convolved[5];
        bq_convolution wave;
        memset(&wave, 0, sizeof wave);
        wave.x = x, wave.out = convolved, wave.offset = &zero, wave.lanes = kernel, wave.scale = &step;
        wave.batch = wave.channels = wave.height = wave.out_channels = wave.groups = 1;
        wave.width = 5, wave.x_batch = wave.x_channel = wave.x_row = 5, wave.x_column = 1;
        wave.offset_size = wave.scale_size = wave.bits = wave.is_signed = 1;
        wave.kernel[0] = 1, wave.kernel[1] = 3, wave.before[1] = wave.after[1] = 1;
        for (int j = 0; j < 2; ++j) wave.stride[j] = wave.dilation[j] = 1;
        const float sums[5] = {2, 0, -2, 2, 0};
        EXPECT(bq_convolve(&wave, 1) == BQ_OK);
        EXPECT(memcmp(convolved, sums, sizeof sums) == 0);

        const uint8_t packed[4] = {0xff, 0x01, 0x00, 0x02}; /* two rows of ten bits */
        const int64_t rows[2] = {1, 2}, first[1] = {0};
        float row[10];
        EXPECT(bq_embedding(rows, 1, packed, 2, 1, 10, scale, 2, row, 1) == BQ_OK);
        EXPECT(row[0] == -2.0f && row[8] == -2.0f && row[9] == 2.0f);
        EXPECT(bq_embedding(rows, 2, packed, 2, 1, 10, scale, 2, row, 1) == BQ_INDEX);
        EXPECT(bq_embedding(rows, 1, packed, 1, 2, 10, scale, 1, row, 1) == BQ_INDEX); /* two bits of one row */
        EXPECT(bq_embedding(first, 1, packed, 1, 2, 10, scale, 1, row, 1) == BQ_OK);
        EXPECT(row[0] == -scale[0] && row[8] == -scale[0] && row[9] == scale[0]);

        /* scores 2, 0, -2; values + - + */
        const float q[2] = {1, 1}, k[6] = {1, 1, 1, -1, -1, -1}, v[3] = {5, -5, 5};
        const uint8_t keep[3] = {0, 1, 1}, none[3] = {0, 0, 0};
        bq_attention call;
        memset(&call, 0, sizeof call);
        call.q = q, call.k = k, call.v = v, call.out = out, call.scale = scale;
        call.batch = call.heads = call.queries = call.dv = call.v_row = call.keep_key = 1;
        call.keys = 3, call.d = call.q_row = call.k_row = 2;
        const int64_t margin[2] = {1, 2}, table[3] = {4096, 100, 1}, half = 1 << 23, far = 5000;
        EXPECT(bq_attention_rowmax(&call, &margin[0], 1) == BQ_OK && out[0] == 0.5f);
        EXPECT(bq_attention_rowmax(&call, &margin[1], 1) == BQ_OK && out[0] == 0.0f);
        EXPECT(bq_attention_table(&call, table, &half, 1) == BQ_OK && out[0] == 0.5f);
        EXPECT(bq_attention_table(&call, &far, &half, 1) == BQ_TABLE);
        call.keep = keep;
        EXPECT(bq_attention_rowmax(&call, &margin[0], 1) == BQ_OK && out[0] == -0.5f);
        call.keep = none;
        EXPECT(bq_attention_rowmax(&call, &margin[1], 1) == BQ_OK && out[0] == 0.0f);
    }
    return 0;
}

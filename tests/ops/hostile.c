/* Every function of bitquant.h over hostile geometries: sound small calls in which a few sizes, strides or paddings are
 * replaced. Arrays serve every small size, so that whatever is not refused must stay inside of them; a sanitizer watches. */
#include <stdio.h>
#include <string.h>

#include "bitquant.h"

enum { SMALL = 5, ROOM = 1 << 16 };

static uint32_t state = 1;
static uint32_t draw(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

static const int64_t far_away[] = {INT64_MIN, INT64_MIN + 1, -(INT64_C(1) << 62), -(INT64_C(1) << 48), INT64_C(1) << 48,
                                   INT64_C(1) << 62, INT64_MAX - 1, INT64_MAX};
static const int64_t too_large[] = {-1, -2, INT64_C(1) << 31, INT64_C(1) << 32, (INT64_C(1) << 32) + 1, INT64_C(1) << 33};

/* How a number may be replaced: c a count, bounded only as a part of an array; s a stride; n a size, below 2^31; g a step of
 * a convolution, up to 2^31 - 1; f a flag or a range of levels. */
static int64_t other(char kind) {
    if (draw() % 3 == 0) return draw() % (SMALL + 1);
    if (kind == 'g' && draw() % 3 == 0) return (INT64_C(1) << 31) - 1 - draw() % 2;
    if ((kind == 'n' || kind == 'g' || kind == 'f') && draw() % 2) return too_large[draw() % 6];
    if (kind == 'c' && draw() % 4 == 0) return -1;
    return far_away[draw() % 8];
}
static void replace(void *numbers, const char *kinds) {
    const int count = (int)strlen(kinds);
    for (int i = (int)(draw() % 3); i >= 0; --i) {
        const int at = (int)(draw() % (uint32_t)count);
        const int64_t value = other(kinds[at]);
        memcpy((char *)numbers + 8 * at, &value, 8);
    }
}

static int refused = 0, done = 0, failures = 0;
static void ended(bq_status status, float *out) {
    refused += status == BQ_GEOMETRY;
    done += status == BQ_OK;
    for (int i = 0; i < 64; ++i) {
        failures += status == BQ_GEOMETRY && out[i] != 7; /* nothing was written */
        out[i] = 7;
    }
}

int main(void) {
    static float x[ROOM], y[ROOM], z[ROOM], out[ROOM], shift[ROOM], sums[ROOM];
    static uint32_t words[ROOM], bits[ROOM];
    static int32_t ones[ROOM];
    static uint8_t keep[ROOM];
    int64_t table[64] = {0}, ratio = 100, indices[64] = {0};
    const float one = 0.5f;
    for (int i = 0; i < ROOM; ++i)
        x[i] = (float)(draw() % 9) - 4, y[i] = x[i] + 1, z[i] = x[i] - 1, shift[i] = 0.25f, out[i] = 7, keep[i] = draw() % 2;

    for (int isa = 0; bq_instruction_set_name(isa); ++isa) {
        bq_use_instruction_set(bq_instruction_set_name(isa));
        for (int i = 0; i < 20000; ++i) {
            const int threads = 1 + (int)(draw() % 2), width = 1 << draw() % 4;
            int64_t rows[] = {3, 5, 5, 5};
            replace(rows, "cnsn");
            ended(bq_threshold_pack(x, rows[0], rows[1], rows[2], shift, rows[3], i % 2, bits, ones, threads), out);

            bq_linear linear = {x, out, shift, &one, words, shift, y, 3, 5, 5, 4, 5, 4, width, draw() % 2, NULL, NULL, NULL, 0, 0, 0};
            if (draw() % 3 == 0) linear.bits = 1, linear.x_words = words;
            if (linear.x_words && draw() % 2) linear.out_words = bits, linear.next_offset = shift, linear.next_offset_size = 4;
            replace(&linear.rows, "cnsnnnff");
            if (draw() % 4 == 0) replace(&linear.next_offset_size, "nff");
            ended(bq_multiply(&linear, threads), out);

            bq_convolution image = {x, out, shift, &one, words, shift, y, 2, 4, 5, 5, 4, 2, 4, 4, 100, 25, 5, 1,
                                    {3, 2}, {1, 2}, {1, 1}, {1, 0}, {1, 2}, width, draw() % 2};
            replace(&image.batch, "cnnnnnnnssssnnggggnnnnff");
            ended(bq_convolve(&image, threads), out);

            bq_attention heads = {x, y, z, draw() % 2 ? keep : NULL, out, 2, 2, 3, 4, 5, 4, 30, 15, 5, 40, 20, 5, 32, 16, 4,
                                  24, 12, 4, 1, &one};
            int64_t margin = draw() % 4 ? 1 : other('f');
            replace(&heads.batch, "ccnnnnsssssssssssss");
            ended(i % 2 ? bq_attention_rowmax(&heads, &margin, threads) : bq_attention_table(&heads, table, &ratio, threads), out);

            int64_t rows_of[] = {5, 4, width, 5, 4};
            replace(rows_of, "ccfnn");
            indices[2] = draw() % 8 ? draw() % 4 : other('f');
            ended(bq_embedding(indices, rows_of[0], keep, rows_of[1], rows_of[2], rows_of[3], shift, rows_of[4], out, threads),
                  out);

            bq_elastic elastic = {x, shift, &one, out, 3, 5, 5, -1, 1, draw() % 2};
            replace(&elastic.rows, "cnnfff");
            ended(bq_elastic_levels(&elastic, threads), out);
            int64_t blocks = draw() % 4 ? 4 : other('c');
            ended(bq_elastic_gradient(&elastic, y, out, sums, sums + ROOM / 2, blocks, threads), out);
        }
        printf("%s: %d failures\n", bq_instruction_set(), failures);
    }
    fprintf(stderr, "%d refused, %d done\n", refused, done);
    return failures != 0 || refused < 1000 || done < 1000;
}

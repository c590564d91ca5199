// Floats to bits, and bits of an embedding row to floats. Included once per instruction set, after levels.inl.

template <bool Strict, bool PerFeature>
static bool pack_row(const float *x, int64_t k, const float *threshold, uint32_t *words, int32_t *ones) {
    Mask nan = 0;
    int32_t count = 0;
    const Floats common = Floats::all(*threshold);
    const auto half = [&](int64_t at, int64_t n) -> Mask {
        const bool whole = n == LANES;
        const Floats value = whole ? Floats::load(x + at) : Floats::load(x + at, n);
        Floats limit = common;
        if (PerFeature) limit = whole ? Floats::load(threshold + at) : Floats::load(threshold + at, n);
        nan |= unordered(value, limit);
        const Mask bits = Strict ? above(value, limit) : at_least(value, limit);
        return whole ? bits : bits & ((1u << n) - 1);
    };
    for (int64_t w = 0; w < ceil_div(k, WORD_BITS); ++w) {
        const int64_t at = w * WORD_BITS, left = k - at;
        Mask word;
        if (left >= WORD_BITS) {
            word = half(at, LANES) | half(at + LANES, LANES) << LANES;
        } else {
            word = half(at, left < LANES ? left : LANES);
            if (left > LANES) word |= half(at + LANES, left - LANES) << LANES;
        }
        words[w] = word;
        count += __builtin_popcount(word);
    }
    *ones = count;
    return nan == 0;
}

static void copy_bits(const uint32_t *from, int64_t rows, int64_t row_words, uint32_t *words, int32_t *sums) {
    std::memcpy(words, from, static_cast<size_t>(rows * row_words) * sizeof *words);
    for (int64_t i = 0; i < rows; ++i) {
        sums[i] = 0;
        for (int64_t w = 0; w < row_words; ++w) sums[i] += __builtin_popcount(from[i * row_words + w]);
    }
}

static bool pack(const Rows &in, int64_t row, int64_t rows, uint32_t *words, int32_t *sums) {
    const Quantizer &to = in.to;
    const int64_t row_words = to.bits * ceil_div(in.k, WORD_BITS);
    if (in.words) {
        copy_bits(in.words + row * row_words, rows, row_words, words, sums);
        return true;
    }
    const auto one_row = to.is_signed ? (to.per_feature ? pack_row<false, true> : pack_row<false, false>)
                                      : (to.per_feature ? pack_row<true, true> : pack_row<true, false>);
    bool clean = true;
    for (int64_t i = 0; i < rows; ++i) {
        const float *x = in.x + (row + i) * in.stride;
        if (to.bits == 1)
            clean &= one_row(x, in.k, to.offset, words + i * row_words, sums + i);
        else
            clean &= pack_planes(x, in.k, to, words + i * row_words, sums + i);
    }
    return clean;
}

static void embedding(const uint8_t *packed_row, int64_t plane, int64_t bits, int64_t dim, float scale, float *out) {
    const Floats factor = Floats::all(scale);
    for (int64_t at = 0; at < dim; at += LANES, packed_row += 2) {
        const int64_t left = dim - at;
        Floats level = Floats::all(0);
        for (int64_t bit = 0; bit < bits; ++bit) {
            const uint8_t *bytes = packed_row + bit * plane;
            const Mask high = left > 8 ? static_cast<Mask>(bytes[1]) << 8 : 0;
            const float power = static_cast<float>(1 << bit);
            level = level + select(bytes[0] | high, Floats::all(power), Floats::all(-power));
        }
        if (left >= LANES)
            (level * factor).store(out + at);
        else
            (level * factor).store(out + at, left);
    }
}

// The product of bit rows with a weight in lanes. Included once per instruction set, after pack.inl.

struct Xor {
    static Lanes of(Lanes a, Lanes b) { return a ^ b; }
};
struct And {
    static Lanes of(Lanes a, Lanes b) { return a & b; }
};

// Bit rows, one after the other.
struct BitRows {
    const uint32_t *a;
    int64_t words;
    uint32_t word(int64_t row, int64_t w) const { return a[row * words + w]; }
    BitRows from(int64_t row) const { return {a + row * words, words}; }
};

// Bit rows side by side, as in one group of lanes.
struct BitColumns {
    const uint32_t *a;
    uint32_t word(int64_t row, int64_t w) const { return a[w * LANES + row]; }
    BitColumns from(int64_t row) const { return {a + row}; }
};

// Set bits of Op(a, b) for R rows of `words` words and G neighbouring groups: consume(row, group, Lanes).
template <class Op, int R, int G, class A, class Consume>
static inline void count_block(A a, const uint32_t *b, int64_t words, const Consume &consume) {
    const auto add = [&](int64_t from, int64_t to, Ones(&ones)[R][G]) {
        for (int64_t w = from; w < to; ++w) {
            Lanes column[G];
            for (int j = 0; j < G; ++j) column[j] = Lanes::load(b + (j * words + w) * LANES);
            for (int i = 0; i < R; ++i) {
                const Lanes row = Lanes::all(static_cast<int32_t>(a.word(i, w)));
                for (int j = 0; j < G; ++j) ones[i][j].add(Op::of(row, column[j]));
            }
        }
    };
    Lanes total[R][G];
    Ones ones[R][G];
    const int64_t first = words < Ones::CAPACITY ? words : Ones::CAPACITY;
    add(0, first, ones);
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < G; ++j) total[i][j] = ones[i][j].total();
    if constexpr (Ones::CAPACITY < INT32_MAX) {
        for (int64_t from = first; from < words; from += Ones::CAPACITY) {
            Ones more[R][G];
            add(from, words - from > Ones::CAPACITY ? from + Ones::CAPACITY : words, more);
            for (int i = 0; i < R; ++i)
                for (int j = 0; j < G; ++j) total[i][j] = total[i][j] + more[i][j].total();
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < G; ++j) consume(i, j, total[i][j]);
}

template <class Op, int G, class A, class Consume>
static inline void count_columns(A a, int64_t rows, const uint32_t *b, int64_t words, int64_t group,
                                 const Consume &consume) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS)
        count_block<Op, ROWS, G>(a.from(row), b, words, [&](int i, int j, Lanes c) { consume(row + i, group + j, c); });
    for (; row < rows; ++row)
        count_block<Op, 1, G>(a.from(row), b, words, [&](int, int j, Lanes c) { consume(row, group + j, c); });
}

// Set bits of Op(a, b) for all of `rows` x `groups`: consume(row, group, Lanes), for one row or group in rising order of
// the other, and all rows before a group GROUPS further. b stays in the first cache while a passes.
template <class Op, class A, class Consume>
static inline void count(A a, int64_t rows, const uint32_t *b, int64_t groups, int64_t words,
                         const Consume &consume) {
    int64_t group = 0;
    for (; group + GROUPS <= groups; group += GROUPS)
        count_columns<Op, GROUPS>(a, rows, b + group * words * LANES, words, group, consume);
    for (; group + 2 <= groups; group += 2)
        count_columns<Op, 2>(a, rows, b + group * words * LANES, words, group, consume);
    for (; group < groups; ++group)
        count_columns<Op, 1>(a, rows, b + group * words * LANES, words, group, consume);
}

// Up to 16 floats of a vector that may be one value for all.
static inline Floats column_values(const float *p, bool per_row, int64_t at, int64_t n) {
    if (!per_row) return Floats::all(*p);
    return n == LANES ? Floats::load(p + at) : Floats::load(p + at, n);
}

static bool linear(const Linear &call, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch) {
    const int64_t words = ceil_div(call.input.k, WORD_BITS);
    const int planes = call.input.to.bits;
    const bool is_signed = call.input.to.is_signed;
    const int64_t block = BLOCK_ROWS / planes;
    uint32_t *const bits = scratch;
    int32_t *const sums = reinterpret_cast<int32_t *>(scratch + BLOCK_ROWS * words);
    const uint32_t *const lanes = call.lanes + group * words * LANES;
    bool clean = true;
    for (int64_t at = row; at < row + rows; at += block) {
        const int64_t here = row + rows - at < block ? row + rows - at : block;
        clean &= pack(call.input, at, here, bits, sums);
        const auto finish = [&](int64_t i, int64_t g, Lanes acc) {
            const int64_t n = (group + g) * LANES, left = call.n - n < LANES ? call.n - n : LANES;
            Floats y = Floats::of(acc) * column_values(call.scale, call.per_row_scale, n, left);
            if (call.bias) y = y + column_values(call.bias, true, n, left);
            float *const out = call.out + (at + i) * call.n + n;
            if (left == LANES)
                y.store(out);
            else
                y.store(out, left);
        };
        const BitRows a{bits, words};
        if (planes > 1) {  // sum over planes of their weight * (2 popc(a & w) - popc(a))
            Lanes sum[GROUPS];
            count<And>(a, here * planes, lanes, groups, words, [&](int64_t i, int64_t g, Lanes c) {
                const int plane = static_cast<int>(i) & (planes - 1);
                Lanes &s = sum[g % GROUPS];
                s = add_plane(s, c, plane, is_signed);
                if (plane == planes - 1) finish(i / planes, g, s + s - Lanes::all(sums[i / planes]));
            });
        } else if (is_signed) {
            const Lanes k = Lanes::all(static_cast<int32_t>(call.input.k));
            count<Xor>(a, here, lanes, groups, words, [&](int64_t i, int64_t g, Lanes c) { finish(i, g, k - (c + c)); });
        } else {
            count<And>(a, here, lanes, groups, words,
                       [&](int64_t i, int64_t g, Lanes c) { finish(i, g, c + c - Lanes::all(sums[i])); });
        }
    }
    return clean;
}

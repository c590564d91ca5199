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

// Set bits of Op(a, b) for R rows of `words` words and G neighbouring groups, `pitch` words apart: consume(row, group,
// Lanes). All of it is inlined with constant indices, so that the counts stay in registers until they are consumed.
template <class Op, int R, int G, class A, class Consume>
static BQ_INLINE void count_block(A a, const uint32_t *b, int64_t words, int64_t pitch, const Consume &consume) {
    Ones ones[R][G];
    const auto add = [&](int64_t from, int64_t to) BQ_INLINE_LAMBDA {
        for (int64_t w = from; w < to; ++w) {
            Lanes column[G];
            BQ_UNROLL for (int j = 0; j < G; ++j) column[j] = Lanes::load(b + (j * pitch + w) * LANES);
            BQ_UNROLL for (int i = 0; i < R; ++i) {
                const Lanes row = Lanes::all(static_cast<int32_t>(a.word(i, w)));
                BQ_UNROLL for (int j = 0; j < G; ++j) ones[i][j].add(Op::of(row, column[j]));
            }
        }
    };
    if constexpr (Ones::CAPACITY == INT32_MAX) {
        add(0, words);
        BQ_UNROLL for (int i = 0; i < R; ++i) BQ_UNROLL for (int j = 0; j < G; ++j) consume(i, j, ones[i][j].total());
    } else {
        const int64_t first = words < Ones::CAPACITY ? words : Ones::CAPACITY;
        add(0, first);
        Lanes total[R][G];
        BQ_UNROLL for (int i = 0; i < R; ++i) BQ_UNROLL for (int j = 0; j < G; ++j) total[i][j] = ones[i][j].total();
        for (int64_t from = first; from < words; from += Ones::CAPACITY) {
            BQ_UNROLL for (int i = 0; i < R; ++i) BQ_UNROLL for (int j = 0; j < G; ++j) ones[i][j] = Ones();
            add(from, words - from > Ones::CAPACITY ? from + Ones::CAPACITY : words);
            BQ_UNROLL for (int i = 0; i < R; ++i)
                BQ_UNROLL for (int j = 0; j < G; ++j) total[i][j] = total[i][j] + ones[i][j].total();
        }
        BQ_UNROLL for (int i = 0; i < R; ++i) BQ_UNROLL for (int j = 0; j < G; ++j) consume(i, j, total[i][j]);
    }
}

template <class Op, int G, class A, class Consume>
static BQ_INLINE void count_columns(A a, int64_t rows, const uint32_t *b, int64_t words, int64_t pitch,
                                    const Consume &consume) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS)
        count_block<Op, ROWS, G>(a.from(row), b, words, pitch,
                                 [&](int i, int j, Lanes c) BQ_INLINE_LAMBDA { consume(row + i, j, c); });
    for (; row < rows; ++row)
        count_block<Op, 1, G>(a.from(row), b, words, pitch, [&](int, int j, Lanes c) BQ_INLINE_LAMBDA { consume(row, j, c); });
}

// work(width, group): all groups in panels of GROUPS, then of 2 and 1 of them; `width` is an integral constant.
template <class Work>
static BQ_INLINE void over_panels(int64_t groups, const Work &work) {
    int64_t group = 0;
    for (; group + GROUPS <= groups; group += GROUPS) work(std::integral_constant<int, GROUPS>{}, group);
    if constexpr (GROUPS > 2)
        for (; group + 2 <= groups; group += 2) work(std::integral_constant<int, 2>{}, group);
    for (; group < groups; ++group) work(std::integral_constant<int, 1>{}, group);
}

// Set bits of Op(a, b) for all of `rows` x `groups`: consume(row, group, Lanes), for one row or group in rising order of
// the other, and all rows before a group GROUPS further. b stays in the first cache while a passes.
template <class Op, class A, class Consume>
static BQ_INLINE void count(A a, int64_t rows, const uint32_t *b, int64_t groups, int64_t words, int64_t pitch,
                            const Consume &consume) {
    over_panels(groups, [&](auto width, int64_t group) BQ_INLINE_LAMBDA {
        count_columns<Op, width>(a, rows, b + group * pitch * LANES, words, pitch,
                                 [&](int64_t i, int j, Lanes c) BQ_INLINE_LAMBDA { consume(i, group + j, c); });
    });
}

// Scales and biases of a panel of columns, and where it goes: y = fl(fl(acc * scale) + bias).
template <int G>
struct Affine {
    Affine(const Linear &call, int64_t group) : n(call.n), left(call.n - group * LANES) {
        for (int64_t i = 0; i < G * LANES; ++i) {
            const int64_t at = group * LANES + (i < left ? i : 0);
            scale[i] = call.scale[call.per_row_scale ? at : 0];
            bias[i] = call.bias ? call.bias[at] : -0.0f;  // adding -0 changes nothing, not even -0
        }
    }
    BQ_INLINE Floats of(int group, Lanes acc) const {
        return Floats::of(acc) * Floats::load(scale + group * LANES) + Floats::load(bias + group * LANES);
    }
    const int64_t n, left;

  private:
    alignas(64) float scale[G * LANES], bias[G * LANES];
};

// As floats.
template <int G>
struct FloatPanel {
    FloatPanel(const Linear &call, int64_t group) : affine(call, group), out(call.out + group * LANES) {}
    BQ_INLINE void write(int64_t row, int group, Lanes acc) const {
        const int at = group * LANES;
        const Floats y = affine.of(group, acc);
        if (affine.left >= at + LANES)
            y.store(out + row * affine.n + at);
        else
            y.store(out + row * affine.n + at, affine.left - at);
    }
    bool clean() const { return true; }

  private:
    const Affine<G> affine;
    float *const out;
};

// As bits, which two groups share a word of.
template <int G>
struct BitPanel {
    BitPanel(const Linear &call, int64_t group)
        : affine(call, group), next(call.next), words(ceil_div(call.n, WORD_BITS)), first(group) {
        for (int64_t i = 0; i < G * LANES; ++i)
            limit[i] = next.offset[next.per_feature ? group * LANES + (i < affine.left ? i : 0) : 0];
    }
    BQ_INLINE void write(int64_t row, int group, Lanes acc) {
        Floats y = affine.of(group, acc);
        const Floats from = Floats::load(limit + group * LANES);
        const int64_t left = affine.left - group * LANES;
        const Mask inside = left < LANES ? (1u << left) - 1 : 0xffffu;
        nan |= unordered(y, from) & inside;
        if (next.relu) y = upper(y, Floats::all(0));
        const Mask bits = (next.is_signed ? at_least(y, from) : above(y, from)) & inside;
        auto *const to = reinterpret_cast<unsigned char *>(next.words + row * words) + (first + group) * 2;
        const uint16_t half = static_cast<uint16_t>(bits), none = 0;
        std::memcpy(to, &half, 2);
        if (left <= LANES && (first + group) % 2 == 0) std::memcpy(to + 2, &none, 2);
    }
    bool clean() const { return nan == 0; }

  private:
    const Affine<G> affine;
    const Next next;
    const int64_t words, first;
    Mask nan = 0;
    alignas(64) float limit[G * LANES];
};

template <template <int> class Panel>
static bool linear_to(const Linear &call, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch) {
    const int64_t words = ceil_div(call.input.k, WORD_BITS);
    const int planes = call.input.to.bits;
    const bool is_signed = call.input.to.is_signed;
    const int64_t block = BLOCK_ROWS / planes;
    uint32_t *const bits = scratch;
    int32_t *const sums = reinterpret_cast<int32_t *>(scratch + BLOCK_ROWS * words);
    const BitRows a{bits, words};
    bool clean = true;
    for (int64_t at = row; at < row + rows; at += block) {
        const int64_t here = row + rows - at < block ? row + rows - at : block;
        clean &= pack(call.input, at, here, bits, sums);
        over_panels(groups, [&](auto width, int64_t first) BQ_INLINE_LAMBDA {
            Panel<width> panel(call, group + first);
            const uint32_t *const b = call.lanes + (group + first) * words * LANES;
            if (planes > 1) {  // sum over planes of their weight * (2 popc(a & w) - popc(a))
                Lanes sum[width] = {};
                count_columns<And, width>(a, here * planes, b, words, words, [&](int64_t i, int g, Lanes c) BQ_INLINE_LAMBDA {
                    const int plane = static_cast<int>(i) & (planes - 1);
                    sum[g] = add_plane(sum[g], c, plane, is_signed);
                    if (plane == planes - 1) panel.write(at + i / planes, g, sum[g] + sum[g] - Lanes::all(sums[i / planes]));
                });
            } else if (is_signed) {
                const Lanes k = Lanes::all(static_cast<int32_t>(call.input.k));
                count_columns<Xor, width>(a, here, b, words, words, [&](int64_t i, int g, Lanes c) BQ_INLINE_LAMBDA {
                    panel.write(at + i, g, k - (c + c));
                });
            } else {
                count_columns<And, width>(a, here, b, words, words, [&](int64_t i, int g, Lanes c) BQ_INLINE_LAMBDA {
                    panel.write(at + i, g, c + c - Lanes::all(sums[i]));
                });
            }
            clean &= panel.clean();
        });
    }
    return clean;
}

static bool linear(const Linear &call, int64_t row, int64_t rows, int64_t group, int64_t groups, uint32_t *scratch) {
    return (call.next.words ? linear_to<BitPanel> : linear_to<FloatPanel>)(call, row, rows, group, groups, scratch);
}

// The instructions of count_block on registers, with rows that no compiler foresees. Returns the products done.
static int64_t limit(int64_t rounds) {
    volatile uint32_t source[ROWS] = {};
    for (int i = 0; i < ROWS; ++i) source[i] = 0x9e3779b9u * static_cast<uint32_t>(i + 1);
    Lanes column[GROUPS];
    for (int j = 0; j < GROUPS; ++j) column[j] = Lanes::all(static_cast<int32_t>(source[0] >> j));
    Ones ones[ROWS][GROUPS];
    for (int64_t r = 0; r < rounds; ++r) {
        BQ_UNROLL for (int i = 0; i < ROWS; ++i) {
            const Lanes row = Lanes::all(static_cast<int32_t>(source[i]));
            BQ_UNROLL for (int j = 0; j < GROUPS; ++j) ones[i][j].add(Xor::of(row, column[j]));
        }
    }
    Lanes all = Lanes::all(0);
    BQ_UNROLL for (int i = 0; i < ROWS; ++i) BQ_UNROLL for (int j = 0; j < GROUPS; ++j) all = all + ones[i][j].total();
    source[0] = static_cast<uint32_t>(lowest(all));
    return rounds * ROWS * GROUPS * LANES * WORD_BITS;
}

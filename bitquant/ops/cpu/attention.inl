// Binary attention of one head over a range of queries. Included once per instruction set, after product.inl.

constexpr int64_t QUERY_BLOCK = ROWS;
constexpr int32_t NEVER = INT32_MAX / 2;  // distance of a key that is left out

// Keys as lanes: 16 neighbouring keys side by side, packed over d.
static bool pack_keys(const float *k, int64_t stride, int64_t keys, int64_t d, uint32_t *row_words, uint32_t *lanes) {
    const int64_t words = ceil_div(d, WORD_BITS);
    const float zero = 0;
    int32_t ones;
    bool clean = true;
    for (int64_t j = 0; j < ceil_div(keys, LANES) * LANES; ++j) {
        if (j < keys) clean &= pack_row<false, false>(k + j * stride, d, &zero, row_words, &ones);
        uint32_t *const to = lanes + j / LANES * words * LANES + j % LANES;
        for (int64_t w = 0; w < words; ++w) to[w * LANES] = j < keys ? row_words[w] : 0;
    }
    return clean;
}

// Values as lanes: 16 neighbouring channels side by side, packed over the keys, so that a set of keys is a bit row.
static bool pack_values(const float *v, int64_t stride, int64_t keys, int64_t dv, uint32_t *lanes) {
    const int64_t words = ceil_div(keys, WORD_BITS);
    const Floats zero = Floats::all(0);
    Mask nan = 0;
    for (int64_t c = 0; c < dv; c += LANES) {
        const int64_t n = dv - c < LANES ? dv - c : LANES;
        for (int64_t w = 0; w < words; ++w) {
            const int64_t from = w * WORD_BITS, left = keys - from < WORD_BITS ? keys - from : WORD_BITS;
            Lanes word = Lanes::all(0);
            for (int64_t b = 0; b < left; ++b) {
                const float *const at = v + (from + b) * stride + c;
                const Floats value = n == LANES ? Floats::load(at) : Floats::load(at, n);
                nan |= is_nan(value);
                word = word | select(at_least(value, zero), Lanes::all(static_cast<int32_t>(1u << b)), Lanes::all(0));
            }
            word.store(lanes + (c / LANES * words + w) * LANES);
        }
    }
    return nan == 0;
}

// One mask of 16 keys per group, zero beyond the last key.
static void pack_keep(const uint8_t *keep, int64_t stride, int64_t keys, uint16_t *masks) {
    for (int64_t j = 0; j < keys; j += LANES) {
        const int64_t n = keys - j < LANES ? keys - j : LANES;
        Mask m = (1u << n) - 1;
        if (keep && stride == 1 && n == LANES) {
            m = nonzero(keep + j);
        } else if (keep) {
            m = 0;
            for (int64_t i = 0; i < n; ++i) m |= static_cast<Mask>(keep[(j + i) * stride] != 0) << i;
        }
        masks[j / LANES] = static_cast<uint16_t>(m);
    }
}

// Neighbouring groups of keys that some query of a block may take.
struct Span {
    int64_t from, to;
};
constexpr int64_t SPAN = 4;  // groups that are skipped together

// Spans of the groups where one of `masks` rows of keep has a key; at least one, to write the result of none.
static int64_t find_spans(const uint16_t *keep, int64_t masks, int64_t pitch, int64_t groups, Span *spans) {
    int64_t count = 0;
    for (int64_t g = 0; g < groups; g += SPAN) {
        const int64_t end = g + SPAN < groups ? g + SPAN : groups;
        uint16_t any = 0;
        for (int64_t i = 0; i < masks; ++i)
            for (int64_t j = g; j < end; ++j) any |= keep[i * pitch + j];
        if (!any) continue;
        if (count && spans[count - 1].to == g)
            spans[count - 1].to = end;
        else
            spans[count++] = {g, end};
    }
    if (!count) spans[count++] = {0, SPAN < groups ? SPAN : groups};
    return count;
}

// Taken keys of one query as bits; returns their number. distance[j] = popc(q ^ k_j), so s = d - 2 distance.
static int32_t take(const Selection &by, const Table &table, int64_t d, int32_t *distance, const uint16_t *keep,
                    const Span *spans, int64_t number, uint16_t *taken) {
    const auto over_groups = [&](const auto &work) BQ_INLINE_LAMBDA {
        for (int64_t s = 0; s < number; ++s)
            for (int64_t g = spans[s].from; g < spans[s].to; ++g) work(g);
    };
    Lanes nearest = Lanes::all(NEVER);
    over_groups([&](int64_t g) BQ_INLINE_LAMBDA {
        nearest = lower(nearest, select(keep[g], Lanes::load(distance + g * LANES), Lanes::all(NEVER)));
    });
    const int32_t first = lowest(nearest);
    int32_t count = 0;
    if (first == NEVER) {
        over_groups([&](int64_t g) BQ_INLINE_LAMBDA { taken[g] = 0; });
    } else if (!by.table) {
        // A distance is half the difference of two scores, and none exceeds d.
        const int64_t margin = by.margin < -1 ? -1 : (by.margin > 2 * d ? 2 * d : by.margin);
        const Lanes limit = Lanes::all(first + static_cast<int32_t>((margin + 2) / 2));
        over_groups([&](int64_t g) BQ_INLINE_LAMBDA {
            taken[g] = static_cast<uint16_t>(greater(limit, Lanes::load(distance + g * LANES)) & keep[g]);
            count += __builtin_popcount(taken[g]);
        });
    } else {
        // Entries are at most 2^12 and there are fewer than 2^20 groups per lane sum of 2^31 - 1, so lanes cannot overflow.
        Lanes sum = Lanes::all(0);
        over_groups([&](int64_t g) BQ_INLINE_LAMBDA {
            const Lanes delta = select(keep[g], Lanes::load(distance + g * LANES) - Lanes::all(first), Lanes::all(0));
            const Lanes weight = select(keep[g], table.at(delta), Lanes::all(0));
            weight.store(distance + g * LANES);
            sum = sum + weight;
        });
        int32_t parts[LANES];
        sum.store(parts);
        int64_t z = 0;
        for (int32_t part : parts) z += part;
        // E 2^24 > r z in integers is E > floor(r z / 2^24); from r = 2^24 on nothing is taken.
        const int64_t limit = (by.ratio < (1 << 24) ? by.ratio : (1 << 24)) * z >> 24;
        const Lanes least = Lanes::all(static_cast<int32_t>(limit < NEVER ? limit : NEVER));
        over_groups([&](int64_t g) BQ_INLINE_LAMBDA {
            taken[g] = static_cast<uint16_t>(greater(Lanes::load(distance + g * LANES), least));
            count += __builtin_popcount(taken[g]);
        });
    }
    return count;
}

static bool attention(const bq_attention &call, const Selection &by, int64_t batch, int64_t head, int64_t row, int64_t rows,
                      uint32_t *scratch) {
    const int64_t keys = call.keys, d = call.d, dv = call.dv;
    const int64_t words = ceil_div(d, WORD_BITS), groups = ceil_div(keys, LANES);
    const int64_t key_words = ceil_div(keys, WORD_BITS), value_groups = ceil_div(dv, LANES);
    // The order of attention_scratch in api.cpp.
    const auto carve = [&](int64_t n) { return (scratch += n) - n; };
    uint32_t *const key_lanes = carve(groups * words * LANES);
    uint32_t *const value_lanes = carve(value_groups * key_words * LANES);
    int32_t *const distance = reinterpret_cast<int32_t *>(carve(QUERY_BLOCK * groups * LANES));
    uint32_t *const taken = carve(QUERY_BLOCK * key_words);
    uint32_t *const queries = carve(QUERY_BLOCK * words);
    int32_t *const table = reinterpret_cast<int32_t *>(carve(d + 1));
    uint16_t *const keep = reinterpret_cast<uint16_t *>(carve(QUERY_BLOCK * key_words));
    int32_t *const sums = reinterpret_cast<int32_t *>(carve(QUERY_BLOCK * value_groups * LANES));
    scratch += reinterpret_cast<uintptr_t>(scratch) / sizeof *scratch % 2;
    Span *const spans = reinterpret_cast<Span *>(carve(4 * ceil_div(groups, SPAN)));
    for (int64_t i = 0; i <= d; ++i) table[i] = by.table ? static_cast<int32_t>(by.table[i]) : 0;
    const Table weights(table, d + 1);
    for (int64_t i = 0; i < QUERY_BLOCK; ++i) taken[(i + 1) * key_words - 1] = 0;  // an odd last group leaves half a word

    bool clean = pack_keys(call.k + batch * call.k_batch + head * call.k_head, call.k_row, keys, d, queries, key_lanes);
    clean &= pack_values(call.v + batch * call.v_batch + head * call.v_head, call.v_row, keys, dv, value_lanes);
    const uint8_t *const mask = call.keep ? call.keep + batch * call.keep_batch + head * call.keep_head : nullptr;
    const bool one_mask = !mask || call.keep_row == 0;
    int64_t live = 0;
    if (one_mask) {
        pack_keep(mask, call.keep_key, keys, keep);
        live = find_spans(keep, 1, 0, groups, spans);
    }

    const float zero = 0;
    const Floats scale = Floats::all(*call.scale);
    const float *const q = call.q + batch * call.q_batch + head * call.q_head;
    for (int64_t at = row; at < row + rows; at += QUERY_BLOCK) {
        const int64_t here = row + rows - at < QUERY_BLOCK ? row + rows - at : QUERY_BLOCK;
        const Rows sign{q, d, call.q_row, {&zero, false, true, 1, 1}};
        int32_t number[QUERY_BLOCK];
        clean &= pack(sign, at, here, queries, number);
        if (!one_mask) {
            for (int64_t i = 0; i < here; ++i)
                pack_keep(mask + (at + i) * call.keep_row, call.keep_key, keys, keep + i * 2 * key_words);
            live = find_spans(keep, here, 2 * key_words, groups, spans);
        }
        for (int64_t s = 0; s < live; ++s) {
            const int64_t from = spans[s].from;
            count<Xor>(BitRows{queries, words}, here, key_lanes + from * words * LANES, spans[s].to - from, words, words,
                       [&](int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA {
                           c.store(distance + (i * groups + from + g) * LANES);
                       });
        }
        for (int64_t i = 0; i < here; ++i)
            number[i] = take(by, weights, d, distance + i * groups * LANES, keep + (one_mask ? 0 : i * 2 * key_words),
                             spans, live, reinterpret_cast<uint16_t *>(taken + i * key_words));
        float *const out = call.out + ((batch * call.heads + head) * call.queries + at) * dv;
        const auto write = [&](int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA {
            const int64_t left = dv - g * LANES < LANES ? dv - g * LANES : LANES;
            Floats y = Floats::of(c + c - Lanes::all(number[i]));
            if (!by.table) y = y / Floats::all(static_cast<float>(number[i] ? number[i] : 1));
            y = y * scale;
            if (left == LANES)
                y.store(out + i * dv + g * LANES);
            else
                y.store(out + i * dv + g * LANES, left);
        };
        for (int64_t s = 0; s < live; ++s) {
            const int64_t from = spans[s].from / 2, until = ceil_div(spans[s].to, 2);
            count<And>(BitRows{taken + from, key_words}, here, value_lanes + from * LANES, value_groups, until - from,
                       key_words, [&](int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA {
                           int32_t *const sum = sums + (i * value_groups + g) * LANES;
                           if (s) c = c + Lanes::load(sum);
                           if (s + 1 == live)
                               write(i, g, c);
                           else
                               c.store(sum);
                       });
        }
    }
    return clean;
}

// Convolution of one block of output tiles. Included once per instruction set, after grid.inl.
//
// 16 neighbouring output columns share a register: their patches are gathered from the grid tap by tap into the lanes
// layout, in the bit order of the weight, and then every output channel is a row of bits that meets them.

// Every weight bit set: counts the bits of the patches themselves.
struct AllOnes {
    uint32_t word(int64_t, int64_t) const { return ~0u; }
    AllOnes from(int64_t) const { return {}; }
};

// Appends bits to 16 rows at once.
struct Appender {
    uint32_t *to;
    Lanes open = Lanes::all(0);
    int filled = 0;
    void put(Lanes bits, int n) {
        open = open | bits << filled;
        if (filled + n < WORD_BITS) {
            filled += n;
            return;
        }
        flush();
        if (filled) open = bits >> (WORD_BITS - filled);
        filled += n - WORD_BITS;
    }
    void flush() {
        open.store(to);
        to += LANES;
        open = Lanes::all(0);
    }
};

// Values `step` apart.
static inline Lanes strided(const uint32_t *p, int64_t step, Lanes index) {
    return step == 1 ? Lanes::load(p) : gather(reinterpret_cast<const int32_t *>(p), index);
}

class Convolution {
  public:
    Convolution(const bq_convolution &c, const Tiles &part, uint32_t *scratch)
        : call(c),
          input(c, part, scratch),
          taps(c.kernel[0] * c.kernel[1]),
          words(ceil_div(taps * input.channels, WORD_BITS)) {
        const auto carve = [&](int64_t n) { return reinterpret_cast<int32_t *>((scratch += n) - n); };
        offsets = carve(taps);
        sorted = carve(taps);
        sums = carve(input.grid.reach + 2 * LANES);
        patches = scratch;
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t row = t / c.kernel[1] * c.dilation[0], column = t % c.kernel[1] * c.dilation[1];
            offsets[t] = static_cast<int32_t>(row * input.grid.width + column);
        }
        int32_t columns[LANES];
        const int64_t last = input.grid.reach - 1;  // lanes beyond it repeat it: an output of few columns may step far
        for (int64_t i = 0; i < LANES; ++i)
            columns[i] = static_cast<int32_t>(i * input.grid.column_step < last ? i * input.grid.column_step : last);
        index = Lanes::load(columns);
    }

    bool run() {
        const int64_t outputs = call.out_channels / call.groups;
        bool clean = true;
        input.find_valid();
        if (is_depthwise(call)) {
            for (int64_t g = 0; g < call.groups; g += LANES) {
                const int64_t here = call.groups - g < LANES ? call.groups - g : LANES;
                clean &= input.quantize(g, here);
                for (int64_t n = 0; n < here * outputs; ++n) add_taps(input.shorts(n / outputs), g * outputs + n);
            }
            return clean;
        }
        for (int64_t g = 0; g < call.groups; ++g) {
            clean &= input.pack_group(g);
            for (int64_t t = input.tiles.from; t < input.tiles.to; t += PASS_TILES)
                multiply(g * outputs, outputs, t, input.tiles.to - t < PASS_TILES ? input.tiles.to - t : PASS_TILES);
        }
        return clean;
    }

  private:
    const bq_convolution &call;
    PaddedInput input;
    const int64_t taps, words;  // words of a patch
    int32_t *offsets, *sorted;  // of the taps from the first; those of weight +1, then those of weight -1
    int32_t *sums;
    uint32_t *patches;
    Lanes index;

    Lanes at(const uint32_t *values, int64_t position) const {
        return strided(values + position, input.grid.column_step, index);
    }

    // Where a tile of output channel 0 goes, and how many columns it has.
    struct Place {
        float *out;
        int64_t columns;
    };
    Place place(int64_t row, int64_t column) const {
        const int64_t above = input.tiles.batch * call.out_channels * input.grid.out_height + row;
        return {call.out + above * input.grid.out_width + column, input.grid.out_width - column};
    }
    void write(const Place &to, int64_t n, Lanes acc) const {
        Floats y = Floats::of(acc) * Floats::all(call.scale[call.scale_size == 1 ? 0 : n]);
        if (call.bias) y = y + Floats::all(call.bias[n]);
        float *const out = to.out + n * input.grid.out_height * input.grid.out_width;
        if (to.columns >= LANES)
            y.store(out);
        else
            y.store(out, to.columns);
    }

    // One channel: levels are added or subtracted tap by tap, 32 columns at once.
    void add_taps(const int16_t *levels, int64_t n) {
        int32_t *plus = sorted, *minus = sorted + taps;  // they grow towards each other
        for (int64_t t = 0; t < taps; ++t) {
            const uint32_t word = call.lanes[(n / LANES * words + t / WORD_BITS) * LANES + n % LANES];
            (word >> t % WORD_BITS & 1 ? *plus++ : *--minus) = offsets[t];
        }
        const int64_t positive = plus - sorted, row_tiles = input.grid.row_tiles, step = input.grid.column_step;
        for (int64_t t = input.tiles.from; t < input.tiles.to;) {
            const int64_t row = t / row_tiles, next = (row + 1) * row_tiles;
            const int64_t stop = next < input.tiles.to ? next : input.tiles.to;
            const int16_t *start = levels + start_of(input.grid, t) - input.first;
            for (int64_t column = t % row_tiles * LANES; t < stop; ++t, column += LANES, start += LANES * step) {
                Lanes low, high;
                if (step == 1) {
                    sum_taps(start, positive, low, high);
                    write(place(row, column), n, low);
                    if (t + 1 == stop) continue;
                    ++t, column += LANES, start += LANES;
                    write(place(row, column), n, high);
                } else {
                    for (int64_t i = 0; i < input.grid.reach; i += 2 * LANES) {
                        sum_taps(start + i, positive, low, high);
                        low.store(sums + i);
                        high.store(sums + i + LANES);
                    }
                    write(place(row, column), n, gather(sums, index));
                }
            }
        }
    }
    void sum_taps(const int16_t *start, int64_t positive, Lanes &low, Lanes &high) const {
        constexpr int64_t most = 128;  // of 255, the largest level, fit a short
        low = high = Lanes::all(0);
        for (int64_t from = 0; from < taps; from += most) {
            const int64_t to = taps - from < most ? taps : from + most;
            Shorts acc = Shorts::zero();
            int64_t i = from;
            for (; i < to && i < positive; ++i) acc = acc + Shorts::load(start + sorted[i]);
            for (; i < to; ++i) acc = acc - Shorts::load(start + sorted[i]);
            low = low + acc.low();
            high = high + acc.high();
        }
    }

    // Bits of one plane under every tap of a tile.
    void gather_plane(int64_t tile, int plane, uint32_t *to) const {
        const uint32_t *const levels = input.levels + plane * input.words * input.pitch;
        const uint32_t *const start = levels + start_of(input.grid, tile) - input.first;
        Appender row{to};
        for (int64_t t = 0; t < taps; ++t) {
            for (int64_t w = 0; w < input.words; ++w) row.put(at(start + w * input.pitch, offsets[t]), bits_in(w));
        }
        if (row.filled) row.flush();
    }
    void gather_valid(int64_t tile, uint32_t *to) const {
        const uint32_t *const start = input.valid + start_of(input.grid, tile) - input.first;
        Appender row{to};
        for (int64_t t = 0; t < taps; ++t) {
            const Lanes here = at(start, offsets[t]);
            for (int64_t w = 0; w < input.words; ++w) {
                const int bits = bits_in(w);
                row.put(here & Lanes::all(static_cast<int32_t>(~0u >> (WORD_BITS - bits))), bits);
            }
        }
        if (row.filled) row.flush();
    }
    int bits_in(int64_t word) const {
        const int64_t left = input.channels - word * WORD_BITS;
        return static_cast<int>(left < WORD_BITS ? left : WORD_BITS);
    }
    bool all_valid(int64_t from, int64_t count) const {
        Lanes all = Lanes::all(-1);
        for (int64_t tile = from; tile < from + count; ++tile) {
            const uint32_t *const start = input.valid + start_of(input.grid, tile) - input.first;
            for (int64_t t = 0; t < taps; ++t) all = all & at(start, offsets[t]);
        }
        return greater(Lanes::all(0), all) == 0xffffu;
    }

    // `outputs` output channels from `first` on, for up to PASS_TILES tiles.
    void multiply(int64_t first, int64_t outputs, int64_t tile, int64_t tiles) {
        const bool is_signed = input.to.is_signed;
        // {-1,0,+1} is a number of two bits: top plane where -1, lower plane where not 0.
        const bool ternary = input.to.bits == 1 && is_signed && !all_valid(tile, tiles);
        const int planes = ternary ? 2 : input.to.bits;
        const int64_t plane_words = words * LANES;
        Place places[PASS_TILES];
        for (int64_t j = 0; j < tiles; ++j) {
            places[j] = place((tile + j) / input.grid.row_tiles, (tile + j) % input.grid.row_tiles * LANES);
            uint32_t *const patch = patches + j * planes * plane_words;
            for (int p = 0; p < input.to.bits; ++p) gather_plane(tile + j, p, patch + p * plane_words);
            if (ternary) {
                gather_valid(tile + j, patch + plane_words);
                for (int64_t w = 0; w < plane_words; ++w) patch[w] = patch[plane_words + w] & ~patch[w];
            }
        }
        const auto over_outputs = [&](auto op, const auto &consume) BQ_INLINE_LAMBDA {
            for (int64_t n = first; n < first + outputs;) {
                const int64_t next = (n / LANES + 1) * LANES, end = next < first + outputs ? next : first + outputs;
                const BitColumns weight{call.lanes + n / LANES * plane_words + n % LANES};
                count<decltype(op)>(weight, end - n, patches, tiles * planes, words, words,
                                    [&](int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA { consume(n, i, g, c); });
                n = end;
            }
        };
        if (input.to.bits == 1 && is_signed && !ternary) {
            const Lanes k = Lanes::all(static_cast<int32_t>(taps * input.channels));
            over_outputs(Xor{}, [&](int64_t n, int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA { write(places[g], n + i, k - (c + c)); });
            return;
        }
        Lanes total[PASS_TILES], sum[LANES];  // of the levels of a patch; of the weighted planes
        count<And>(AllOnes{}, 1, patches, tiles * planes, words, words, [&](int64_t, int64_t g, Lanes c) BQ_INLINE_LAMBDA {
            total[g / planes] = add_plane(total[g / planes], c, static_cast<int>(g % planes), is_signed);
        });
        over_outputs(And{}, [&](int64_t n, int64_t i, int64_t g, Lanes c) BQ_INLINE_LAMBDA {
            const int64_t j = g / planes, plane = g & (planes - 1);
            sum[i] = add_plane(sum[i], c, static_cast<int>(plane), is_signed);
            if (plane == planes - 1) write(places[j], n + i, sum[i] + sum[i] - total[j]);
        });
    }
};

static bool convolution(const bq_convolution &call, const Tiles &part, uint32_t *scratch) {
    return Convolution(call, part, scratch).run();
}

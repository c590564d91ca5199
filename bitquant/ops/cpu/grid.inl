// The padded input of a convolution as levels on a grid of positions. Included once per instruction set, after product.inl.

// The part of the grid that some tiles read. Everything here is 0 on the padding and where a position does not count.
struct PaddedInput {
    PaddedInput(const bq_convolution &c, const Tiles &part, uint32_t *&scratch)
        : call(c),
          grid(grid_of(c)),
          to{c.offset, c.offset_size != 1, c.is_signed != 0, static_cast<int>(c.bits), c.step ? *c.step : 1},
          tiles(part),
          channels(c.channels / c.groups),
          words(ceil_div(channels, WORD_BITS)),
          first(first_position(grid, part)),
          end(end_position(grid, part)),
          pitch(end - first + 2 * LANES) {
        const auto carve = [&](int64_t n) { return (scratch += n) - n; };
        valid = carve(pitch);
        levels = carve(level_words(c) * pitch);
        row = carve(LANES * to.bits * words);
        row_sums = reinterpret_cast<int32_t *>(carve(LANES));
        std::memset(valid, 0, static_cast<size_t>(pitch) * sizeof *valid);
    }

    const bq_convolution &call;
    const Grid grid;
    const Quantizer to;
    const Tiles tiles;
    const int64_t channels, words;  // of a group
    const int64_t first, end, pitch;
    uint32_t *valid;   // all bits set where the input vector of the position is not zero
    uint32_t *levels;  // [plane][word][position], or for groups of one channel int16 [channel][position]
    uint32_t *row;
    int32_t *row_sums;

    // work(index, x, n) for every run of up to 16 neighbouring input positions in the part, in rising order.
    template <class Work>
    void over_input(const Work &work) const {
        const int64_t above = first / grid.width - call.before[0];
        for (int64_t y = above < 0 ? 0 : above; y < call.height; ++y) {
            const int64_t start = (y + call.before[0]) * grid.width, origin = start + call.before[1] - first;
            if (start >= end) break;
            const int64_t from = origin < 0 ? -origin : 0;
            const int64_t stop = call.width < end - first - origin ? call.width : end - first - origin;
            const float *const x = call.x + tiles.batch * call.x_batch + y * call.x_row;
            for (int64_t c = from; c < stop; c += LANES)
                work(origin + c, x + c * call.x_column, stop - c < LANES ? stop - c : LANES);
        }
    }
    int16_t *shorts(int64_t channel) const { return reinterpret_cast<int16_t *>(levels + channel * pitch); }
    bool channels_dense() const { return call.x_channel == 1 && call.x_column != 1; }

    // One channel at up to 16 neighbouring positions.
    Floats load(const float *x, int64_t channel, int64_t n) const {
        x += channel * call.x_channel;
        if (call.x_column == 1) return n == LANES ? Floats::load(x) : Floats::load(x, n);
        float values[LANES] = {};
        for (int64_t i = 0; i < n; ++i) values[i] = x[i * call.x_column];
        return Floats::load(values);
    }
    Floats offset(int64_t channel) const { return Floats::all(to.offset[to.per_feature ? channel : 0]); }
    Mask one_bit(Floats x, Floats limit) const { return to.is_signed ? at_least(x, limit) : above(x, limit); }
    Mask counts(int64_t at, int64_t n) const { return greater(Lanes::all(0), Lanes::load(valid + at)) & ((1u << n) - 1); }

    // A vector holds the first non-zero value early, so this reads little.
    void find_valid() {
        const Floats zero = Floats::all(0);
        if (channels_dense()) {
            over_input([&](int64_t at, const float *x, int64_t n) {
                for (int64_t i = 0; i < n; ++i, x += call.x_column) {
                    int64_t c = 0;
                    while (c < call.channels && x[c] == 0) ++c;
                    valid[at + i] = c < call.channels ? ~0u : 0;
                }
            });
            return;
        }
        over_input([&](int64_t at, const float *x, int64_t n) {
            const Mask all = (1u << n) - 1;
            Mask zeros = all;
            for (int64_t c = 0; c < call.channels && zeros; ++c) {
                const Floats value = load(x, c, n);
                zeros &= at_least(value, zero) & at_least(zero, value);
            }
            select(all & ~zeros, Lanes::all(-1), Lanes::all(0)).store(valid + at);
        });
    }

    // Levels of `count` groups of a single channel, up to 16, as short integers. False if one is NaN.
    bool quantize(int64_t group, int64_t count) {
        std::memset(levels, 0, static_cast<size_t>(count * pitch) * sizeof *levels);
        if (channels_dense()) return quantize_rows(group, count);
        bool clean = true;
        for (int64_t c = 0; c < count; ++c) clean &= quantize_column(group + c, shorts(c));
        return clean;
    }

    // Bit planes of the levels of a group's channels. False if one is NaN.
    bool pack_group(int64_t group) {
        std::memset(levels, 0, static_cast<size_t>(to.bits * words * pitch) * sizeof *levels);
        return channels_dense() ? pack_rows(group * channels) : pack_columns(group * channels);
    }

  private:
    Lanes level(const Levels &several, Floats x, Floats shift, Mask &nan) const {
        if (to.bits > 1) return several.of(x, shift, nan);
        nan |= unordered(x, shift);
        return select(one_bit(x, shift), Lanes::all(1), Lanes::all(to.is_signed ? -1 : 0));
    }

    bool quantize_column(int64_t channel, int16_t *column) {
        const Floats shift = offset(channel);
        const Levels several(to);
        Mask nan = 0;
        over_input([&](int64_t at, const float *x, int64_t n) {
            Mask none = 0;
            const Lanes levels = level(several, load(x, channel, n), shift, none);
            nan |= none & ((1u << n) - 1);
            store_shorts(select(counts(at, n), levels, Lanes::all(0)), column + at);
        });
        return nan == 0;
    }

    bool quantize_rows(int64_t channel, int64_t count) {
        const Floats shift = to.per_feature ? Floats::load(to.offset + channel, count) : Floats::all(*to.offset);
        const Levels several(to);
        Mask nan = 0;
        over_input([&](int64_t at, const float *x, int64_t n) {
            for (int64_t i = 0; i < n; ++i) {
                int16_t vector[LANES];
                store_shorts(level(several, Floats::load(x + i * call.x_column + channel, count), shift, nan), vector);
                for (int64_t c = 0; valid[at + i] && c < count; ++c) shorts(c)[at + i] = vector[c];
            }
        });
        return (nan & ((1u << count) - 1)) == 0;
    }

    bool pack_rows(int64_t channel) {
        Quantizer mine = to;
        if (to.per_feature) mine.offset += channel;
        bool clean = true;
        over_input([&](int64_t at, const float *x, int64_t n) {
            clean &= pack({x + channel, channels, call.x_column, mine}, 0, n, row, row_sums);
            for (int64_t i = 0; i < n; ++i)
                for (int64_t w = 0; w < to.bits * words; ++w)
                    levels[w * pitch + at + i] = row[i * to.bits * words + w] & valid[at + i];
        });
        return clean;
    }

    bool pack_columns(int64_t channel) {
        const Levels several(to);
        Mask nan = 0;
        over_input([&](int64_t at, const float *x, int64_t n) {
            const Mask here = counts(at, n);
            for (int64_t w = 0; w < words; ++w) {
                Lanes word[8];
                for (int p = 0; p < to.bits; ++p) word[p] = Lanes::all(0);
                const int64_t from = w * WORD_BITS, left = channels - from < WORD_BITS ? channels - from : WORD_BITS;
                for (int64_t b = 0; b < left; ++b) {
                    const Floats value = load(x, channel + from + b, n), shift = offset(channel + from + b);
                    const Lanes bit = Lanes::all(static_cast<int32_t>(1u << b));
                    const auto put = [&](int plane, Mask set) {
                        word[plane] = word[plane] | select(set & here, bit, Lanes::all(0));
                    };
                    Mask none = 0;
                    if (to.bits == 1) {
                        none = unordered(value, shift);
                        put(0, one_bit(value, shift));
                    } else {
                        const Lanes level = several.of(value, shift, none);
                        for (int p = 0; p < to.bits; ++p) put(to.bits - 1 - p, plane_of(level, p));
                    }
                    nan |= none & ((1u << n) - 1);
                }
                for (int p = 0; p < to.bits; ++p) word[p].store(levels + (p * words + w) * pitch + at);
            }
        });
        return nan == 0;
    }
};

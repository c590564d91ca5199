// Floats to levels of several bits, and levels to bit planes. Included once per instruction set, after its lanes.

// rint(fl(fl(x + offset) / step)), clipped; to even where it is a tie.
struct Levels {
    Floats step, low, high;
    explicit Levels(const Quantizer &to)
        : step(Floats::all(to.step)),
          low(Floats::all(to.is_signed ? -static_cast<float>(1 << (to.bits - 1)) : 0)),
          high(Floats::all(static_cast<float>((1 << (to.bits - to.is_signed)) - 1))) {}
    // `nan` gathers which are none: those of NaN, of inf - inf, of 0 / 0.
    Lanes of(Floats x, Floats offset, Mask &nan) const {
        // Clipping first is the same, as the bounds are whole. 1.5 * 2^23 leaves no room for a fraction: adding it rounds
        // to whole numbers in the current, so the default, direction and leaves them in the low bits.
        const Floats quotient = (x + offset) / step, t = lower(upper(quotient, low), high);
        nan |= is_nan(quotient);
        return bits_of(t + Floats::all(12582912.0f)) - Lanes::all(0x4b400000);
    }
};

// Which levels have bit `plane`, in two's complement.
static inline Mask plane_of(Lanes level, int plane) { return greater(level & Lanes::all(1 << plane), Lanes::all(0)); }

// Planes of one row, the top one first, each of ceil(k/32) words. False if a level is NaN.
static bool pack_planes(const float *x, int64_t k, const Quantizer &to, uint32_t *planes, int32_t *sum) {
    const int64_t words = ceil_div(k, WORD_BITS);
    const Levels levels(to);
    Mask nan = 0;
    int32_t total = 0;
    for (int64_t w = 0; w < words; ++w) {
        uint32_t word[8] = {};
        for (int64_t at = w * WORD_BITS; at < k && at < (w + 1) * WORD_BITS; at += LANES) {
            const int64_t n = k - at < LANES ? k - at : LANES;
            const Floats value = n == LANES ? Floats::load(x + at) : Floats::load(x + at, n);
            const Floats offset = !to.per_feature ? Floats::all(*to.offset)
                                  : n == LANES    ? Floats::load(to.offset + at)
                                                  : Floats::load(to.offset + at, n);
            const Mask inside = (1u << n) - 1;
            Mask none = 0;
            const Lanes level = levels.of(value, offset, none);
            nan |= none & inside;
            for (int p = 0; p < to.bits; ++p) word[p] |= (plane_of(level, p) & inside) << at % WORD_BITS;
        }
        for (int p = 0; p < to.bits; ++p) {
            const int32_t ones = __builtin_popcount(word[p]);
            total += (to.is_signed && p == to.bits - 1 ? -ones : ones) * (1 << p);
            planes[(to.bits - 1 - p) * words + w] = word[p];
        }
    }
    *sum = total;
    return nan == 0;
}

// Sum of weighted planes, taken from the top: `plane` 0 comes first, with weight -1 of its place where signed.
static inline Lanes add_plane(Lanes sum, Lanes count, int plane, bool is_signed) {
    if (plane) return sum + sum + count;
    return is_signed ? Lanes::all(0) - count : count;
}

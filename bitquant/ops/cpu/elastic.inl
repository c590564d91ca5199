// Levels for training as floats, and the straight-through gradients of their inputs. Included once per instruction set:
// plain loops, which the compiler vectorizes.

// out[i] for one row; false if x, the shift or the result is NaN. Written without branches on the data.
template <class Rule>
static BQ_INLINE bool levels_of_row(const bq_elastic &e, const float *x, float *out, const Rule &rule) {
    int32_t nan = 0;
    if (e.shift_size == 1) {
        const float shift = *e.shift;
        for (int64_t i = 0; i < e.k; ++i) {
            const float level = rule(x[i], shift);
            nan |= (x[i] != x[i]) | (shift != shift) | (level != level);
            out[i] = level;
        }
    } else {
        for (int64_t i = 0; i < e.k; ++i) {
            const float level = rule(x[i], e.shift[i]);
            nan |= (x[i] != x[i]) | (e.shift[i] != e.shift[i]) | (level != level);
            out[i] = level;
        }
    }
    return !nan;
}

static bool elastic_levels(const bq_elastic &e, int64_t row, int64_t rows) {
    const float alpha = *e.alpha, half = alpha / 2, low = static_cast<float>(e.low), high = static_cast<float>(e.high);
    bool clean = true;
    for (int64_t r = row; r < row + rows; ++r) {
        const float *const x = e.x + r * e.k;
        float *const out = e.out + r * e.k;
        if (e.high > 1 || e.low < -1) {
            // 1.5 * 2^23 leaves no room for a fraction: adding it rounds to whole numbers, to even where it is a tie
            clean &= levels_of_row(e, x, out, [=](float v, float shift) BQ_INLINE_LAMBDA {
                const float u = (v + shift) / alpha, t = u < low ? low : u > high ? high : u;
                return (t + 12582912.0f) - 12582912.0f;
            });
        } else if (e.low < 0) {
            clean &= levels_of_row(e, x, out,
                                   [](float v, float shift) BQ_INLINE_LAMBDA { return v >= -shift ? 1.0f : -1.0f; });
        } else {
            clean &= levels_of_row(e, x, out, [=](float v, float shift) BQ_INLINE_LAMBDA {
                const float limit = half - shift;
                return v > limit ? 1.0f : limit == limit ? 0.0f : limit;
            });
        }
    }
    return clean;
}

// dx of one row, and its share of the sums over rows.
template <class Shift, class Slope>
static BQ_INLINE void gradient_of_row(const bq_elastic &e, const float *__restrict x, const float *__restrict grad,
                                      float *__restrict for_x, float *__restrict for_shift, float *__restrict for_alpha,
                                      const Shift &shift, const Slope &slope) {
    const float alpha = *e.alpha;
    for (int64_t i = 0; i < e.k; ++i) {
        const float u = (x[i] + shift(i)) / alpha, by = slope(u);
        const float dx = by > 0 ? by * grad[i] / alpha : 0.0f;  // 0 for an infinite gradient, too
        for_x[i] = dx;
        for_shift[i] += dx;
        for_alpha[i] -= dx * u;
    }
}

// Gradients of some rows; sums over them are added to for_shift and for_alpha, k each.
static void elastic_gradient(const bq_elastic &e, const float *grad, float *for_x, int64_t row, int64_t rows,
                             float *for_shift, float *for_alpha) {
    const float low = static_cast<float>(e.low), high = static_cast<float>(e.high), *const shifts = e.shift;
    const auto one = [=](int64_t) BQ_INLINE_LAMBDA { return *shifts; };
    const auto each = [=](int64_t i) BQ_INLINE_LAMBDA { return shifts[i]; };
    const auto window = [=](float u) BQ_INLINE_LAMBDA { return (u >= low) & (u <= high) ? 1.0f : 0.0f; };
    const auto smooth = [](float u) BQ_INLINE_LAMBDA {
        const float slope = 2 - 2 * (u < 0 ? -u : u);
        return slope > 0 ? slope : 0.0f;
    };
    for (int64_t r = row; r < row + rows; ++r) {
        const float *const x = e.x + r * e.k, *const g = grad + r * e.k;
        float *const out = for_x + r * e.k;
        if (e.smooth && e.shift_size == 1) gradient_of_row(e, x, g, out, for_shift, for_alpha, one, smooth);
        if (e.smooth && e.shift_size != 1) gradient_of_row(e, x, g, out, for_shift, for_alpha, each, smooth);
        if (!e.smooth && e.shift_size == 1) gradient_of_row(e, x, g, out, for_shift, for_alpha, one, window);
        if (!e.smooth && e.shift_size != 1) gradient_of_row(e, x, g, out, for_shift, for_alpha, each, window);
    }
}

// 16 lanes as four vectors of four in the compilers' own vector types (GCC, Clang), which every processor with 128-bit
// vectors runs well. The names here are what the kernels are written in; each instruction set gives its version of them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bitquant::portable {

using Mask = uint32_t;  // bit i belongs to lane i

typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef float Singles __attribute__((vector_size(16)));

// Bits of four comparisons, whose lanes are 0 or -1.
static inline Mask mask_of(const Ints (&truth)[4]) {
    const Ints bit = {1, 2, 4, 8};
    Mask m = 0;
    for (int i = 0; i < 4; ++i) {
        const Ints part = truth[i] & bit;
#if defined(__aarch64__)
        m |= static_cast<Mask>(vaddvq_s32((int32x4_t)part)) << 4 * i;
#else
        m |= static_cast<Mask>(part[0] | part[1] | part[2] | part[3]) << 4 * i;
#endif
    }
    return m;
}

// 16 signed integers, or 16 words of bits.
struct Lanes {
    Ints v[4];
    static Lanes load(const void *p) {
        Lanes r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Lanes all(int32_t x) {
        const Ints four = {x, x, x, x};
        return {{four, four, four, four}};
    }
    void store(void *p) const { std::memcpy(p, v, sizeof v); }
};

// 16 floats; load and store with a count touch only that many, the rest reads as 0.
struct Floats {
    Singles v[4];
    static Floats load(const float *p) {
        Floats r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Floats load(const float *p, int64_t n) {
        Floats r = all(0);
        std::memcpy(r.v, p, static_cast<size_t>(n) * sizeof(float));
        return r;
    }
    static Floats all(float x) {
        const Singles four = {x, x, x, x};
        return {{four, four, four, four}};
    }
    static Floats of(Lanes a) {
        Floats r;
        for (int i = 0; i < 4; ++i) r.v[i] = __builtin_convertvector(a.v[i], Singles);
        return r;
    }
    void store(float *p) const { std::memcpy(p, v, sizeof v); }
    void store(float *p, int64_t n) const { std::memcpy(p, v, static_cast<size_t>(n) * sizeof(float)); }
};

// Define `name` of two vectors by `expression` over the quarters x and y.
#define BQ_LANEWISE(type, name, expression)     \
    static inline type name(type a, type b) {   \
        type r;                                 \
        for (int i = 0; i < 4; ++i) {           \
            const auto x = a.v[i], y = b.v[i];  \
            r.v[i] = expression;                \
        }                                       \
        return r;                               \
    }
#define BQ_COMPARE(type, name, expression)      \
    static inline Mask name(type a, type b) {   \
        Ints truth[4];                          \
        for (int i = 0; i < 4; ++i) {           \
            const auto x = a.v[i], y = b.v[i];  \
            truth[i] = expression;              \
        }                                       \
        return mask_of(truth);                  \
    }
BQ_LANEWISE(Lanes, operator+, x + y)
BQ_LANEWISE(Lanes, operator-, x - y)
BQ_LANEWISE(Lanes, operator^, x ^ y)
BQ_LANEWISE(Lanes, operator&, x &y)
BQ_LANEWISE(Lanes, operator|, x | y)
BQ_LANEWISE(Lanes, lower, ((x < y) & x) | ((x >= y) & y))
BQ_LANEWISE(Floats, operator+, x + y)
BQ_LANEWISE(Floats, operator*, x *y)
BQ_LANEWISE(Floats, operator/, x / y)
BQ_COMPARE(Lanes, greater, x > y)
BQ_COMPARE(Floats, at_least, x >= y)
BQ_COMPARE(Floats, above, x > y)
BQ_COMPARE(Floats, unordered, (x != x) | (y != y))  // one of them is NaN
BQ_LANEWISE(Floats, lower, x < y ? x : y)
BQ_LANEWISE(Floats, upper, x > y ? x : y)
#undef BQ_LANEWISE
#undef BQ_COMPARE

// Shifts fill with zeros; n is 0 to 31.
static inline Lanes operator<<(Lanes a, int n) {
    for (Ints &part : a.v) part = reinterpret_cast<Ints>(reinterpret_cast<Words>(part) << n);
    return a;
}
static inline Lanes operator>>(Lanes a, int n) {
    for (Ints &part : a.v) part = reinterpret_cast<Ints>(reinterpret_cast<Words>(part) >> n);
    return a;
}
static inline Lanes bits_of(Floats a) {
    Lanes r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
static inline Mask is_nan(Floats a) { return 0xffffu ^ at_least(a, a); }

// Lane of a where its bit in m is set, else of b.
static inline Lanes select(Mask m, Lanes a, Lanes b) {
    const Ints bit = {1, 2, 4, 8};
    Lanes r;
    for (int i = 0; i < 4; ++i) {
        const int32_t four = static_cast<int32_t>(m >> 4 * i);
        const Ints chosen = (Ints{four, four, four, four} & bit) != 0;
        r.v[i] = (a.v[i] & chosen) | (b.v[i] & ~chosen);
    }
    return r;
}
static inline Floats select(Mask m, Floats a, Floats b) {
    const Lanes chosen = select(m, bits_of(a), bits_of(b));
    std::memcpy(a.v, chosen.v, sizeof a.v);
    return a;
}

static inline Lanes gather(const int32_t *table, Lanes index) {
    Lanes r;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) r.v[i][j] = table[index.v[i][j]];
    return r;
}

// table[index].
struct Table {
    const int32_t *all;
    Table(const int32_t *table, int64_t) : all(table) {}
    Lanes at(Lanes index) const { return gather(all, index); }
};

static inline int32_t lowest(Lanes a) {
    int32_t low = a.v[0][0];
    for (int i = 0; i < 16; ++i) low = a.v[i / 4][i % 4] < low ? a.v[i / 4][i % 4] : low;
    return low;
}

// 32 short integers.
struct Shorts {
    typedef int16_t Eight __attribute__((vector_size(16)));
    typedef int16_t Four __attribute__((vector_size(8)));
    Eight v[4];
    static Shorts load(const int16_t *p) {
        Shorts r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Shorts zero() { return {}; }
    Lanes low() const { return widen(v); }
    Lanes high() const { return widen(v + 2); }
    static Lanes widen(const Eight *from) {
        Four parts[4];
        std::memcpy(parts, from, sizeof parts);
        Lanes r;
        for (int i = 0; i < 4; ++i) r.v[i] = __builtin_convertvector(parts[i], Ints);
        return r;
    }
};
static inline Shorts operator+(Shorts a, Shorts b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
}
static inline Shorts operator-(Shorts a, Shorts b) {
    for (int i = 0; i < 4; ++i) a.v[i] -= b.v[i];
    return a;
}
static inline void store_shorts(Lanes a, int16_t *p) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.v[i / 4][i % 4]);
}

// Counts set bits lane by lane over up to CAPACITY words: four sums of a byte each, folded at the end.
struct Ones {
    static constexpr int64_t CAPACITY = 31;
    Words bytes[4] = {};
    void add(Lanes bits) {
        for (int i = 0; i < 4; ++i) {
            Words x = reinterpret_cast<Words>(bits.v[i]);
            x -= x >> 1 & 0x55555555u;
            x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
            bytes[i] += (x + (x >> 4)) & 0x0f0f0f0fu;
        }
    }
    Lanes total() const {
        Lanes r;
        for (int i = 0; i < 4; ++i) {
            const Words pairs = (bytes[i] & 0x00ff00ffu) + (bytes[i] >> 8 & 0x00ff00ffu);
            r.v[i] = reinterpret_cast<Ints>((pairs & 0xffffu) + (pairs >> 16));
        }
        return r;
    }
};

// Which of 16 bytes are not zero.
static inline Mask nonzero(const uint8_t *p) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(p[i] != 0) << i;
    return m;
}

constexpr int ROWS = 2, GROUPS = 1;  // register block

}  // namespace bitquant::portable

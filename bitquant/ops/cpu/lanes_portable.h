// 16 lanes as plain arrays, in loops that a compiler can vectorise. The names here are what kernels.inl is written in; each
// instruction set gives its own version of them.
#pragma once

#include <cstdint>
#include <cstring>

namespace bitquant::portable {

using Mask = uint32_t;  // bit i belongs to lane i

// 16 signed integers, or 16 words of bits.
struct Lanes {
    int32_t v[16];
    static Lanes load(const void *p) {
        Lanes r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Lanes all(int32_t x) {
        Lanes r;
        for (auto &lane : r.v) lane = x;
        return r;
    }
    void store(void *p) const { std::memcpy(p, v, sizeof v); }
};

#define BQ_LANEWISE(type, name, expression)      \
    inline type name(type a, type b) {           \
        type r;                                  \
        for (int i = 0; i < 16; ++i) {           \
            const auto x = a.v[i], y = b.v[i];   \
            r.v[i] = expression;                 \
        }                                        \
        return r;                                \
    }
BQ_LANEWISE(Lanes, operator+, x + y)
BQ_LANEWISE(Lanes, operator-, x - y)
BQ_LANEWISE(Lanes, operator^, x ^ y)
BQ_LANEWISE(Lanes, operator&, x &y)
BQ_LANEWISE(Lanes, operator|, x | y)
BQ_LANEWISE(Lanes, lower, x < y ? x : y)

// Lane of a where its bit in m is set, else of b.
inline Lanes select(Mask m, Lanes a, Lanes b) {
    for (int i = 0; i < 16; ++i) b.v[i] = (m >> i & 1) ? a.v[i] : b.v[i];
    return b;
}
inline Lanes gather(const int32_t *table, Lanes index) {
    for (auto &lane : index.v) lane = table[lane];
    return index;
}
inline Mask greater(Lanes a, Lanes b) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(a.v[i] > b.v[i]) << i;
    return m;
}
inline int32_t lowest(Lanes a) {
    int32_t low = a.v[0];
    for (int32_t lane : a.v) low = lane < low ? lane : low;
    return low;
}

// Counts set bits lane by lane over up to CAPACITY words: four sums of a byte each, folded at the end.
struct Ones {
    static constexpr int64_t CAPACITY = 31;
    uint32_t bytes[16] = {};
    void add(Lanes bits) {
        for (int i = 0; i < 16; ++i) {
            uint32_t x = static_cast<uint32_t>(bits.v[i]);
            x -= x >> 1 & 0x55555555u;
            x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
            bytes[i] += (x + (x >> 4)) & 0x0f0f0f0fu;
        }
    }
    Lanes total() const {
        Lanes r;
        for (int i = 0; i < 16; ++i) {
            const uint32_t pairs = (bytes[i] & 0x00ff00ffu) + (bytes[i] >> 8 & 0x00ff00ffu);
            r.v[i] = static_cast<int32_t>((pairs & 0xffffu) + (pairs >> 16));
        }
        return r;
    }
};

// 16 floats; load and store with a count touch only that many, the rest reads as 0.
struct Floats {
    float v[16];
    static Floats load(const float *p) { return load(p, 16); }
    static Floats load(const float *p, int64_t n) {
        Floats r = all(0);
        std::memcpy(r.v, p, static_cast<size_t>(n) * sizeof(float));
        return r;
    }
    static Floats all(float x) {
        Floats r;
        for (auto &lane : r.v) lane = x;
        return r;
    }
    static Floats of(Lanes a) {
        Floats r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
        return r;
    }
    void store(float *p) const { std::memcpy(p, v, sizeof v); }
    void store(float *p, int64_t n) const { std::memcpy(p, v, static_cast<size_t>(n) * sizeof(float)); }
};
BQ_LANEWISE(Floats, operator+, x + y)
BQ_LANEWISE(Floats, operator*, x *y)
BQ_LANEWISE(Floats, operator/, x / y)
#undef BQ_LANEWISE
inline Floats select(Mask m, Floats a, Floats b) {
    for (int i = 0; i < 16; ++i) b.v[i] = (m >> i & 1) ? a.v[i] : b.v[i];
    return b;
}
inline Mask at_least(Floats a, Floats b) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(a.v[i] >= b.v[i]) << i;
    return m;
}
inline Mask above(Floats a, Floats b) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(a.v[i] > b.v[i]) << i;
    return m;
}
inline Mask is_nan(Floats a) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(a.v[i] != a.v[i]) << i;
    return m;
}

// Which of 16 bytes are not zero.
inline Mask nonzero(const uint8_t *p) {
    Mask m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<Mask>(p[i] != 0) << i;
    return m;
}

constexpr int ROWS = 2, GROUPS = 1;  // register block

}  // namespace bitquant::portable

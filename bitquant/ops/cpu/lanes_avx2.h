// 16 lanes in two AVX2 registers. See lanes_portable.h for what each name means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bitquant::avx2 {

using Mask = uint32_t;

struct Lanes {
    __m256i lo, hi;
    static Lanes load(const void *p) {
        const auto *q = static_cast<const __m256i *>(p);
        return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    }
    static Lanes all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    void store(void *p) const {
        auto *q = static_cast<__m256i *>(p);
        _mm256_storeu_si256(q, lo);
        _mm256_storeu_si256(q + 1, hi);
    }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline Lanes operator^(Lanes a, Lanes b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
inline Lanes operator&(Lanes a, Lanes b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline Lanes operator|(Lanes a, Lanes b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline Lanes operator<<(Lanes a, int n) {
    const __m128i by = _mm_cvtsi32_si128(n);
    return {_mm256_sll_epi32(a.lo, by), _mm256_sll_epi32(a.hi, by)};
}
inline Lanes operator>>(Lanes a, int n) {
    const __m128i by = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(a.lo, by), _mm256_srl_epi32(a.hi, by)};
}
inline Lanes lower(Lanes a, Lanes b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }

// All bits of lane i set where bit i of m is.
inline Lanes spread(Mask m) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i lo = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(m)), bit);
    const __m256i hi = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(m >> 8)), bit);
    return {_mm256_cmpeq_epi32(lo, bit), _mm256_cmpeq_epi32(hi, bit)};
}
inline Lanes select(Mask m, Lanes a, Lanes b) {
    const Lanes s = spread(m);
    return {_mm256_blendv_epi8(b.lo, a.lo, s.lo), _mm256_blendv_epi8(b.hi, a.hi, s.hi)};
}
inline Lanes gather(const int32_t *table, Lanes index) {
    return {_mm256_i32gather_epi32(table, index.lo, 4), _mm256_i32gather_epi32(table, index.hi, 4)};
}
// table[index].
struct Table {
    const int32_t *all;
    Table(const int32_t *table, int64_t) : all(table) {}
    Lanes at(Lanes index) const { return gather(all, index); }
};
inline Mask signs(__m256 lo, __m256 hi) {
    return static_cast<Mask>(_mm256_movemask_ps(lo)) | static_cast<Mask>(_mm256_movemask_ps(hi)) << 8;
}
inline Mask greater(Lanes a, Lanes b) {
    return signs(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi)));
}
inline int32_t lowest(Lanes a) {
    const __m256i eight = _mm256_min_epi32(a.lo, a.hi);
    __m128i m = _mm_min_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    m = _mm_min_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_min_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return _mm_cvtsi128_si32(m);
}

struct Shorts {
    __m256i lo, hi;
    static Shorts load(const int16_t *p) {
        const auto *q = reinterpret_cast<const __m256i *>(p);
        return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    }
    static Shorts zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Lanes widen(__m256i x) {
        return {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1))};
    }
    Lanes low() const { return widen(lo); }
    Lanes high() const { return widen(hi); }
};
inline Shorts operator+(Shorts a, Shorts b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
inline Shorts operator-(Shorts a, Shorts b) { return {_mm256_sub_epi16(a.lo, b.lo), _mm256_sub_epi16(a.hi, b.hi)}; }
inline void store_shorts(Lanes a, int16_t *p) {
    const __m256i packed = _mm256_packs_epi32(a.lo, a.hi);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// Ones of each byte by a look-up of both nibbles; a byte holds the sum of 31 words.
struct Ones {
    static constexpr int64_t CAPACITY = 31;
    __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256();
    static __m256i per_byte(__m256i x) {
        const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                               0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
        const __m256i nibble = _mm256_set1_epi8(15);
        return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble)),
                               _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble)));
    }
    static __m256i per_lane(__m256i bytes) {
        const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    void add(Lanes bits) {
        lo = _mm256_add_epi8(lo, per_byte(bits.lo));
        hi = _mm256_add_epi8(hi, per_byte(bits.hi));
    }
    Lanes total() const { return {per_lane(lo), per_lane(hi)}; }
};

struct Floats {
    __m256 lo, hi;
    static Lanes first(int64_t n) { return spread((1u << n) - 1); }
    static Floats load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static Floats load(const float *p, int64_t n) {
        const Lanes m = first(n);
        return {_mm256_maskload_ps(p, m.lo), _mm256_maskload_ps(p + 8, m.hi)};
    }
    static Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static Floats of(Lanes a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
    void store(float *p) const {
        _mm256_storeu_ps(p, lo);
        _mm256_storeu_ps(p + 8, hi);
    }
    void store(float *p, int64_t n) const {
        const Lanes m = first(n);
        _mm256_maskstore_ps(p, m.lo, lo);
        _mm256_maskstore_ps(p + 8, m.hi, hi);
    }
};
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Floats lower(Floats a, Floats b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Floats upper(Floats a, Floats b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Lanes bits_of(Floats a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline Floats select(Mask m, Floats a, Floats b) {
    const Lanes s = spread(m);
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(s.lo)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(s.hi))};
}
template <int Predicate>
inline Mask compare(Floats a, Floats b) {
    return signs(_mm256_cmp_ps(a.lo, b.lo, Predicate), _mm256_cmp_ps(a.hi, b.hi, Predicate));
}
inline Mask at_least(Floats a, Floats b) { return compare<_CMP_GE_OQ>(a, b); }
inline Mask above(Floats a, Floats b) { return compare<_CMP_GT_OQ>(a, b); }
inline Mask unordered(Floats a, Floats b) { return compare<_CMP_UNORD_Q>(a, b); }
inline Mask is_nan(Floats a) { return unordered(a, a); }

inline Mask nonzero(const uint8_t *p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return 0xffffu ^ static_cast<Mask>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128())));
}

constexpr int ROWS = 4, GROUPS = 1;  // register block: 4 byte accumulators of 2 registers each

}  // namespace bitquant::avx2

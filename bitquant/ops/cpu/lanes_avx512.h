// 16 lanes in one AVX-512 register, with VPOPCNTDQ. See lanes_portable.h for what each name means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bitquant::avx512 {

using Mask = uint32_t;

struct Lanes {
    __m512i v;
    static Lanes load(const void *p) { return {_mm512_loadu_si512(p)}; }
    static Lanes all(int32_t x) { return {_mm512_set1_epi32(x)}; }
    void store(void *p) const { _mm512_storeu_si512(p, v); }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Lanes operator^(Lanes a, Lanes b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Lanes operator&(Lanes a, Lanes b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Lanes operator|(Lanes a, Lanes b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Lanes operator<<(Lanes a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
inline Lanes operator>>(Lanes a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
inline Lanes lower(Lanes a, Lanes b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline Lanes select(Mask m, Lanes a, Lanes b) { return {_mm512_mask_blend_epi32(static_cast<__mmask16>(m), b.v, a.v)}; }
inline Lanes gather(const int32_t *table, Lanes index) { return {_mm512_i32gather_epi32(index.v, table, 4)}; }
// table[index]. From registers where nothing but zeros comes after the first 63 entries.
struct Table {
    const int32_t *all;
    __m512i part[4];
    bool is_short = true;
    Table(const int32_t *table, int64_t n) : all(table) {
        alignas(64) int32_t first[64] = {};
        for (int64_t i = 0; i < n; ++i) {
            if (i < 63) first[i] = table[i];
            else if (table[i]) is_short = false;
        }
        for (int i = 0; i < 4; ++i) part[i] = _mm512_load_si512(first + 16 * i);
    }
    Lanes at(Lanes index) const {
        if (!is_short) return gather(all, index);
        const __m512i i = _mm512_min_epi32(index.v, _mm512_set1_epi32(63));
        const __m512i low = _mm512_permutex2var_epi32(part[0], i, part[1]);
        const __m512i high = _mm512_permutex2var_epi32(part[2], i, part[3]);
        return {_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(i, _mm512_set1_epi32(31)), low, high)};
    }
};
inline Mask greater(Lanes a, Lanes b) { return _mm512_cmpgt_epi32_mask(a.v, b.v); }
inline int32_t lowest(Lanes a) { return _mm512_reduce_min_epi32(a.v); }

// 32 short integers: those of two neighbouring tiles.
struct Shorts {
    __m512i v;
    static Shorts load(const int16_t *p) { return {_mm512_loadu_si512(p)}; }
    static Shorts zero() { return {_mm512_setzero_si512()}; }
    Lanes low() const { return {_mm512_cvtepi16_epi32(_mm512_castsi512_si256(v))}; }
    Lanes high() const { return {_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(v, 1))}; }
};
inline Shorts operator+(Shorts a, Shorts b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Shorts operator-(Shorts a, Shorts b) { return {_mm512_sub_epi16(a.v, b.v)}; }
inline void store_shorts(Lanes a, int16_t *p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(a.v));
}

struct Ones {
    static constexpr int64_t CAPACITY = INT32_MAX;  // no row is that long
    __m512i sum = _mm512_setzero_si512();
    void add(Lanes bits) { sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(bits.v)); }
    Lanes total() const { return {sum}; }
};

struct Floats {
    __m512 v;
    static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
    static Floats load(const float *p) { return {_mm512_loadu_ps(p)}; }
    static Floats load(const float *p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    static Floats all(float x) { return {_mm512_set1_ps(x)}; }
    static Floats of(Lanes a) { return {_mm512_cvtepi32_ps(a.v)}; }
    void store(float *p) const { _mm512_storeu_ps(p, v); }
    void store(float *p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
};
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats lower(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats upper(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes bits_of(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats select(Mask m, Floats a, Floats b) { return {_mm512_mask_blend_ps(static_cast<__mmask16>(m), b.v, a.v)}; }
inline Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline Mask above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline Mask unordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q); }
inline Mask is_nan(Floats a) { return unordered(a, a); }

inline Mask nonzero(const uint8_t *p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return _mm_test_epi8_mask(bytes, bytes);
}

constexpr int ROWS = 4, GROUPS = 4;  // register block: 16 accumulators of the 32 registers

}  // namespace bitquant::avx512

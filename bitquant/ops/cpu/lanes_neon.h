// The portable lanes with NEON's count of ones: GCC and Clang already turn their vectors of four into NEON registers.
#pragma once

#include <arm_neon.h>

#include "lanes_portable.h"

namespace bitquant::neon {

using namespace portable;

// Ones of each byte; a byte holds the sum of 31 words.
struct Ones {
    static constexpr int64_t CAPACITY = 31;
    uint8x16_t bytes[4] = {};
    void add(Lanes bits) {
        for (int i = 0; i < 4; ++i) bytes[i] = vaddq_u8(bytes[i], vcntq_u8(vreinterpretq_u8_s32((int32x4_t)bits.v[i])));
    }
    Lanes total() const {
        Lanes r;
        for (int i = 0; i < 4; ++i) r.v[i] = (Ints)vpaddlq_u16(vpaddlq_u8(bytes[i]));
        return r;
    }
};

constexpr int ROWS = 4, GROUPS = 1;  // register block: 16 accumulators of the 32 registers

}  // namespace bitquant::neon

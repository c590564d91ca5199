#include "kernels.h"
#include "lanes_avx512.h"

namespace bitquant {
namespace avx512 {
#include "levels.inl"
#include "pack.inl"
#include "product.inl"
#include "grid.inl"
#include "convolution.inl"
#include "attention.inl"
}  // namespace avx512

const Kernels avx512_kernels = {
    "avx512", 500000, avx512::pack, avx512::linear, avx512::convolution, avx512::attention, avx512::limit, avx512::embedding,
};

}  // namespace bitquant

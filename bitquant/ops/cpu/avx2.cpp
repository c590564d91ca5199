#include "kernels.h"
#include "lanes_avx2.h"

namespace bitquant {
namespace avx2 {
#include "levels.inl"
#include "pack.inl"
#include "product.inl"
#include "grid.inl"
#include "convolution.inl"
#include "attention.inl"
#include "elastic.inl"
}  // namespace avx2

const Kernels avx2_kernels = {
    "avx2", 250000, linear_scratch, avx2::pack, avx2::linear, avx2::convolution, avx2::attention, avx2::limit,
    avx2::embedding, avx2::elastic_levels, avx2::elastic_gradient,
};

}  // namespace bitquant

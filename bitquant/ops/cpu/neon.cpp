#include "kernels.h"
#include "lanes_neon.h"

namespace bitquant {
namespace neon {
#include "levels.inl"
#include "pack.inl"
#include "product.inl"
#include "grid.inl"
#include "convolution.inl"
#include "attention.inl"
#include "elastic.inl"
}  // namespace neon

const Kernels neon_kernels = {
    "neon", 150000, linear_scratch, neon::pack, neon::linear, neon::convolution, neon::attention, neon::limit,
    neon::embedding, neon::elastic_levels, neon::elastic_gradient,
};

}  // namespace bitquant

#include "kernels.h"
#include "lanes_portable.h"

namespace bitquant {
namespace portable {
#include "levels.inl"
#include "pack.inl"
#include "product.inl"
#include "grid.inl"
#include "convolution.inl"
#include "attention.inl"
#include "elastic.inl"
}  // namespace portable

const Kernels portable_kernels = {
    "portable", 80000, linear_scratch, portable::pack, portable::linear, portable::convolution, portable::attention, portable::limit,
    portable::embedding, portable::elastic_levels, portable::elastic_gradient,
};

}  // namespace bitquant

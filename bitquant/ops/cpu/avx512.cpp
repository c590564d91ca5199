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
#include "elastic.inl"
#if defined(BITQUANT_AMX)
#include "tiles.inl"
#endif
}  // namespace avx512

const Kernels avx512_kernels = {
    "avx512", 1000000, linear_scratch, avx512::pack, avx512::linear, avx512::convolution, avx512::attention, avx512::limit,
    avx512::embedding, avx512::elastic_levels, avx512::elastic_gradient,
};

#if defined(BITQUANT_AMX)
const Kernels amx_kernels = {
    "amx", 1000000, avx512::tile_scratch, avx512::pack, avx512::linear_by_tiles, avx512::convolution, avx512::attention,
    avx512::limit, avx512::embedding, avx512::elastic_levels, avx512::elastic_gradient,
};
#endif

}  // namespace bitquant

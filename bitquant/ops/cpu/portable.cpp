#include "kernels.h"
#include "lanes_portable.h"

namespace bitquant {
namespace portable {
#include "pack.inl"
#include "product.inl"
#include "attention.inl"
}  // namespace portable

const Kernels portable_kernels = {"portable", 80000, portable::pack, portable::linear, portable::attention, portable::embedding};

}  // namespace bitquant

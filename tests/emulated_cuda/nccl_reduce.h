// nccl_reduce.h: element types and reductions of the NCCL stand-in.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <vector>

namespace shoal::emulated {

size_t nccl_type_size(ncclDataType_t type);  // 0: no type that the stand-in knows
bool nccl_reducible(ncclDataType_t type, ncclRedOp_t op);

// out = the reduction of parts[0..n), each of `count` elements. Like NCCL's rings it begins with
// another rank for every few elements and rounds the sum to the element type at each rank: an order
// that nobody may rely on, and the same on every rank. `out` may be one of the parts.
void nccl_reduce(const std::vector<const std::byte*>& parts, size_t count, ncclDataType_t type,
                 ncclRedOp_t op, std::byte* out);

}  // namespace shoal::emulated

#include "tests/emulated_cuda/nccl_reduce.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/base/dtype.h"

namespace shoal::emulated {
namespace {

template <typename T>
T combine(T a, T b, ncclRedOp_t op) {
  switch (op) {
    case ncclMax: return std::max(a, b);
    case ncclMin: return std::min(a, b);
    default: return static_cast<T>(a + b);
  }
}
BF16 combine(BF16 a, BF16 b, ncclRedOp_t op) {
  return to_bf16(combine(to_float(a), to_float(b), op));
}
F16 combine(F16 a, F16 b, ncclRedOp_t op) { return to_f16(combine(to_float(a), to_float(b), op)); }

template <typename T>
void reduce(const std::vector<const std::byte*>& parts, size_t count, ncclRedOp_t op,
            std::byte* out) {
  constexpr size_t kRun = 8;  // elements that begin with the same rank
  const auto element = [&](size_t rank, size_t i) {
    T value;
    std::memcpy(&value, parts[rank] + i * sizeof(T), sizeof(T));
    return value;
  };
  for (size_t i = 0; i < count; ++i) {
    const size_t first = (i / kRun + 1) % parts.size();
    T sum = element(first, i);
    for (size_t r = 1; r < parts.size(); ++r) {
      sum = combine(sum, element((first + r) % parts.size(), i), op);
    }
    std::memcpy(out + i * sizeof(T), &sum, sizeof(T));
  }
}

}  // namespace

size_t nccl_type_size(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt32:
    case ncclFloat32: return 4;
    case ncclInt64: return 8;
    default: return 0;
  }
}

bool nccl_reducible(ncclDataType_t type, ncclRedOp_t op) {
  return nccl_type_size(type) != 0 && (op == ncclSum || op == ncclMax || op == ncclMin);
}

void nccl_reduce(const std::vector<const std::byte*>& parts, size_t count, ncclDataType_t type,
                 ncclRedOp_t op, std::byte* out) {
  switch (type) {
    case ncclInt8: return reduce<int8_t>(parts, count, op, out);
    case ncclUint8: return reduce<uint8_t>(parts, count, op, out);
    case ncclFloat16: return reduce<F16>(parts, count, op, out);
    case ncclBfloat16: return reduce<BF16>(parts, count, op, out);
    case ncclInt32: return reduce<int32_t>(parts, count, op, out);
    case ncclFloat32: return reduce<float>(parts, count, op, out);
    case ncclInt64: return reduce<int64_t>(parts, count, op, out);
    default: return;
  }
}

}  // namespace shoal::emulated

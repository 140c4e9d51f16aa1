#include "kernels/base/cache_tensor.h"

#include <fmt/format.h>

namespace shoal {

std::string CacheTensor::shape_string() const {
  if (!quantised()) return data.shape_string();
  return fmt::format("{{{}, scale {}{}{}}}", data.shape_string(), scale.shape_string(),
                     rope.defined() ? ", rope " : "", rope.defined() ? rope.shape_string() : "");
}

void check_cache(const CacheTensor& cache, const char* name) {
  const auto rows = [](const Tensor& t) { return t.rank == 2 && t.stride[1] == 1; };
  const Tensor &data = cache.data, &scale = cache.scale, &rope = cache.rope;
  bool fits = rows(data);
  if (fits && cache.quantised()) {
    fits = (data.dtype == DType::kF8E4M3 || data.dtype == DType::kI8) && rows(scale) &&
           scale.dtype == DType::kF32 && scale.dim(0) == data.dim(0) && scale.dim(1) > 0 &&
           data.dim(1) % scale.dim(1) == 0 &&
           (!rope.defined() ||
            (rows(rope) && rope.dtype == DType::kBF16 && rope.dim(0) == data.dim(0)));
  } else if (fits) {
    fits = (data.dtype == DType::kF32 || data.dtype == DType::kBF16) && !scale.defined() &&
           !rope.defined();
  }
  SHOAL_CHECK(fits, "{} {}", name, cache.shape_string());
}

}  // namespace shoal

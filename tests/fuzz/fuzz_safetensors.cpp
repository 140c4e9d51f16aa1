// The header of a safetensors file: four bytes of data size, then the header's text. What is
// accepted has to keep the promises that the readers rely on.
#include <cstdlib>
#include <cstring>
#include <map>

#include "kernels/base/error.h"
#include "runtime/checkpoint/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint32_t data_bytes = 0;
  if (size < sizeof(data_bytes)) return 0;
  std::memcpy(&data_bytes, data, sizeof(data_bytes));
  const std::string_view header(reinterpret_cast<const char*>(data) + sizeof(data_bytes),
                                size - sizeof(data_bytes));
  const uint64_t file_bytes = 8 + header.size() + data_bytes;
  try {
    const auto tensors = shoal::parse_safetensors_header(header, file_bytes, "fuzz");
    uint64_t covered = 0;
    for (const auto& [name, info] : tensors) {
      require(8 + header.size() <= info.begin && info.begin <= info.end && info.end <= file_bytes);
      int64_t elements = 1;
      for (const int64_t dim : info.shape) {
        require(dim >= 0 && !__builtin_mul_overflow(elements, dim, &elements));
      }
      require(elements == info.num_elements());
      require(static_cast<uint64_t>(elements) * shoal::dtype_size(info.dtype) == info.num_bytes());
      require(!info.shape_string().empty());
      covered += info.num_bytes();
    }
    require(covered == data_bytes);
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}

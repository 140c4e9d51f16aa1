#include "tests/bench/device_data.h"

#include <algorithm>

namespace shoal::bench {
namespace {

constexpr size_t kPatternBytes = size_t{4} << 20;
constexpr float kWeightSpread = 0.03f;  // uniform: standard deviation 0.03 / sqrt(3)

// The factor that brings the type's numbers (DeviceData::values) to kWeightSpread / sqrt(3).
float weight_scale(DType type) {
  switch (type) {
    case DType::kF8E4M3: return 0.03f;
    case DType::kI8: return 0.00023f;  // 74, the deviation of all codes
    default: return 0.0037f;           // I4x2: 4.6
  }
}

}  // namespace

const Buffer& DeviceData::pattern(DType type, float spread, float center) {
  Buffer& buffer = patterns_[{type, spread, center}];
  if (buffer.data() != nullptr) return buffer;
  std::vector<std::byte> host(kPatternBytes);
  const auto uniform = [&] {
    return center + spread * (static_cast<float>(random_()) * 0x1p-31f - 1.0f);
  };
  if (type == DType::kF32) {
    auto* out = reinterpret_cast<float*>(host.data());
    std::generate_n(out, kPatternBytes / sizeof(float), uniform);
  } else if (type == DType::kBF16) {
    auto* out = reinterpret_cast<BF16*>(host.data());
    std::generate_n(out, kPatternBytes / sizeof(BF16), [&] { return to_bf16(uniform()); });
  } else {
    // e4m3: the sign and exponents below that of 2, so neither NaN nor 448.
    const unsigned mask = type == DType::kF8E4M3 ? 0xbf : 0xff;
    for (std::byte& b : host) b = static_cast<std::byte>(random_() & mask);
  }
  buffer = device_.allocate(kPatternBytes);
  device_.copy_to_device(buffer.data(), host.data(), kPatternBytes);
  return buffer;
}

Tensor DeviceData::uninitialised(DType type, std::initializer_list<int64_t> dims) {
  Tensor tensor(nullptr, type, dims);
  buffers_.push_back(device_.allocate(std::max<int64_t>(tensor.num_bytes(), 1)));
  tensor.data = buffers_.back().data();
  return tensor;
}

Tensor DeviceData::values(DType type, std::initializer_list<int64_t> dims, float spread,
                          float center) {
  const Buffer& from = pattern(type, spread, center);
  const Tensor tensor = uninitialised(type, dims);
  const auto bytes = static_cast<size_t>(tensor.num_bytes());
  // Begins elsewhere in the pattern each time, so that two tensors are not alike.
  size_t begin = random_() % (kPatternBytes / 256) * 256;
  for (size_t done = 0; done < bytes;) {
    const size_t piece = std::min(bytes - done, kPatternBytes - begin);
    device_.copy_on_device(tensor.as<std::byte>() + done,
                           static_cast<const std::byte*>(from.data()) + begin, piece);
    done += piece;
    begin = 0;
  }
  return tensor;
}

Tensor DeviceData::indices(const std::vector<int32_t>& values,
                           std::initializer_list<int64_t> dims) {
  const Tensor tensor = uninitialised(DType::kI32, dims);
  SHOAL_CHECK(tensor.num_elements() == static_cast<int64_t>(values.size()), "{} values for {}",
              values.size(), tensor.shape_string());
  device_.copy_to_device(tensor.data, values.data(), values.size() * sizeof(int32_t));
  return tensor;
}

Weight DeviceData::weight(DType type, int64_t n, int64_t k) {
  Weight w;
  w.data =
      values(type, {n, type == DType::kI4x2 ? k / 2 : k}, has_scales(type) ? 1 : kWeightSpread);
  if (!has_scales(type)) return w;
  w.block_rows = type == DType::kF8E4M3 ? 128 : 1;
  w.block_cols = 128;
  const float scale = weight_scale(type);
  w.scale = values(DType::kF32, {(n + w.block_rows - 1) / w.block_rows, (k + 127) / 128}, scale / 2,
                   scale);
  return w;
}

}  // namespace shoal::bench

#include "tests/kernels/support/test_data.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "hwy/highway.h"
#include "kernels/base/error.h"
#include "tests/kernels/support/reference.h"

namespace shoal::test {

HostTensor::HostTensor(DType dtype, std::initializer_list<int64_t> dims) {
  view_ = Tensor(nullptr, dtype, dims);
  bytes_ = view_.num_bytes();
  memory_ = std::shared_ptr<std::byte[]>(new std::byte[bytes_]());
  view_.data = memory_.get();
}

HostTensor HostTensor::strided(DType dtype, int64_t rows, int64_t cols, int64_t gap) {
  HostTensor result;
  result.view_ = Tensor(nullptr, dtype, {rows, cols});
  result.view_.stride[0] = cols + gap;
  result.bytes_ = (rows == 0 ? 0 : (rows - 1) * (cols + gap) + cols) * dtype_size(dtype);
  result.memory_ = std::shared_ptr<std::byte[]>(new std::byte[result.bytes_]());
  result.view_.data = result.memory_.get();
  return result;
}

HostTensor HostTensor::ints(std::initializer_list<int64_t> dims,
                            const std::vector<int32_t>& values) {
  HostTensor result(DType::kI32, dims);
  SHOAL_CHECK(static_cast<int64_t>(values.size()) == result.view_.num_elements());
  if (!values.empty()) std::memcpy(result.view_.data, values.data(), values.size() * 4);
  return result;
}

HostTensor HostTensor::clone() const {
  HostTensor result;
  result.bytes_ = bytes_;
  result.view_ = view_;
  result.memory_ = std::shared_ptr<std::byte[]>(new std::byte[bytes_]);
  if (bytes_ > 0) std::memcpy(result.memory_.get(), memory_.get(), bytes_);
  result.view_.data = result.memory_.get();
  return result;
}

std::vector<std::byte> HostTensor::bytes() const {
  const int64_t row_elements = view_.rank == 0 ? 0 : view_.shape[view_.rank - 1];
  const int64_t rows = row_elements == 0 ? 0 : view_.num_elements() / row_elements;
  const int64_t row_bytes = row_elements * dtype_size(view_.dtype);
  const int64_t step =
      view_.rank >= 2 ? view_.stride[view_.rank - 2] * dtype_size(view_.dtype) : row_bytes;
  std::vector<std::byte> result(rows * row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(result.data() + r * row_bytes, memory_.get() + r * step, row_bytes);
  }
  return result;
}

void Random::fill(const Tensor& tensor, float deviation) {
  for_each_index(tensor, [&](int64_t at) {
    switch (tensor.dtype) {
      case DType::kF32: tensor.as<float>()[at] = normal(deviation); break;
      case DType::kF16: tensor.as<F16>()[at] = to_f16(normal(deviation)); break;
      case DType::kBF16: tensor.as<BF16>()[at] = to_bf16(normal(deviation)); break;
      case DType::kF8E4M3: tensor.as<F8E4M3>()[at] = to_f8e4m3(normal(deviation)); break;
      case DType::kI32: tensor.as<int32_t>()[at] = static_cast<int32_t>(below(100)); break;
      default: SHOAL_CHECK(false, "{}", dtype_name(tensor.dtype));
    }
  });
}

HostTensor Random::tensor(DType dtype, std::initializer_list<int64_t> dims, float deviation) {
  HostTensor result(dtype, dims);
  fill(result, deviation);
  return result;
}

std::vector<int32_t> Random::permutation(int64_t n) {
  std::vector<int32_t> values(n);
  std::iota(values.begin(), values.end(), 0);
  std::shuffle(values.begin(), values.end(), engine_);
  return values;
}

HostWeight random_weight(Random& random, DType dtype, int64_t n, int64_t k, int32_t block,
                         int32_t row_offset, int32_t col_offset, bool asymmetric) {
  HostWeight result;
  if (has_scales(dtype)) {
    // Every code turns up, subnormals too, but for the NaNs of FP8.
    result.data = HostTensor(dtype, {n, dtype == DType::kI4x2 ? k / 2 : k});
    for_each_index(result.data, [&](int64_t at) {
      auto code = static_cast<uint8_t>(random.below(256));
      if (dtype == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code = 0;
      result.data.view().as<uint8_t>()[at] = code;
    });
    const int32_t block_rows = dtype == DType::kF8E4M3 ? block : 1;
    if (block_rows == 1) row_offset = 0;
    result.scale = HostTensor(DType::kF32, {(n + row_offset + block_rows - 1) / block_rows,
                                            (k + col_offset + block - 1) / block});
    for_each_index(result.scale, [&](int64_t at) {
      result.scale.view().as<float>()[at] = 1e-3f + 1e-2f * std::abs(random.normal());
    });
    if (asymmetric) {
      result.min =
          HostTensor(DType::kF32, {result.scale.view().dim(0), result.scale.view().dim(1)});
      random.fill(result.min, 0.3f);
    }
    result.weight = {.data = result.data,
                     .scale = result.scale,
                     .min = result.min,
                     .block_rows = block_rows,
                     .block_cols = block,
                     .row_offset = row_offset,
                     .col_offset = col_offset};
  } else {
    result.data = random.tensor(dtype, {n, k});
    result.weight = {.data = result.data};
  }
  return result;
}

std::string to_string(WeightFormat format) {
  return std::string(dtype_name(format.type)) + (format.min ? " with min" : "");
}

const std::vector<WeightFormat>& weight_formats() {
  static const std::vector<WeightFormat> formats = {
      {DType::kF32}, {DType::kF16},  {DType::kBF16},     {DType::kF8E4M3},
      {DType::kI8},  {DType::kI4x2}, {DType::kI8, true}, {DType::kI4x2, true}};
  return formats;
}

void for_each_target(const std::function<void(const std::string& name)>& body) {
  const int64_t supported = hwy::SupportedTargets();
  const auto run = [&](int64_t target, const std::string& name) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(name);
  };
  for (const int64_t target : {int64_t{HWY_AVX3}, int64_t{HWY_AVX2}, int64_t{HWY_NEON}}) {
    if ((supported & target) != 0) run(target, hwy::TargetName(target));
  }
  if (HWY_ARCH_X86) run(HWY_SCALAR, "portable");  // on ARM, NEON is what every machine has
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace shoal::test

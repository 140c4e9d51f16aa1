#include "runtime/quantization/recording_ops.h"

#include "kernels/base/error.h"

namespace shoal {

void RecordingOps::record(std::map<const void*, std::string> weights) {
  weights_ = std::move(weights);
  inputs_.clear();
}

std::vector<float> RecordingOps::take_sum(const std::string& name, int64_t k) {
  Inputs& inputs = inputs_[name];
  fold(inputs, k);
  inputs.sum.resize(k * k);
  return std::move(inputs.sum);
}

void RecordingOps::linear(const Tensor& x, const Weight& w, const Tensor& bias,
                          const Tensor& out) {
  add_inputs(w, x);
  ops_.linear(x, w, bias, out);
}

void RecordingOps::grouped_linear(const Tensor& x, std::span<const Weight> experts,
                                  const Tensor& offsets, const Tensor& out) {
  std::vector<int32_t> bounds(experts.size() + 1);
  device_.copy_to_host(bounds.data(), offsets.data, bounds.size() * sizeof(int32_t));
  for (size_t e = 0; e < experts.size(); ++e) {
    if (bounds[e] < bounds[e + 1]) add_inputs(experts[e], x.slice(0, bounds[e], bounds[e + 1]));
  }
  ops_.grouped_linear(x, experts, offsets, out);
}

void RecordingOps::add_inputs(const Weight& w, const Tensor& x) {
  const auto name = weights_.find(w.data.data);
  if (name == weights_.end()) return;
  const int64_t rows = x.dim(0), k = x.dim(1);
  Inputs& inputs = inputs_[name->second];
  const auto row_bytes = static_cast<size_t>(k * dtype_size(x.dtype));
  std::vector<std::byte> row(row_bytes);
  for (int64_t t = 0; t < rows; ++t) {
    device_.copy_to_host(row.data(),
                         static_cast<const std::byte*>(x.data) +
                             t * x.stride[0] * dtype_size(x.dtype),
                         row_bytes);
    for (int64_t j = 0; j < k; ++j) {
      inputs.rows.push_back(x.dtype == DType::kF32
                                ? reinterpret_cast<const float*>(row.data())[j]
                                : to_float(reinterpret_cast<const BF16*>(row.data())[j]));
    }
  }
  if (static_cast<int64_t>(inputs.rows.size()) >= k * k) fold(inputs, k);
}

// The product of X^T with itself is a linear() like any other: of the device, and as fast.
void RecordingOps::fold(Inputs& inputs, int64_t k) {
  if (inputs.rows.empty()) return;
  const auto rows = static_cast<int64_t>(inputs.rows.size()) / k;
  std::vector<float> transposed(inputs.rows.size());
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t j = 0; j < k; ++j) transposed[j * rows + t] = inputs.rows[t * k + j];
  }
  inputs.rows = {};
  const Buffer columns = device_.allocate(transposed.size() * sizeof(float));
  const Buffer product = device_.allocate(static_cast<size_t>(k * k) * sizeof(float));
  device_.copy_to_device(columns.data(), transposed.data(), columns.bytes());
  const Tensor x(columns.data(), DType::kF32, {k, rows});  // X^T
  Weight same;
  same.data = x;
  ops_.linear(x, same, Tensor(), Tensor(product.data(), DType::kF32, {k, k}));
  std::vector<float> values(k * k);
  device_.copy_to_host(values.data(), product.data(), product.bytes());
  inputs.sum.resize(k * k);
  for (size_t i = 0; i < values.size(); ++i) inputs.sum[i] += values[i];
}

}  // namespace shoal

#include "tests/parallel/support/fake_weights.h"

#include <functional>

#include "tests/parallel/support/values.h"

namespace shoal::test {
namespace {
int64_t blocks_of(int64_t size, int32_t block) { return (size + block - 1) / block; }
}  // namespace

void FakeWeights::add_f32(const std::string& name, int64_t n, int64_t k) {
  matrices_[name] = {n, k, 0, random_values(std::hash<std::string>()(name), n * k), {}};
}

void FakeWeights::add_fp8(const std::string& name, int64_t n, int64_t k, int32_t block) {
  const uint64_t seed = std::hash<std::string>()(name);
  Matrix matrix{n, k, block, std::vector<float>(n * k), {}};
  for (int64_t i = 0; i < n * k; ++i) {
    matrix.values[i] = to_float(to_f8e4m3(64 * random_value(seed, i)));
  }
  // Scales far apart, so that a block taken for its neighbour shows.
  for (int64_t b = 0; b < blocks_of(n, block) * blocks_of(k, block); ++b) {
    matrix.scales.push_back(0.01f * static_cast<float>(1 + integer_of(seed + 1, b, 50)));
  }
  matrices_[name] = std::move(matrix);
}

void FakeWeights::add_vector(const std::string& name, int64_t n) {
  vectors_[name] = random_values(std::hash<std::string>()(name), n);
}

double FakeWeights::value(const std::string& name, int64_t i, int64_t j) const {
  const Matrix& m = matrices_.at(name);
  const double value = m.values[i * m.k + j];
  if (m.block == 0) return value;
  return value * m.scales[i / m.block * blocks_of(m.k, m.block) + j / m.block];
}

double FakeWeights::vector_value(const std::string& name, int64_t i) const {
  return vectors_.at(name)[i];
}

bool FakeWeights::has(const std::string& name) const {
  return matrices_.contains(name) || vectors_.contains(name);
}

Weight FakeWeights::matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                           bool keep_f32) {
  const Matrix& m = matrices_.at(name);
  SHOAL_CHECK(m.n == n && m.k == k, "{} is [{}, {}], not [{}, {}]", name, m.n, m.k, n, k);
  Weight weight;
  weight.data =
      allocate(name, m.block == 0 ? DType::kF32 : DType::kF8E4M3, {rows.size(), cols.size()});
  elements_read_ += rows.size() * cols.size();
  std::vector<float> values;
  std::vector<F8E4M3> fp8_values;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      values.push_back(m.values[i * k + j]);
      fp8_values.push_back(to_f8e4m3(values.back()));
    }
  }
  const void* stored = m.block == 0 ? static_cast<const void*>(values.data()) : fp8_values.data();
  device_.copy_to_device(weight.data.data, stored, weight.data.num_bytes());
  if (m.block == 0) return weight;
  weight.block_rows = weight.block_cols = m.block;
  weight.row_offset = static_cast<int32_t>(rows.begin % m.block);
  weight.col_offset = static_cast<int32_t>(cols.begin % m.block);
  const Range block_rows{rows.begin / m.block, blocks_of(rows.end, m.block)};
  const Range block_cols{cols.begin / m.block, blocks_of(cols.end, m.block)};
  weight.scale = allocate(name, DType::kF32, {block_rows.size(), block_cols.size()});
  std::vector<float> scales;
  for (int64_t i = block_rows.begin; i < block_rows.end; ++i) {
    for (int64_t j = block_cols.begin; j < block_cols.end; ++j) {
      scales.push_back(m.scales[i * blocks_of(k, m.block) + j]);
    }
  }
  device_.copy_to_device(weight.scale.data, scales.data(), weight.scale.num_bytes());
  return weight;
}

Tensor FakeWeights::vector(const std::string& name, int64_t n, Range range) {
  const std::vector<float>& values = vectors_.at(name);
  SHOAL_CHECK(static_cast<int64_t>(values.size()) == n, "{} is [{}], not [{}]", name, values.size(),
              n);
  const Tensor out = allocate(name, DType::kF32, {range.size()});
  device_.copy_to_device(out.data, values.data() + range.begin, out.num_bytes());
  elements_read_ += range.size();
  return out;
}

Tensor FakeWeights::allocate(const std::string& label, DType dtype,
                             std::initializer_list<int64_t> dims) {
  Tensor out(nullptr, dtype, dims);
  memory_.push_back(device_.allocate(out.num_bytes()));
  out.data = memory_.back().data();
  return out;
}

}  // namespace shoal::test

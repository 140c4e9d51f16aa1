#include "tests/golden/distills/formula_weights.h"

#include <cmath>

namespace shoal {
namespace {

constexpr int64_t kGroup = 128;
constexpr uint64_t kStep = 0x9e3779b97f4a7c15;  // of splitmix64, as the other constants

uint64_t state_of(const std::string& name) {
  uint64_t state = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) state = (state ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return state;
}

uint64_t word(uint64_t state, uint64_t index) {
  uint64_t z = state + (index + 1) * kStep;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// -128 .. 127
float signed_byte(uint64_t state, int64_t i) {
  return static_cast<float>((word(state, i / 8) >> (i % 8 * 8)) & 0xff) - 128.0f;
}

// Of the nearest exponent, ties to even as Python's round().
float power_of_two(double x) { return std::ldexp(1.0f, static_cast<int>(std::nearbyint(std::log2(x)))); }

}  // namespace

Tensor FormulaWeights::place(DType dtype, std::initializer_list<int64_t> dims, const void* values) {
  Tensor tensor(nullptr, dtype, dims);
  buffers_.push_back(device_.allocate(std::max<int64_t>(tensor.num_bytes(), 1)));
  tensor.data = buffers_.back().data();
  if (values != nullptr) device_.copy_to_device(tensor.data, values, tensor.num_bytes());
  return tensor;
}

Weight FormulaWeights::int4(const std::string& name, int64_t k, Range rows, Range cols) {
  SHOAL_CHECK(cols.begin % 16 == 0 && cols.size() % 16 == 0 && k % 16 == 0,
              "{}: columns [{}, {}) of {}", name, cols.begin, cols.end, k);
  const uint64_t numbers_state = state_of(name), scale_state = state_of(name + ".scale");
  // A word is 16 numbers of 0 .. 15, of which 8 is taken: in two's complement that flips the top bit.
  std::vector<uint64_t> numbers;
  numbers.reserve(rows.size() * cols.size() / 16);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t w = (i * k + cols.begin) / 16; w < (i * k + cols.end) / 16; ++w) {
      numbers.push_back(word(numbers_state, w) ^ 0x8888888888888888);
    }
  }
  const int64_t groups = (k + kGroup - 1) / kGroup;
  const Range held = {cols.begin / kGroup, (cols.end + kGroup - 1) / kGroup};
  const float base = power_of_two(1 / (4.6 * std::sqrt(static_cast<double>(k))));
  std::vector<float> scales;
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t g = held.begin; g < held.end; ++g) {
      scales.push_back((signed_byte(scale_state, i * groups + g) / 256 + 1) * base);
    }
  }
  Weight weight;
  weight.data = place(DType::kI4x2, {rows.size(), cols.size() / 2}, numbers.data());
  weight.scale = place(DType::kF32, {rows.size(), held.size()}, scales.data());
  weight.block_rows = 1;
  weight.block_cols = kGroup;
  weight.col_offset = static_cast<int32_t>(cols.begin % kGroup);
  return weight;
}

Weight FormulaWeights::matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                              bool keep_f32) {
  const std::string full = name + ".weight";
  const bool embedding = name == "model.embed_tokens", head = name == "lm_head";
  if (!embedding && !head) return int4(full, k, rows, cols);
  SHOAL_CHECK(cols == Range({0, k}), "{}: columns [{}, {}) of {}", name, cols.begin, cols.end, k);
  const uint64_t state = state_of(full);
  const float factor =
      embedding ? 1.0f / 256 : power_of_two(1 / std::sqrt(static_cast<double>(k))) / 64;
  std::vector<BF16> values;
  for (int64_t i = rows.begin * k; i < rows.end * k; ++i) {
    values.push_back(to_bf16(signed_byte(state, i) * factor));  // exact: 8 bits
  }
  return {.data = place(DType::kBF16, {rows.size(), k}, values.data())};
}

Tensor FormulaWeights::vector(const std::string& name, int64_t n, Range range) {
  const bool norm = name.find("norm") != std::string::npos;
  const uint64_t state = state_of(name);
  std::vector<float> values;
  for (int64_t i = range.begin; i < range.end; ++i) {
    values.push_back(norm ? signed_byte(state, i) / 512 + 1 : signed_byte(state, i) / 1024);
  }
  return place(DType::kF32, {range.size()}, values.data());
}

Tensor FormulaWeights::allocate(const std::string& label, DType dtype,
                                std::initializer_list<int64_t> dims) {
  return place(dtype, dims, nullptr);
}

}  // namespace shoal

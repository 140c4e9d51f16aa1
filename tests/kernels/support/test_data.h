// Inputs for the kernel tests: tensors that own their memory, random values, every SIMD target.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops.h"

namespace shoal::test {

// A tensor whose memory is exactly as large as its elements need, so that a sanitizer sees a kernel
// that reads or writes past them.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType dtype, std::initializer_list<int64_t> dims);
  // [rows, cols] with `gap` untouched elements between rows.
  static HostTensor strided(DType dtype, int64_t rows, int64_t cols, int64_t gap);
  static HostTensor ints(std::initializer_list<int64_t> dims, const std::vector<int32_t>& values);

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }
  HostTensor clone() const;
  std::vector<std::byte> bytes() const;  // of the elements, row by row, gaps left out
  std::span<std::byte> memory() const { return {memory_.get(), static_cast<size_t>(bytes_)}; }

 private:
  std::shared_ptr<std::byte[]> memory_;
  int64_t bytes_ = 0;
  Tensor view_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  float normal(float deviation = 1) {
    return std::normal_distribution<float>(0, deviation)(engine_);
  }
  // Normal values, rounded to the tensor's type; I32 tensors get values below 100.
  void fill(const Tensor& tensor, float deviation = 1);
  HostTensor tensor(DType dtype, std::initializer_list<int64_t> dims, float deviation = 1);
  std::vector<int32_t> permutation(int64_t n);

 private:
  std::mt19937 engine_;
};

// A random weight that keeps its memory. FP8: blocks of block x block, INT8 and INT4: of 1 x block; the
// shard begins at (row_offset, col_offset) inside its first block (integers: row_offset is 0, and INT4
// wants an even k, block and col_offset); asymmetric (integers): with a min per group.
struct HostWeight {
  HostTensor data, scale, min;
  Weight weight;
};
HostWeight random_weight(Random& random, DType dtype, int64_t n, int64_t k, int32_t block = 128,
                         int32_t row_offset = 0, int32_t col_offset = 0,
                         bool asymmetric = false);

// A type of weights, and whether its groups have a min.
struct WeightFormat {
  DType type;
  bool min = false;
};
std::string to_string(WeightFormat format);
const std::vector<WeightFormat>& weight_formats();  // all that a back end multiplies with

// Runs body once per SIMD target that was compiled and that this machine has, with that target
// chosen for all verbs, and then restores the choice. The body should INFO(the name).
void for_each_target(const std::function<void(const std::string& name)>& body);

}  // namespace shoal::test

// A WeightSource over matrices made up in memory. Slices are copies in device memory, cut as a checkpoint
// cuts them.
#pragma once

#include <list>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/device.h"
#include "parallel/weight_source.h"

namespace shoal::test {

class FakeWeights final : public WeightSource {
 public:
  // The slices are memory of `device`, which must outlive this.
  explicit FakeWeights(Device& device) : device_(device) {}

  // Made-up values, different for every name.
  void add_f32(const std::string& name, int64_t n, int64_t k);
  void add_fp8(const std::string& name, int64_t n, int64_t k, int32_t block);
  void add_vector(const std::string& name, int64_t n);

  // The value that the whole weight has at (i, j), decoded.
  double value(const std::string& name, int64_t i, int64_t j) const;
  double vector_value(const std::string& name, int64_t i) const;
  // Elements handed out so far: a layer must ask for no more than its share.
  int64_t elements_read() const { return elements_read_; }

  bool has(const std::string& name) const override;
  Weight matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                bool keep_f32) override;
  Tensor vector(const std::string& name, int64_t n, Range range) override;
  Tensor allocate(const std::string& label, DType dtype,
                  std::initializer_list<int64_t> dims) override;

 private:
  struct Matrix {
    int64_t n = 0, k = 0;
    int32_t block = 0;          // 0: F32
    std::vector<float> values;  // [n, k], before scaling
    std::vector<float> scales;  // [blocks of n, blocks of k]
  };

  std::map<std::string, Matrix> matrices_;
  std::map<std::string, std::vector<float>> vectors_;
  Device& device_;
  std::list<Buffer> memory_;
  int64_t elements_read_ = 0;
};

}  // namespace shoal::test

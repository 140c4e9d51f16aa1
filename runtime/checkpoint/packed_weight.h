// PackedWeight: what the integer formats have in common: codes of 4 or 8 bits, one scale and one zero
// point for each group of columns of a row. value = (code - zero) * scale.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/checkpoint/tensor_ref.h"
#include "runtime/model/quantization_config.h"

namespace shoal {

class PackedWeight : public StoredWeight {
 public:
  struct Shape {
    int64_t n = 0, k = 0;
    int bits = 4;             // 4 or 8
    int64_t group = 0;        // columns that share a scale; k: the whole row
    bool symmetric = false;   // every zero point has to be 0
    std::string where;        // for errors
  };
  // Throws InvalidInput for a group or a row that cannot be held: see form().
  explicit PackedWeight(Shape shape);

  std::string where() const override { return shape_.where; }
  int64_t n() const override { return shape_.n; }
  int64_t k() const override { return shape_.k; }
  // Groups are those of the kernels: a group of 256 is held as two of 128 with the same scale, a whole
  // row of int4 as groups of 128. A group has to be a multiple of 16.
  WeightForm form() const override;
  void read(Range rows, Range cols, std::byte* numbers, float* scale, float* min) const override;
  uint64_t stored_bytes(Range rows, Range cols) const override;
  int64_t group() const { return shape_.group; }

 protected:
  friend class ColumnWeight;
  // Signed codes of rows x cols, as form().dtype.
  virtual void read_codes(Range rows, Range cols, std::byte* out) const = 0;
  // [rows, groups], row-major: scales, and zero points as signed codes.
  virtual void read_groups(Range rows, Range groups, float* scale, float* zero) const = 0;
  virtual uint64_t code_bytes(Range rows, Range cols) const = 0;
  virtual uint64_t group_bytes(Range rows, Range groups) const = 0;

  // Codes per 32-bit word, and the words that a range of codes touches.
  int64_t per_word() const { return 32 / shape_.bits; }
  Range words(Range codes) const { return blocks_touched(codes, per_word()); }
  // Code `index` of a row of words that begins with word `first`, unsigned.
  int32_t code(const uint32_t* row, int64_t first, int64_t index) const;
  int32_t half() const { return 1 << (shape_.bits - 1); }

  const Shape shape_;
};

// `weight` with the columns in groups that `group_of` [k] I32 names, in any order (GPTQ's desc_act,
// compressed-tensors' actorder "group"). Kernels know groups of neighbours only, and columns cannot be moved:
// their inputs are the residual stream's. So what is out of order is held as float16, four times as large as
// int4; (code - zero) * scale rounds by 2^-11 of itself at most. Reads group_of. Throws InvalidInput for groups that
// there are not.
std::unique_ptr<StoredWeight> in_groups_of(std::unique_ptr<PackedWeight> weight, const TensorRef& group_of);

// Number of groups along k.
int64_t num_groups(int64_t k, int64_t group);
// [groups, n] in the file -> [rows, groups].
void read_transposed_scales(const TensorRef& scales, int64_t n, Range rows, Range groups,
                            float* out);

// The tensor of a checkpoint called so, if there is one.
using FindTensor = std::function<std::optional<TensorRef>(const std::string&)>;

// `name`'s parts, in the format of config.method. Throw InvalidInput for parts that are missing, have
// the wrong shape or type, or that config does not describe.
std::unique_ptr<StoredWeight> make_compressed_weight(const FindTensor& find,
                                                     const QuantizationConfig& config,
                                                     const std::string& name, int64_t n, int64_t k);
std::unique_ptr<StoredWeight> make_awq_weight(const FindTensor& find,
                                              const QuantizationConfig& config,
                                              const std::string& name, int64_t n, int64_t k);
std::unique_ptr<StoredWeight> make_gptq_weight(const FindTensor& find,
                                               const QuantizationConfig& config,
                                               const std::string& name, int64_t n, int64_t k);

// `find(name)`, or InvalidInput saying that `beside` needs it.
TensorRef require_part(const FindTensor& find, const std::string& name, const TensorRef& beside);
void require_float(const TensorRef& tensor);  // F32, F16 or BF16

}  // namespace shoal

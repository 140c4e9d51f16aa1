// ColumnWeight: a PackedWeight whose columns are in groups in any order, as float16.
#include <cmath>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/checkpoint/packed_weight.h"

namespace shoal {

class ColumnWeight : public StoredWeight {
 public:
  ColumnWeight(std::unique_ptr<PackedWeight> packed, std::vector<int32_t> group_of)
      : packed_(std::move(packed)), group_of_(std::move(group_of)) {}

  std::string where() const override { return packed_->where(); }
  int64_t n() const override { return packed_->n(); }
  int64_t k() const override { return packed_->k(); }
  WeightForm form() const override { return {.dtype = DType::kF16}; }

  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    const PackedWeight::Shape& shape = packed_->shape_;
    const bool int4 = shape.bits == 4;
    // int4 is read by whole bytes.
    const Range read = int4 ? Range{cols.begin / 2 * 2, (cols.end + 1) / 2 * 2} : cols;
    const int64_t row_bytes = read.size() * shape.bits / 8;
    std::vector<std::byte> codes(rows.size() * row_bytes);
    packed_->read_codes(rows, read, codes.data());
    const Range groups = all_groups();
    std::vector<float> scale(rows.size() * groups.size()), zero(scale.size());
    packed_->read_groups(rows, groups, scale.data(), zero.data());
    auto* out = reinterpret_cast<F16*>(numbers);
    for (int64_t i = 0; i < rows.size(); ++i) {
      const auto* row = reinterpret_cast<const int8_t*>(codes.data() + i * row_bytes);
      for (int64_t j = cols.begin; j < cols.end; ++j) {
        const int64_t at = j - read.begin, group = i * groups.size() + group_of_[j];
        const int code = int4 ? (((row[at / 2] >> (at % 2 * 4)) & 15) ^ 8) - 8 : row[at];
        if (shape.symmetric && zero[group] != 0) {
          throw_invalid("{} has the zero point {} in row {}, but config.json calls it symmetric",
                        where(), zero[group], rows.begin + i);
        }
        *out = to_f16((static_cast<float>(code) - zero[group]) * scale[group]);
        if (!std::isfinite(to_float(*out++))) {
          throw_invalid("{} holds values beyond float16 in row {}", where(), rows.begin + i);
        }
      }
    }
  }

  uint64_t stored_bytes(Range rows, Range cols) const override {
    if (rows.size() == 0 || cols.size() == 0) return 0;
    return packed_->code_bytes(rows, cols) + packed_->group_bytes(rows, all_groups());
  }

 private:
  Range all_groups() const { return {0, num_groups(packed_->k(), packed_->shape_.group)}; }

  const std::unique_ptr<PackedWeight> packed_;
  const std::vector<int32_t> group_of_;  // [k]
};

std::unique_ptr<StoredWeight> in_groups_of(std::unique_ptr<PackedWeight> weight,
                                           const TensorRef& group_of) {
  const int64_t k = weight->k(), group = weight->group(), groups = num_groups(k, group);
  std::vector<int32_t> of(k);
  group_of.read(1, {0, k}, {0, 1}, reinterpret_cast<std::byte*>(of.data()));
  bool in_order = true;
  for (int64_t j = 0; j < k; ++j) {
    if (of[j] < 0 || of[j] >= groups) {
      throw_invalid("{} puts column {} into group {} of {}", group_of.where(), j, of[j], groups);
    }
    in_order = in_order && of[j] == j / group;
  }
  if (in_order) return weight;
  return std::make_unique<ColumnWeight>(std::move(weight), std::move(of));
}

}  // namespace shoal

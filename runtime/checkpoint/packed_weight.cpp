#include "runtime/checkpoint/packed_weight.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// The groups that kernels know, widest first.
constexpr int64_t kHeldGroups[] = {128, 64, 32, 16};

int64_t held_group(const PackedWeight::Shape& shape) {
  if (shape.group == shape.k) {
    const bool one = shape.bits == 8 || std::count(std::begin(kHeldGroups), std::end(kHeldGroups), shape.k) > 0;
    return one ? shape.k : kHeldGroups[0];
  }
  for (const int64_t held : kHeldGroups) {
    if (shape.group % held == 0) return held;
  }
  throw_invalid("{} has groups of {} columns; supported are multiples of 16, or the whole row",
                shape.where, shape.group);
}

}  // namespace

PackedWeight::PackedWeight(Shape shape) : shape_(std::move(shape)) {
  SHOAL_CHECK((shape_.bits == 4 || shape_.bits == 8) && shape_.group > 0, "{}: {} bits, groups of {}",
              shape_.where, shape_.bits, shape_.group);
  held_group(shape_);
  if (shape_.bits == 4 && shape_.k % 2 != 0) {
    throw_invalid("{} is int4 with {} columns; an even number is supported", shape_.where, shape_.k);
  }
}

WeightForm PackedWeight::form() const {
  return {.dtype = shape_.bits == 4 ? DType::kI4x2 : DType::kI8,
          .block_rows = 1,
          .block_cols = static_cast<int32_t>(held_group(shape_)),
          .has_min = !shape_.symmetric};
}

void PackedWeight::read(Range rows, Range cols, std::byte* numbers, float* scale,
                        float* min) const {
  read_codes(rows, cols, numbers);
  const Range groups = blocks_touched(cols, shape_.group);
  std::vector<float> scales(rows.size() * groups.size()), zeros(scales.size());
  read_groups(rows, groups, scales.data(), zeros.data());
  const int64_t held = held_group(shape_);
  const Range blocks = blocks_touched(cols, held);
  for (int64_t i = 0; i < rows.size(); ++i) {
    for (int64_t b = blocks.begin; b < blocks.end; ++b) {
      const int64_t at = i * groups.size() + b * held / shape_.group - groups.begin;
      if (shape_.symmetric && zeros[at] != 0) {
        throw_invalid("{} has the zero point {} in row {}, but config.json calls it symmetric",
                      where(), zeros[at], rows.begin + i);
      }
      const int64_t out = i * blocks.size() + b - blocks.begin;
      scale[out] = scales[at];
      if (min != nullptr) min[out] = (0 - zeros[at]) * scales[at];
    }
  }
}

uint64_t PackedWeight::stored_bytes(Range rows, Range cols) const {
  if (rows.size() == 0 || cols.size() == 0) return 0;
  return code_bytes(rows, cols) + group_bytes(rows, blocks_touched(cols, shape_.group));
}

int32_t PackedWeight::code(const uint32_t* row, int64_t first, int64_t index) const {
  const uint32_t word = row[index / per_word() - first];
  const auto shift = static_cast<uint32_t>(index % per_word() * shape_.bits);
  return static_cast<int32_t>(word >> shift & ((1u << shape_.bits) - 1));
}

int64_t num_groups(int64_t k, int64_t group) { return (k + group - 1) / group; }

void read_transposed_scales(const TensorRef& scales, int64_t n, Range rows, Range groups,
                            float* out) {
  std::vector<float> stored(rows.size() * groups.size());  // [groups, rows]
  scales.read_finite(n, groups, rows, "scales", stored.data());
  for (int64_t g = 0; g < groups.size(); ++g) {
    for (int64_t i = 0; i < rows.size(); ++i) {
      out[i * groups.size() + g] = stored[g * rows.size() + i];
    }
  }
}

TensorRef require_part(const FindTensor& find, const std::string& name, const TensorRef& beside) {
  std::optional<TensorRef> tensor = find(name);
  if (!tensor) throw_invalid("{} is quantised, but {} is missing", beside.where(), in_quotes(name));
  return *std::move(tensor);
}

void require_float(const TensorRef& tensor) {
  const DType type = tensor.dtype();
  if (type != DType::kF32 && type != DType::kF16 && type != DType::kBF16) {
    throw_invalid("{} has the type {}, should be float32, float16 or bfloat16", tensor.where(),
                  dtype_name(type));
  }
}

}  // namespace shoal

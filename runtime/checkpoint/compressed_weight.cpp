// The layouts of compressed-tensors (vLLM's):
//   pack-quantized  weight_packed [n, k * bits / 32] I32, weight_shape [2]: n, k; zero points
//                   [n * bits / 32, groups] I32, or in older files [n, groups] I8
//   int-quantized   weight [n, k] I8; zero points [n, groups] I8
//   float-quantized weight [n, k] F8_E4M3
// each with weight_scale: [n, groups], [n, 1] (channel), [1] (tensor), or a block each.
#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/packed_weight.h"
#include "runtime/checkpoint/plain_weight.h"

namespace shoal {
namespace {

class CompressedWeight : public PackedWeight {
 public:
  // `checked_bytes`: of the file, read already to check it.
  CompressedWeight(Shape shape, TensorRef codes, TensorRef scales, std::optional<TensorRef> zeros,
                   uint64_t checked_bytes)
      : PackedWeight(std::move(shape)),
        codes_(std::move(codes)),
        scales_(std::move(scales)),
        zeros_(std::move(zeros)),
        checked_bytes_(checked_bytes) {}

 protected:
  void read_codes(Range rows, Range cols, std::byte* out) const override {
    if (codes_.dtype() == DType::kI8) {
      codes_.read(shape_.k, rows, cols, out);
      return;
    }
    // Words of a row are our packed bytes, with the top bit of each code flipped.
    const Range packed = words(cols);
    const auto flip = static_cast<std::byte>(shape_.bits == 4 ? 0x88 : 0x80);
    std::vector<std::byte> stored(rows.size() * packed.size() * 4);
    codes_.read(words({0, shape_.k}).size(), rows, packed, stored.data());
    const int64_t row_bytes = cols.size() * shape_.bits / 8;
    const int64_t skipped = cols.begin * shape_.bits / 8 - packed.begin * 4;
    for (int64_t i = 0; i < rows.size(); ++i) {
      const std::byte* row = stored.data() + i * packed.size() * 4 + skipped;
      for (int64_t j = 0; j < row_bytes; ++j) *out++ = row[j] ^ flip;
    }
  }

  void read_groups(Range rows, Range groups, float* scale, float* zero) const override {
    const int64_t columns = num_groups(shape_.k, shape_.group);
    scales_.read_finite(columns, rows, groups, "scales", scale);
    const int64_t count = rows.size() * groups.size();
    if (!zeros_) {
      std::fill(zero, zero + count, 0.0f);
    } else if (zeros_->dtype() == DType::kI8) {
      std::vector<int8_t> stored(count);
      zeros_->read(columns, rows, groups, reinterpret_cast<std::byte*>(stored.data()));
      for (int64_t i = 0; i < count; ++i) zero[i] = static_cast<float>(stored[i]);
    } else {
      const Range packed = words(rows);
      std::vector<uint32_t> stored(packed.size() * groups.size());  // [words, groups]
      zeros_->read(columns, packed, groups, reinterpret_cast<std::byte*>(stored.data()));
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int64_t row = rows.begin + i;
        for (int64_t g = 0; g < groups.size(); ++g) {
          const uint32_t word = stored[(row / per_word() - packed.begin) * groups.size() + g];
          zero[i * groups.size() + g] =
              static_cast<float>(code(&word, row / per_word(), row) - half());
        }
      }
    }
  }

  uint64_t code_bytes(Range rows, Range cols) const override {
    const int64_t per_row = codes_.dtype() == DType::kI8 ? cols.size() : words(cols).size() * 4;
    return static_cast<uint64_t>(rows.size() * per_row) + checked_bytes_;
  }
  uint64_t group_bytes(Range rows, Range groups) const override {
    int64_t bytes = rows.size() * groups.size() * dtype_size(scales_.dtype());
    if (zeros_) {
      bytes += zeros_->dtype() == DType::kI8 ? rows.size() * groups.size()
                                             : words(rows).size() * groups.size() * 4;
    }
    return static_cast<uint64_t>(bytes);
  }

 private:
  const TensorRef codes_, scales_;
  const std::optional<TensorRef> zeros_;
  const uint64_t checked_bytes_;
};

[[noreturn]] void not_described(const TensorRef& tensor, const std::string& is,
                                const QuantizationConfig& config) {
  throw_invalid("{} is {}, but config.json's config_groups say {}", tensor.where(), is,
                describe(config));
}

// weight_shape has to say [n, k]; its values are the only ones read when a checkpoint is opened.
void check_shape(const TensorRef& shape, int64_t n, int64_t k) {
  shape.require_shape({2});
  int64_t stored[2] = {};
  if (shape.dtype() == DType::kI64) {
    shape.read(2, {0, 1}, {0, 2}, reinterpret_cast<std::byte*>(stored));
  } else {
    shape.require_type(DType::kI32);
    int32_t narrow[2];
    shape.read(2, {0, 1}, {0, 2}, reinterpret_cast<std::byte*>(narrow));
    std::copy(narrow, narrow + 2, stored);
  }
  if (stored[0] != n || stored[1] != k) {
    throw_invalid("{} says [{}, {}], config.json asks for [{}, {}]", shape.where(), stored[0],
                  stored[1], n, k);
  }
}

// Integers: the scheme whose groups the scales have.
const WeightScheme& integer_scheme(const TensorRef& codes, const TensorRef& scales,
                                   const std::vector<WeightScheme>& schemes, int bits, int64_t n,
                                   int64_t k, bool zeros, const QuantizationConfig& config) {
  for (const WeightScheme& scheme : schemes) {
    if (scheme.is_float || (bits > 0 && scheme.bits != bits) || (!zeros && !scheme.symmetric)) {
      continue;
    }
    const std::vector<int64_t> shape = {n, num_groups(k, scheme.group_of(k))};
    if (scales.info->shape == shape) return scheme;
  }
  not_described(codes,
                fmt::format("int{} with scales [{}]{}", bits > 0 ? bits : 8,
                            fmt::join(scales.info->shape, ", "), zeros ? " and zero points" : ""),
                config);
}

std::unique_ptr<StoredWeight> make_float_weight(TensorRef codes, TensorRef scales,
                                                const QuantizationConfig& config, int64_t n,
                                                int64_t k) {
  require_float(scales);
  const std::vector<int64_t>& shape = scales.info->shape;
  for (const WeightScheme& scheme : config.schemes) {
    if (!scheme.is_float) continue;
    const int64_t rows = scheme.block_rows > 0 ? scheme.block_rows : scheme.whole_tensor ? n : 1;
    const int64_t cols = scheme.block_cols > 0 ? scheme.block_cols : scheme.group_of(k);
    const std::vector<int64_t> expected = {num_groups(n, rows), num_groups(k, cols)};
    const bool scalar = scheme.whole_tensor && scales.info->num_elements() == 1;
    if (shape == expected || scalar) {
      return make_fp8_weight(std::move(codes), std::move(scales), n, k, static_cast<int32_t>(rows),
                             static_cast<int32_t>(cols));
    }
  }
  not_described(codes, fmt::format("float8_e4m3 with scales [{}]", fmt::join(shape, ", ")), config);
}

}  // namespace

std::unique_ptr<StoredWeight> make_compressed_weight(const FindTensor& find,
                                                     const QuantizationConfig& config,
                                                     const std::string& name, int64_t n,
                                                     int64_t k) {
  const std::optional<TensorRef> packed = find(name + ".weight_packed");
  TensorRef codes = packed ? *packed : *find(name + ".weight");
  TensorRef scales = require_part(find, name + ".weight_scale", codes);
  if (codes.dtype() == DType::kF8E4M3) {
    codes.require_shape({n, k});
    return make_float_weight(std::move(codes), std::move(scales), config, n, k);
  }
  require_float(scales);
  uint64_t checked_bytes = 0;
  int bits = 0;  // in a byte each: 8, or 4 with a byte to spare
  if (packed) {
    codes.require_type(DType::kI32);
    const TensorRef stored_shape = require_part(find, name + ".weight_shape", codes);
    check_shape(stored_shape, n, k);
    checked_bytes = stored_shape.info->num_bytes();
    for (const int some : {4, 8}) {
      if (codes.info->shape == std::vector<int64_t>{n, (k * some + 31) / 32}) bits = some;
    }
    if (bits == 0) {
      throw_invalid("{} has the shape [{}]; [{}, {}] as int4 or int8 would need {} or {} words a row",
                    codes.where(), fmt::join(codes.info->shape, ", "), n, k, (k * 4 + 31) / 32,
                    (k * 8 + 31) / 32);
    }
  } else {
    codes.require_type(DType::kI8);
    codes.require_shape({n, k});
  }
  const std::optional<TensorRef> order = find(name + ".weight_g_idx");
  if (order) {
    order->require_type(DType::kI32);
    order->require_shape({k});
    checked_bytes += order->info->num_bytes();
  }
  const std::optional<TensorRef> zeros = find(name + ".weight_zero_point");
  const WeightScheme& scheme =
      integer_scheme(codes, scales, config.schemes, bits, n, k, zeros.has_value(), config);
  const int64_t groups = num_groups(k, scheme.group_of(k));
  if (bits == 0) bits = 8;
  if (zeros && zeros->dtype() == DType::kI8) {
    zeros->require_shape({n, groups});
  } else if (zeros) {
    zeros->require_type(DType::kI32);
    zeros->require_shape({(n * bits + 31) / 32, groups});
  }
  PackedWeight::Shape shape{n, k, bits, scheme.group_of(k), scheme.symmetric, codes.where()};
  auto weight = std::make_unique<CompressedWeight>(std::move(shape), std::move(codes),
                                                   std::move(scales), zeros, checked_bytes);
  if (!order) return weight;
  return in_groups_of(std::move(weight), *order);
}

}  // namespace shoal

// GPTQ's layout (AutoGPTQ, GPTQModel): the transpose, packed along k.
//   qweight [k * bits / 32, n] I32, qzeros [groups, n * bits / 32] I32, scales [groups, n],
//   g_idx [k] I32: the group of each column.
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/checkpoint/packed_weight.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

class GptqWeight : public PackedWeight {
 public:
  struct Parts {
    TensorRef codes, zeros, scales;
    std::optional<TensorRef> group_of;
    int32_t zero_offset = 1;
    bool any_order = false;
  };
  GptqWeight(Shape shape, Parts parts) : PackedWeight(std::move(shape)), parts_(std::move(parts)) {}

 protected:
  void read_codes(Range rows, Range cols, std::byte* out) const override {
    if (!parts_.any_order) check_order(cols);
    // Codes of a word are neighbours along k: a column of words is a row of our packed bytes, with
    // the top bit of each code flipped to make it signed.
    const Range packed = words(cols);
    const uint32_t flip = shape_.bits == 4 ? 0x88888888 : 0x80808080;
    std::vector<uint32_t> stored(packed.size() * rows.size());  // [words, rows]
    parts_.codes.read(shape_.n, packed, rows, reinterpret_cast<std::byte*>(stored.data()));
    const int64_t row_bytes = cols.size() * shape_.bits / 8;
    const int64_t skipped = cols.begin * shape_.bits / 8 - packed.begin * 4;
    std::vector<uint32_t> row(packed.size());
    for (int64_t i = 0; i < rows.size(); ++i, out += row_bytes) {
      for (int64_t w = 0; w < packed.size(); ++w) row[w] = stored[w * rows.size() + i] ^ flip;
      std::memcpy(out, reinterpret_cast<const std::byte*>(row.data()) + skipped, row_bytes);
    }
  }

  void read_groups(Range rows, Range groups, float* scale, float* zero) const override {
    read_transposed_scales(parts_.scales, shape_.n, rows, groups, scale);
    const Range packed = words(rows);
    std::vector<uint32_t> stored(groups.size() * packed.size());
    parts_.zeros.read(words({0, shape_.n}).size(), groups, packed,
                      reinterpret_cast<std::byte*>(stored.data()));
    for (int64_t g = 0; g < groups.size(); ++g) {
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int32_t stored_zero =
            code(stored.data() + g * packed.size(), packed.begin, rows.begin + i);
        zero[i * groups.size() + g] =
            static_cast<float>(stored_zero + parts_.zero_offset - half());
      }
    }
  }

  uint64_t code_bytes(Range rows, Range cols) const override {
    return static_cast<uint64_t>(words(cols).size() * rows.size() * 4 +
                                 (parts_.group_of ? cols.size() * 4 : 0));
  }
  uint64_t group_bytes(Range rows, Range groups) const override {
    return static_cast<uint64_t>(groups.size() * (rows.size() * dtype_size(parts_.scales.dtype()) +
                                                  words(rows).size() * 4));
  }

 private:
  // Columns in the order of their groups.
  void check_order(Range cols) const {
    if (!parts_.group_of) return;
    std::vector<int32_t> group_of(cols.size());
    parts_.group_of->read(1, cols, {0, 1}, reinterpret_cast<std::byte*>(group_of.data()));
    for (int64_t j = 0; j < cols.size(); ++j) {
      if (group_of[j] == (cols.begin + j) / shape_.group) continue;
      throw_invalid(
          "{} puts column {} into group {}, but config.json says desc_act false: that columns are in order",
          parts_.group_of->where(), cols.begin + j, group_of[j]);
    }
  }

  const Parts parts_;
};

}  // namespace

std::unique_ptr<StoredWeight> make_gptq_weight(const FindTensor& find,
                                               const QuantizationConfig& config,
                                               const std::string& name, int64_t n, int64_t k) {
  const WeightScheme& scheme = config.schemes.at(0);
  GptqWeight::Parts parts;
  parts.codes = *find(name + ".qweight");
  parts.zeros = require_part(find, name + ".qzeros", parts.codes);
  parts.scales = require_part(find, name + ".scales", parts.codes);
  parts.group_of = find(name + ".g_idx");
  parts.zero_offset = config.gptq_zero_offset;
  const int64_t group = scheme.group_of(k), per_word = 32 / scheme.bits;
  const int64_t groups = num_groups(k, group);
  parts.codes.require_type(DType::kI32);
  parts.codes.require_shape({(k + per_word - 1) / per_word, n});
  parts.zeros.require_type(DType::kI32);
  parts.zeros.require_shape({groups, (n + per_word - 1) / per_word});
  require_float(parts.scales);
  parts.scales.require_shape({groups, n});
  if (parts.group_of) {
    parts.group_of->require_type(DType::kI32);
    parts.group_of->require_shape({k});
  }
  parts.any_order = config.any_order && groups > 1;
  PackedWeight::Shape shape{n, k, scheme.bits, group, scheme.symmetric, parts.codes.where()};
  auto weight = std::make_unique<GptqWeight>(std::move(shape), parts);
  if (!parts.any_order) return weight;
  if (!parts.group_of) throw_invalid("{}: config.json says desc_act, but {} is missing", weight->where(), in_quotes(name + ".g_idx"));
  return in_groups_of(std::move(weight), *parts.group_of);
}

}  // namespace shoal

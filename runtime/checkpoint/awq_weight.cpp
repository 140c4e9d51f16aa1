// AWQ's "GEMM" layout (AutoAWQ): the transpose, packed along n in the order that its kernel reads.
//   qweight [k, n / 8] I32, qzeros [groups, n / 8] I32, scales [groups, n].
#include <array>

#include "kernels/base/error.h"
#include "runtime/checkpoint/packed_weight.h"

namespace shoal {
namespace {

// Which nibble of a word holds each of its eight columns: 0, 2, 4, 6 lie in the low half-word's
// nibbles, 1, 3, 5, 7 in the high one's.
constexpr std::array<uint32_t, 8> kShiftOf = {0, 16, 4, 20, 8, 24, 12, 28};

class AwqWeight : public PackedWeight {
 public:
  AwqWeight(Shape shape, TensorRef codes, TensorRef zeros, TensorRef scales)
      : PackedWeight(std::move(shape)),
        codes_(std::move(codes)),
        zeros_(std::move(zeros)),
        scales_(std::move(scales)) {}

 protected:
  void read_codes(Range rows, Range cols, std::byte* out) const override {
    const Range packed = words(rows);
    std::vector<uint32_t> stored(cols.size() * packed.size());  // [cols, words]
    codes_.read(shape_.n / 8, cols, packed, reinterpret_cast<std::byte*>(stored.data()));
    for (int64_t i = 0; i < rows.size(); ++i) {
      const int64_t row = rows.begin + i;
      const uint32_t* word = stored.data() + row / 8 - packed.begin;
      const uint32_t shift = kShiftOf[row % 8];
      for (int64_t j = 0; j < cols.size(); j += 2, word += 2 * packed.size()) {
        const uint32_t low = word[0] >> shift & 15, high = word[packed.size()] >> shift & 15;
        // Flipping the top bit of a code takes 8 from it: signed.
        *out++ = static_cast<std::byte>((low | high << 4) ^ 0x88);
      }
    }
  }

  void read_groups(Range rows, Range groups, float* scale, float* zero) const override {
    read_transposed_scales(scales_, shape_.n, rows, groups, scale);
    const Range packed = words(rows);
    std::vector<uint32_t> stored(groups.size() * packed.size());
    zeros_.read(shape_.n / 8, groups, packed, reinterpret_cast<std::byte*>(stored.data()));
    for (int64_t g = 0; g < groups.size(); ++g) {
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int64_t row = rows.begin + i;
        const uint32_t word = stored[g * packed.size() + row / 8 - packed.begin];
        zero[i * groups.size() + g] =
            static_cast<float>(static_cast<int32_t>(word >> kShiftOf[row % 8] & 15) - half());
      }
    }
  }

  uint64_t code_bytes(Range rows, Range cols) const override {
    return static_cast<uint64_t>(words(rows).size() * cols.size() * 4);
  }
  uint64_t group_bytes(Range rows, Range groups) const override {
    return static_cast<uint64_t>(groups.size() * (rows.size() * dtype_size(scales_.dtype()) +
                                                  words(rows).size() * 4));
  }

 private:
  const TensorRef codes_, zeros_, scales_;
};

}  // namespace

std::unique_ptr<StoredWeight> make_awq_weight(const FindTensor& find,
                                              const QuantizationConfig& config,
                                              const std::string& name, int64_t n, int64_t k) {
  const WeightScheme& scheme = config.schemes.at(0);
  TensorRef codes = *find(name + ".qweight");
  TensorRef zeros = require_part(find, name + ".qzeros", codes);
  TensorRef scales = require_part(find, name + ".scales", codes);
  const int64_t group = scheme.group_of(k), groups = num_groups(k, group);
  if (n % 8 != 0) {
    throw_invalid("{} packs {} outputs, which is not a multiple of 8", codes.where(), n);
  }
  codes.require_type(DType::kI32);
  codes.require_shape({k, n / 8});
  zeros.require_type(DType::kI32);
  zeros.require_shape({groups, n / 8});
  require_float(scales);
  scales.require_shape({groups, n});
  PackedWeight::Shape shape{n, k, scheme.bits, group, /*symmetric=*/false, codes.where()};
  return std::make_unique<AwqWeight>(std::move(shape), std::move(codes), std::move(zeros),
                                     std::move(scales));
}

}  // namespace shoal

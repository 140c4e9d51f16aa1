#include "runtime/offload/expert_image.h"

namespace shoal {
namespace {

// The rows of a matrix, and the kernels' widest reads, begin at a cache line.
constexpr uint64_t kLine = 64;

uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

ExpertImage::ExpertImage(std::array<WeightForm, kParts> forms, int64_t hidden, int64_t inner)
    : forms_(forms), hidden_(hidden), inner_(inner) {
  const auto place = [this](uint64_t size) {
    const uint64_t at = bytes_;
    bytes_ = round_up(bytes_ + size, kLine);
    return at;
  };
  for (int part = 0; part < kParts; ++part) {
    const WeightForm& form = forms_[part];
    const uint64_t numbers = static_cast<uint64_t>(n(part)) * form.row_bytes(k(part));
    const uint64_t all = form.bytes({0, n(part)}, {0, k(part)});
    weight_bytes_ += all;
    places_[part].numbers = place(numbers);
    if (!has_scales(form.dtype)) continue;
    const uint64_t scales = (all - numbers) / (form.has_min ? 2 : 1);
    places_[part].scale = place(scales);
    if (form.has_min) places_[part].min = place(scales);
  }
  bytes_ = round_up(bytes_, kAlignment);
}

Weight ExpertImage::weight(int part, std::byte* memory) const {
  const WeightForm& form = forms_[part];
  const Place& place = places_[part];
  Weight weight;
  weight.data = Tensor(memory + place.numbers, form.dtype,
                       {n(part), form.dtype == DType::kI4x2 ? k(part) / 2 : k(part)});
  if (!has_scales(form.dtype)) return weight;
  weight.block_rows = form.block_rows;
  weight.block_cols = form.block_cols;
  const int64_t rows = blocks_touched({0, n(part)}, form.block_rows).size();
  const int64_t cols = blocks_touched({0, k(part)}, form.block_cols).size();
  weight.scale = Tensor(memory + place.scale, DType::kF32, {rows, cols});
  if (form.has_min) weight.min = Tensor(memory + place.min, DType::kF32, {rows, cols});
  return weight;
}

}  // namespace shoal

#include "runtime/quantization/quantized_weight.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/quantization/decode.h"
#include "runtime/quantization/rounding.h"
#include "runtime/quantization/wrapped_checkpoint.h"

namespace shoal {
namespace {

// Rows decoded at a time: bounds the floats held to 64 rows, of FP8 to a row of blocks.
constexpr int64_t kSlabRows = 64;

class QuantizedWeight : public StoredWeight {
 public:
  QuantizedWeight(std::unique_ptr<StoredWeight> base, const QuantizationScheme& scheme)
      : base_(std::move(base)), zero_(scheme.zero()), form_(*scheme.form(base_->k())) {}

  std::string where() const override { return base_->where(); }
  int64_t n() const override { return base_->n(); }
  int64_t k() const override { return base_->k(); }
  WeightForm form() const override { return form_; }

  void read(Range rows, Range cols, std::byte* numbers, float* scale, float* min) const override {
    const Range blocks = blocks_touched(cols, form_.block_cols);
    const int64_t slab = form_.dtype == DType::kF8E4M3 ? form_.block_rows : kSlabRows;
    const int64_t row_bytes = static_cast<int64_t>(form_.row_bytes(cols.size()));
    for (int64_t begin = rows.begin; begin < rows.end;) {
      const Range part{begin, std::min((begin / slab + 1) * slab, rows.end)};
      if (form_.dtype == DType::kF8E4M3) {
        read_fp8(part, cols, numbers, scale);
        scale += blocks.size();
      } else {
        read_integers(part, cols, numbers, scale, min);
        scale += part.size() * blocks.size();
        if (min != nullptr) min += part.size() * blocks.size();
      }
      numbers += part.size() * row_bytes;
      begin = part.end;
    }
  }

  uint64_t stored_bytes(Range rows, Range cols) const override {
    if (rows.size() == 0 || cols.size() == 0) return 0;
    return base_->stored_bytes(whole(rows, form_.block_rows, n()),
                               whole(cols, form_.block_cols, k()));
  }

 private:
  // The range widened to whole blocks.
  static Range whole(Range range, int64_t block, int64_t end) {
    const Range blocks = blocks_touched(range, block);
    return {blocks.begin * block, std::min(blocks.end * block, end)};
  }

  std::vector<float> decoded(Range rows, Range cols) const {
    std::vector<float> values(rows.size() * cols.size());
    decode_weight(*base_, rows, cols, values.data());
    return values;
  }

  // `rows` lie in one row of blocks.
  void read_fp8(Range rows, Range cols, std::byte* numbers, float* scale) const {
    const Range all_rows = whole(rows, form_.block_rows, n());
    const Range all_cols = whole(cols, form_.block_cols, k());
    const std::vector<float> values = decoded(all_rows, all_cols);
    std::vector<F8E4M3> codes(rows.size() * all_cols.size());
    const int64_t stride = all_cols.size();
    for (int64_t at = 0; at < stride; at += form_.block_cols) {
      const int64_t width = std::min<int64_t>(form_.block_cols, stride - at);
      *scale = choose_fp8_scale(values.data() + at, stride, all_rows.size(), width);
      round_to_fp8(values.data() + (rows.begin - all_rows.begin) * stride + at, stride, rows.size(),
                   width, *scale++, codes.data() + at, stride);
    }
    for (int64_t i = 0; i < rows.size(); ++i, numbers += cols.size()) {
      std::memcpy(numbers, codes.data() + i * stride + cols.begin - all_cols.begin, cols.size());
    }
  }

  void read_integers(Range rows, Range cols, std::byte* numbers, float* scale, float* min) const {
    const int bits = form_.dtype == DType::kI4x2 ? 4 : 8;
    const Range all_cols = whole(cols, form_.block_cols, k());
    const std::vector<float> values = decoded(rows, all_cols);
    std::vector<int8_t> codes(all_cols.size());
    for (int64_t i = 0; i < rows.size(); ++i) {
      const std::span<const float> row(values.data() + i * all_cols.size(), all_cols.size());
      for (size_t at = 0; at < row.size(); at += form_.block_cols) {
        const auto group =
            row.subspan(at, std::min<size_t>(form_.block_cols, row.size() - at));
        const GroupScale chosen = choose_scale(group, bits, zero_);
        round_to_codes(group, chosen, bits, codes.data() + at);
        *scale++ = chosen.scale;
        if (min != nullptr) *min++ = chosen.min;
      }
      const int8_t* used = codes.data() + cols.begin - all_cols.begin;
      if (bits == 8) {
        std::memcpy(numbers, used, cols.size());
        numbers += cols.size();
        continue;
      }
      for (int64_t j = 0; j < cols.size(); j += 2) {
        *numbers++ = static_cast<std::byte>((used[j] & 15) | (used[j + 1] & 15) << 4);
      }
    }
  }

  const std::unique_ptr<StoredWeight> base_;
  const ZeroPoint zero_;
  const WeightForm form_;
};

class QuantizingCheckpoint : public WrappedCheckpoint {
 public:
  QuantizingCheckpoint(std::unique_ptr<Checkpoint> base, QuantizationScheme scheme)
      : WrappedCheckpoint(std::move(base)), scheme_(std::move(scheme)) {}

  std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                       int64_t k) const override {
    std::unique_ptr<StoredWeight> stored = base_->matrix(name, n, k);
    if (!is_quantizable(name) || !scheme_.form(k)) return stored;
    if (!stays_as_stored(stored->form().dtype, scheme_)) {
      return quantize_weight(std::move(stored), scheme_);
    }
    const std::scoped_lock lock(mutex_);
    kept_.insert(name);
    return stored;
  }

  size_t kept() const {
    const std::scoped_lock lock(mutex_);
    return kept_.size();
  }

 private:
  const QuantizationScheme scheme_;
  mutable std::mutex mutex_;
  mutable std::set<std::string> kept_;
};

}  // namespace

size_t matrices_kept(const Checkpoint& checkpoint) {
  const auto* quantizing = dynamic_cast<const QuantizingCheckpoint*>(&checkpoint);
  return quantizing == nullptr ? 0 : quantizing->kept();
}

std::unique_ptr<StoredWeight> quantize_weight(std::unique_ptr<StoredWeight> base,
                                              const QuantizationScheme& scheme) {
  return std::make_unique<QuantizedWeight>(std::move(base), scheme);
}

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& path,
                                            const std::string& quantization) {
  std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(path);
  if (quantization == "none") return checkpoint;
  return quantize_checkpoint(std::move(checkpoint), parse_scheme("--quantization", quantization));
}

std::unique_ptr<Checkpoint> quantize_checkpoint(std::unique_ptr<Checkpoint> base,
                                                const QuantizationScheme& scheme) {
  return std::make_unique<QuantizingCheckpoint>(std::move(base), scheme);
}

}  // namespace shoal

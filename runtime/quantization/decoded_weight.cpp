#include "runtime/quantization/decoded_weight.h"

#include "runtime/quantization/decode.h"
#include "runtime/quantization/wrapped_checkpoint.h"

namespace shoal {
namespace {

class DecodedWeight : public StoredWeight {
 public:
  explicit DecodedWeight(std::unique_ptr<StoredWeight> base) : base_(std::move(base)) {}
  std::string where() const override { return base_->where(); }
  int64_t n() const override { return base_->n(); }
  int64_t k() const override { return base_->k(); }
  WeightForm form() const override { return {.dtype = DType::kBF16}; }
  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    std::vector<float> values(rows.size() * cols.size());
    decode_weight(*base_, rows, cols, values.data());
    auto* out = reinterpret_cast<BF16*>(numbers);
    for (size_t i = 0; i < values.size(); ++i) out[i] = to_bf16(values[i]);
  }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    return base_->stored_bytes(rows, cols);
  }

 private:
  const std::unique_ptr<StoredWeight> base_;
};

class DecodedCheckpoint : public WrappedCheckpoint {
 public:
  using WrappedCheckpoint::WrappedCheckpoint;
  std::unique_ptr<StoredWeight> matrix(const std::string& name, int64_t n,
                                       int64_t k) const override {
    std::unique_ptr<StoredWeight> stored = base_->matrix(name, n, k);
    return has_scales(stored->form().dtype) ? decode_to_bf16(std::move(stored)) : std::move(stored);
  }
};

}  // namespace

std::unique_ptr<StoredWeight> decode_to_bf16(std::unique_ptr<StoredWeight> base) {
  return std::make_unique<DecodedWeight>(std::move(base));
}

std::unique_ptr<Checkpoint> decode_checkpoint(std::unique_ptr<Checkpoint> base) {
  return std::make_unique<DecodedCheckpoint>(std::move(base));
}

}  // namespace shoal

#include "tests/bench/synthetic_weights.h"

namespace shoal::bench {
namespace {

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

SyntheticWeights::Part& SyntheticWeights::part_of(const std::string& name) {
  if (contains(name, "embed_tokens")) return embedding_;  // a step reads its tokens' rows alone
  if (contains(name, "lm_head")) return head_;
  if (contains(name, ".experts.")) return experts_;
  if (contains(name, "kv_b_proj")) return expanded_;
  return linears_part_;
}

Weight SyntheticWeights::matrix(const std::string& name, int64_t n, int64_t k, Range rows,
                                Range cols, bool keep_f32) {
  SHOAL_CHECK(rows.begin == 0 && cols.begin == 0, "{} from row {}, column {}", name, rows.begin,
              cols.begin);
  constexpr size_t kLeft = size_t{1} << 30;
  if (const size_t available = device_.memory_info().first; available < kLeft) {
    throw_invalid("{} is too small: {} bytes left after {} bytes of weights", device_.name(),
                  available, total_bytes_);
  }
  const bool plain = contains(name, "embed_tokens") || contains(name, "lm_head") || keep_f32;
  const Weight w = data_.weight(plain ? DType::kBF16 : linears_, rows.size(), cols.size());
  part_of(name).add({w.num_bytes(), w.n() * w.k()});
  total_bytes_ += w.num_bytes();
  return w;
}

Tensor SyntheticWeights::vector(const std::string& name, int64_t n, Range range) {
  const bool norm = contains(name, "norm");
  const Tensor tensor =
      data_.values(DType::kF32, {range.size()}, norm ? 0.5f : 0.03f, norm ? 1.0f : 0.0f);
  part_of(name).add({tensor.num_bytes(), 0});
  total_bytes_ += tensor.num_bytes();
  return tensor;
}

Tensor SyntheticWeights::allocate(const std::string& label, DType dtype,
                                  std::initializer_list<int64_t> dims) {
  const Tensor tensor = data_.uninitialised(dtype, dims);
  total_bytes_ += tensor.num_bytes();
  // Of the RoPE table a step reads its tokens' rows alone.
  if (!contains(label, "rope")) absorbed_.add({tensor.num_bytes(), tensor.num_elements()});
  return tensor;
}

}  // namespace shoal::bench

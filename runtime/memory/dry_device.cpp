#include "runtime/memory/dry_device.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Buffer DryDevice::allocate(size_t bytes) {
  constexpr size_t kUnit = 256;
  auto* data = reinterpret_cast<void*>(next_);
  next_ += (bytes + kUnit - 1) / kUnit * kUnit;
  return Buffer(this, data, bytes);
}

void DryDevice::copy_to_host(void* host, const void*, size_t bytes) {
  // What is larger is a weight, whose values nobody looks at.
  constexpr size_t kMost = size_t{16} << 20;
  if (bytes == 0 || bytes > kMost) return;
  std::vector<int32_t> values(bytes / sizeof(int32_t));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = choices_[i % choices_.size()];
  }
  std::memcpy(host, values.data(), values.size() * sizeof(int32_t));
}

DryOps::DryOps(Device& device, bool on_gpu, GpuTraits gpu)
    : on_gpu_(on_gpu),
      gpu_(gpu),
      scratch_(device, size_t{64} << 20, MemoryUse::kScratch),
      twin_(device, size_t{1} << 20, MemoryUse::kScratch) {}

uint64_t DryOps::scratch_bytes(Device& device) const {
  return device.ledger().current(MemoryUse::kScratch);
}

// kernels/cuda/matmul.cu splits k until there is a block for each SM (twice that for few rows), a block's
// part being at most 128 x 128 floats; cublaslt.cpp quantises the rows of FP8 products, and keeps
// products apart whose bias it cannot add.
void DryOps::linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  if (!on_gpu_ || x.dim(0) == 0) return;
  constexpr int64_t kFewRows = 8, kTile = 128, kFp8Arch = 90, kScaleRound = 4;
  const Workspace::Scope scope(scratch_);
  const int64_t rows = x.dim(0), n = w.n(), k = w.k();
  const DType type = w.data.dtype;
  const bool fp8 = type == DType::kF8E4M3 && gpu_.arch >= kFp8Arch;
  if (rows > kFewRows && (type == x.dtype || fp8)) {
    const int64_t padded = fp8 ? ceil_div(rows, kScaleRound) * kScaleRound : rows;
    if (fp8) {
      twin_.reset();
      twin_.tensor(DType::kF8E4M3, {padded, k});
      twin_.tensor(DType::kF32, {ceil_div(k, kTile), padded});
      scratch_.tensor(DType::kF32, {ceil_div(n, kTile), ceil_div(k, kTile) + kScaleRound});
    }
    if (bias.defined() || padded != rows) scratch_.tensor(DType::kF32, {padded, n});
    return;
  }
  const int64_t blocks = rows <= 2 * kFewRows ? 2 * gpu_.num_sms : gpu_.num_sms;
  const int64_t block_rows = rows <= 2 * kFewRows ? 2 * kFewRows : kTile;
  scratch_.tensor(DType::kF32, {blocks, block_rows, kTile});
}

// kernels/cuda/split_kv.cu keeps two parts for each block that the GPU holds at once. The largest blocks
// have 64 rows of 512 (MLA) or, twice on an SM, 128 of 128 (GQA) floats.
void DryOps::attention_parts(const Tensor& q, int64_t value_dim) {
  if (!on_gpu_ || q.dim(0) == 0) return;
  const Workspace::Scope scope(scratch_);
  const int64_t rows = value_dim > 128 ? 64 : 256;
  scratch_.tensor(DType::kF32, {2 * gpu_.num_sms, rows, value_dim + 2});
}

void DryOps::mla_decode(const Tensor& q, const CacheTensor&, const PagedBatch&, float,
                        const Tensor& out) {
  attention_parts(q, out.dim(2));
}

void DryOps::gqa_attention(const Tensor& q, const CacheTensor&, const CacheTensor&, const PagedBatch&,
                           const HeadMap&, float, const Tensor& out) {
  attention_parts(q, out.dim(2));
}

int64_t DryOps::sort_by_expert(const Tensor& expert_ids, int32_t, const Tensor&, const Tensor&,
                               const Tensor& offsets) {
  const int64_t pairs = expert_ids.num_elements();
  if (on_gpu_) {
    constexpr int64_t kPairsPerBlock = 2048;
    const Workspace::Scope scope(scratch_);
    scratch_.tensor(DType::kI32, {ceil_div(pairs, kPairsPerBlock), offsets.num_elements()});
  }
  // All of them here: what a router may do.
  return pairs;
}

void DryCollectives::all_reduce_sum(const Tensor& x) {
  if (size_ == 1) return;
  constexpr int64_t kOneRound = 16 << 10;
  const int64_t bytes = x.num_bytes();
  const bool whole = bytes <= kOneRound || size_ == 2;
  const int64_t piece =
      whole ? bytes : ceil_div(x.num_elements(), size_) * dtype_size(x.dtype);
  gathered_ = std::max(gathered_, static_cast<uint64_t>((size_ - 1) * piece));
}

void DryCollectives::reduce_scatter_rows(const Tensor& x, std::span<const int64_t> rows,
                                         const Tensor& out) {
  if (size_ == 1) return;
  gathered_ = std::max(gathered_, static_cast<uint64_t>((size_ - 1) * out.num_bytes()));
}

void DryCollectives::all_to_all_counts(std::span<const int64_t> send, std::span<int64_t> recv) {
  for (int r = 0; r < size_; ++r) recv[r] = r == rank_ ? send[r] : tokens_.at(r);
}

DryWeights::DryWeights(const ModelConfig& config, const FormOf& forms,
                       const std::function<int64_t(int64_t)>& layer_of, Device& device)
    : memory_(device.allocate(1)) {
  constexpr std::string_view kPrefix = "model.layers.";
  for (PlannedTensor& tensor : tensor_plan(config)) {
    std::string name = tensor.name;
    if (name.starts_with(kPrefix)) {
      const size_t dot = name.find('.', kPrefix.size());
      const int64_t layer = std::stoll(name.substr(kPrefix.size(), dot - kPrefix.size()));
      tensor.name = std::string(kPrefix) + std::to_string(layer_of(layer)) + name.substr(dot);
    }
    // One expert stands for all: a mixture is of one form (the verbs want it so).
    if (tensor.cut == Cut::kExpert && tensor.expert > 0) {
      const std::string first =
          name.substr(0, name.find(".experts.")) + ".experts.0" +
          name.substr(name.find('.', name.find(".experts.") + 9));
      forms_[name] = forms_.at(first);
      continue;
    }
    forms_[name] = forms(tensor);
  }
}

Weight DryWeights::matrix(const std::string& name, int64_t n, int64_t k, Range rows, Range cols,
                          bool keep_f32) {
  const WeightForm& form = forms_.at(name + ".weight");
  Weight w;
  const int64_t columns = form.dtype == DType::kI4x2 ? cols.size() / 2 : cols.size();
  w.data = Tensor(memory_.data(), form.dtype, {rows.size(), columns});
  if (form.block_rows == 0) return w;
  w.block_rows = form.block_rows;
  w.block_cols = form.block_cols;
  w.row_offset = static_cast<int32_t>(rows.begin % form.block_rows);
  w.col_offset = static_cast<int32_t>(cols.begin % form.block_cols);
  w.scale = Tensor(memory_.data(), DType::kF32,
                   {ceil_div(rows.size() + w.row_offset, form.block_rows),
                    ceil_div(cols.size() + w.col_offset, form.block_cols)});
  if (form.has_min) w.min = w.scale;
  return w;
}

Tensor DryWeights::vector(const std::string&, int64_t, Range range) {
  return Tensor(memory_.data(), DType::kF32, {range.size()});
}

Tensor DryWeights::allocate(const std::string&, DType dtype, std::initializer_list<int64_t> dims) {
  return Tensor(memory_.data(), dtype, dims);
}

}  // namespace shoal

#include "runtime/checkpoint/checkpoint_source.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/tensor_plan.h"

namespace shoal {
namespace {

// Small tensors (norms, scales, the experts of tiny models) share chunks; larger ones have memory
// of their own, so that a chunk never wastes more than it holds.
constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
constexpr uint64_t kSmallBytes = kChunkBytes / 4;
constexpr uint64_t kAlignment = 64;  // a cache line, and the widest SIMD register

// Allocated but not yet filled: a view of memory that `take` finds.
template <typename Take>
Tensor fresh(DType dtype, int64_t rows, int64_t cols, const Take& take) {
  Tensor view(nullptr, dtype, {rows, cols});
  view.data = take(static_cast<uint64_t>(view.num_bytes()));
  return view;
}

}  // namespace

CheckpointSource::CheckpointSource(const Checkpoint& checkpoint, Device& device, DType dtype,
                                   std::function<void(uint64_t)> progress)
    : checkpoint_(checkpoint),
      device_(device),
      dtype_(dtype),
      reader_(std::move(progress)) {
  SHOAL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights as {}", dtype_name(dtype));
}

bool CheckpointSource::has(const std::string& name) const {
  return checkpoint_.has(name);
}

Weight CheckpointSource::matrix(const std::string& name, int64_t n, int64_t k, Range rows,
                                Range cols, bool keep_f32) {
  SHOAL_CHECK(0 <= rows.begin && rows.begin <= rows.end && rows.end <= n && 0 <= cols.begin &&
                  cols.begin <= cols.end && cols.end <= k,
              "{}: rows [{}, {}) of {}, columns [{}, {}) of {}", name, rows.begin, rows.end, n,
              cols.begin, cols.end, k);
  const std::unique_ptr<StoredWeight> stored = checkpoint_.matrix(name, n, k);
  used_.insert(name + ".weight");
  const DType type = stored->form().dtype;
  return load(*stored, rows, cols, held_type(type, dtype_, keep_f32));
}

WeightForm CheckpointSource::held_form(const std::string& name, int64_t n, int64_t k) {
  WeightForm form = checkpoint_.matrix(name, n, k)->form();
  used_.insert(name + ".weight");
  form.dtype = held_type(form.dtype, dtype_, /*keep_f32=*/false);
  return form;
}

void CheckpointSource::read_to(const std::string& name, Device& device, const Weight& out) {
  const std::unique_ptr<StoredWeight> stored = checkpoint_.matrix(name, out.n(), out.k());
  reader_.read(*stored, {0, out.n()}, {0, out.k()}, device, out);
}

Tensor CheckpointSource::vector(const std::string& name, int64_t n, Range range) {
  SHOAL_CHECK(0 <= range.begin && range.begin <= range.end && range.end <= n, "{}: [{}, {}) of {}",
              name, range.begin, range.end, n);
  const std::unique_ptr<StoredWeight> stored = checkpoint_.vector(name, n);
  used_.insert(name);
  const Tensor column = load(*stored, range, {0, 1}, DType::kF32).data;
  return Tensor(column.data, DType::kF32, {range.size()});
}

Tensor CheckpointSource::allocate(const std::string& label, DType dtype,
                                  std::initializer_list<int64_t> dims) {
  Tensor view(nullptr, dtype, dims);
  SHOAL_CHECK(view.num_elements() >= 0, "{} of shape {}", label, view.shape_string());
  view.data = take(static_cast<uint64_t>(view.num_bytes()));
  return view;
}

std::vector<std::string> CheckpointSource::unused() const {
  std::vector<std::string> names;
  for (std::string& name : checkpoint_.names()) {
    if (used_.count(name) == 0) names.push_back(std::move(name));
  }
  return names;
}

Weight CheckpointSource::load(const StoredWeight& stored, Range rows, Range cols, DType dtype) {
  const auto memory = [this](uint64_t bytes) { return take(bytes); };
  const WeightForm form = stored.form();
  Weight weight;
  const bool packed = form.dtype == DType::kI4x2;
  SHOAL_CHECK(!packed || (cols.begin % 2 == 0 && cols.size() % 2 == 0),
              "{}: columns [{}, {}) of int4", stored.where(), cols.begin, cols.end);
  weight.data = fresh(dtype, rows.size(), packed ? cols.size() / 2 : cols.size(), memory);
  if (has_scales(form.dtype)) {
    const bool empty = rows.size() == 0 || cols.size() == 0;
    weight.block_rows = form.block_rows;
    weight.block_cols = form.block_cols;
    weight.row_offset = static_cast<int32_t>(rows.begin % form.block_rows);
    weight.col_offset = static_cast<int32_t>(cols.begin % form.block_cols);
    const int64_t block_rows = empty ? 0 : blocks_touched(rows, form.block_rows).size();
    const int64_t block_cols = empty ? 0 : blocks_touched(cols, form.block_cols).size();
    weight.scale = fresh(DType::kF32, block_rows, block_cols, memory);
    if (form.has_min) weight.min = fresh(DType::kF32, block_rows, block_cols, memory);
  }
  reader_.read(stored, rows, cols, device_, weight);
  return weight;
}

void* CheckpointSource::take(uint64_t bytes) {
  bytes_held_ += bytes;
  const uint64_t rounded = std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  if (rounded > kSmallBytes) {
    buffers_.push_back(device_.allocate(rounded));
    return buffers_.back().data();
  }
  if (rounded > arena_left_) {
    buffers_.push_back(device_.allocate(kChunkBytes));
    arena_ = static_cast<std::byte*>(buffers_.back().data());
    arena_left_ = kChunkBytes;
  }
  void* data = arena_;
  arena_ += rounded;
  arena_left_ -= rounded;
  return data;
}

DType held_type(DType stored, DType model, bool keep_f32) {
  return stored == DType::kF32 && model == DType::kBF16 && !keep_f32 ? DType::kBF16 : stored;
}

void check_all_used(const CheckpointSource& source, const ModelConfig& config) {
  if (!source.unused().empty()) check_all_known(source.checkpoint(), config);
}

}  // namespace shoal

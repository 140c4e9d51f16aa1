#include "runtime/checkpoint/checkpoint_source.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/checkpoint/tensor_plan.h"

namespace shoal {
namespace {

// Small tensors (norms, scales, the experts of tiny models) share chunks; larger ones have memory
// of their own, so that a chunk never wastes more than it holds.
constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
constexpr uint64_t kSmallBytes = kChunkBytes / 4;
constexpr uint64_t kAlignment = 64;  // a cache line, and the widest SIMD register

// The blocks of `size` that a range touches.
Range blocks_of(Range range, int64_t size) {
  if (range.size() == 0) return {0, 0};
  return {range.begin / size, (range.end + size - 1) / size};
}

}  // namespace

CheckpointSource::CheckpointSource(const Checkpoint& checkpoint, const ModelConfig& config,
                                   Device& device, DType dtype,
                                   std::function<void(uint64_t)> progress)
    : checkpoint_(checkpoint),
      config_(config),
      device_(device),
      dtype_(dtype),
      reader_(device, std::move(progress)) {
  SHOAL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights as {}", dtype_name(dtype));
}

bool CheckpointSource::has(const std::string& name) const {
  return checkpoint_.find(name) != nullptr;
}

Weight CheckpointSource::matrix(const std::string& name, int64_t n, int64_t k, Range rows,
                                Range cols, bool keep_f32) {
  SHOAL_CHECK(0 <= rows.begin && rows.begin <= rows.end && rows.end <= n && 0 <= cols.begin &&
                  cols.begin <= cols.end && cols.end <= k,
              "{}: rows [{}, {}) of {}, columns [{}, {}) of {}", name, rows.begin, rows.end, n,
              cols.begin, cols.end, k);
  const std::string full = name + ".weight", scale_name = full + "_scale_inv";
  const Checkpoint::Entry& entry = require(full, {n, k});
  const DType stored = entry.info->dtype;
  const std::string where = entry.file->path() + ": tensor " + in_quotes(full);
  if (stored != DType::kF32 && stored != DType::kF16 && stored != DType::kBF16 &&
      stored != DType::kF8E4M3) {
    throw_invalid("{} has the type {}; a matrix is float32, float16, bfloat16 or float8_e4m3",
                  where, dtype_name(stored));
  }
  Weight weight;
  const bool round = stored == DType::kF32 && dtype_ == DType::kBF16 && !keep_f32;
  weight.data = load(entry, full, rows, cols, round ? DType::kBF16 : stored);
  if (stored != DType::kF8E4M3) {
    if (has(scale_name)) {
      throw_invalid("{} is {} and has a {}; only float8_e4m3 has scales", where, dtype_name(stored),
                    in_quotes(scale_name));
    }
    return weight;
  }
  if (!config_.fp8_blocks) {
    throw_invalid("{} is float8_e4m3, but config.json has no quantization_config", where);
  }
  if (!has(scale_name))
    throw_invalid("{} is float8_e4m3, but {} is missing", where, in_quotes(scale_name));
  weight.block_rows = config_.fp8_block_rows;
  weight.block_cols = config_.fp8_block_cols;
  weight.row_offset = static_cast<int32_t>(rows.begin % weight.block_rows);
  weight.col_offset = static_cast<int32_t>(cols.begin % weight.block_cols);
  const Checkpoint::Entry& scale =
      require(scale_name, {(n + weight.block_rows - 1) / weight.block_rows,
                           (k + weight.block_cols - 1) / weight.block_cols});
  if (scale.info->dtype != DType::kF32) {
    throw_invalid("{}: tensor {} has the type {}, should be float32", scale.file->path(),
                  in_quotes(scale_name), dtype_name(scale.info->dtype));
  }
  const bool empty = rows.size() == 0 || cols.size() == 0;
  weight.scale = load(scale, scale_name, empty ? Range{} : blocks_of(rows, weight.block_rows),
                      empty ? Range{} : blocks_of(cols, weight.block_cols), DType::kF32,
                      /*scales=*/true);
  return weight;
}

Tensor CheckpointSource::vector(const std::string& name, int64_t n, Range range) {
  SHOAL_CHECK(0 <= range.begin && range.begin <= range.end && range.end <= n, "{}: [{}, {}) of {}",
              name, range.begin, range.end, n);
  const Checkpoint::Entry& entry = require(name, {n});
  const DType stored = entry.info->dtype;
  if (stored != DType::kF32 && stored != DType::kF16 && stored != DType::kBF16) {
    throw_invalid("{}: tensor {} has the type {}; a vector is float32, float16 or bfloat16",
                  entry.file->path(), in_quotes(name), dtype_name(stored));
  }
  const Tensor column = load(entry, name, range, {0, 1}, DType::kF32);
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
  for (const auto& [name, entry] : checkpoint_.tensors()) {
    if (used_.count(name) == 0) names.push_back(name);
  }
  return names;
}

const Checkpoint::Entry& CheckpointSource::require(const std::string& name,
                                                   const std::vector<int64_t>& shape) {
  const Checkpoint::Entry* entry = checkpoint_.find(name);
  if (entry == nullptr) {
    throw_invalid("{}: tensor {} of shape [{}] is missing", checkpoint_.dir(), in_quotes(name),
                  fmt::join(shape, ", "));
  }
  if (entry->info->shape != shape) {
    throw_invalid("{}: tensor {} has the shape [{}], config.json asks for [{}]",
                  entry->file->path(), in_quotes(name), fmt::join(entry->info->shape, ", "),
                  fmt::join(shape, ", "));
  }
  used_.insert(name);
  return *entry;
}

Tensor CheckpointSource::load(const Checkpoint::Entry& entry, const std::string& name, Range rows,
                              Range cols, DType dtype, bool scales) {
  const auto& shape = entry.info->shape;
  Tensor out(nullptr, dtype, {rows.size(), cols.size()});
  out.data = take(static_cast<uint64_t>(out.num_bytes()));
  reader_.read({.file = entry.file,
                .info = entry.info,
                .name = name,
                .columns = shape.size() == 2 ? shape[1] : 1,
                .rows = rows,
                .cols = cols,
                .scales = scales},
               dtype, out.data);
  return out;
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

void check_all_used(const CheckpointSource& source, const ModelConfig& config) {
  if (!source.unused().empty()) check_all_known(source.checkpoint(), config);
}

}  // namespace shoal

#include "runtime/checkpoint/slice_reader.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Long enough for a disk's full rate and to make the start of a thread (some 20 us) small, short
// enough that four threads share one expert of DeepSeek-V3 (14 MB).
constexpr int64_t kPieceBytes = int64_t{2} << 20;
// Keeps an NVMe disk's queue filled; copying out of the page cache, four cores exceed 10 GB/s.
constexpr int64_t kReadThreads = 4;

// Calls body(i) for every i < count on up to kReadThreads threads; rethrows the first exception.
template <typename Body>
void parallel_pieces(int64_t count, const Body& body) {
  const int64_t num_threads = std::min(count, kReadThreads);
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> failures(num_threads);
  const auto work = [&](int64_t thread) {
    try {
      for (int64_t i = next++; i < count; i = next++) body(i);
    } catch (...) {
      failures[thread] = std::current_exception();
      next = count;
    }
  };
  {
    std::vector<std::jthread> others;
    for (int64_t t = 1; t < num_threads; ++t) others.emplace_back(work, t);
    if (num_threads > 0) work(0);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

template <typename From, typename To, typename Function>
void convert_all(const std::byte* from, std::byte* to, int64_t count, Function function) {
  const auto* in = reinterpret_cast<const From*>(from);
  auto* out = reinterpret_cast<To*>(to);
  for (int64_t i = 0; i < count; ++i) out[i] = function(in[i]);
}

void convert(DType from, const std::byte* in, DType to, std::byte* out, int64_t count) {
  if (from == DType::kF32 && to == DType::kBF16) {
    convert_all<float, BF16>(in, out, count, [](float x) { return to_bf16(x); });
  } else if (from == DType::kBF16 && to == DType::kF32) {
    convert_all<BF16, float>(in, out, count, [](BF16 x) { return to_float(x); });
  } else if (from == DType::kF16 && to == DType::kF32) {
    convert_all<F16, float>(in, out, count, [](F16 x) { return to_float(x); });
  } else {
    SHOAL_CHECK(false, "{} to {}", dtype_name(from), dtype_name(to));
  }
}

// The scales of a rectangle, in host memory: a row for each row of blocks.
struct HostScales {
  Range block_rows, block_cols;
  std::vector<float> scale, min;

  HostScales(const WeightForm& form, Range rows, Range cols) {
    if (!has_scales(form.dtype)) return;
    block_rows = blocks_touched(rows, form.block_rows);
    block_cols = blocks_touched(cols, form.block_cols);
    scale.resize(block_rows.size() * block_cols.size());
    if (form.has_min) min.resize(scale.size());
  }
  float* at(std::vector<float>& values, int64_t block_row) {
    if (values.empty()) return nullptr;
    return values.data() + (block_row - block_rows.begin) * block_cols.size();
  }
};

// Row numbers that cut `rows` into pieces of some kPieceBytes. Inner ones are multiples of a block's
// rows: no two pieces share a scale.
std::vector<int64_t> piece_bounds(const WeightForm& form, Range rows, Range cols) {
  const int64_t unit = std::max(form.block_rows, 1);
  const auto row_bytes = std::max<int64_t>(static_cast<int64_t>(form.row_bytes(cols.size())), 1);
  const int64_t step = std::max<int64_t>(kPieceBytes / row_bytes, 1);
  std::vector<int64_t> bounds{rows.begin};
  while (bounds.back() < rows.end) {
    bounds.push_back(std::min((bounds.back() + step + unit - 1) / unit * unit, rows.end));
  }
  return bounds;
}

void read_to_host(const StoredWeight& weight, DType dtype, Range rows, Range cols, std::byte* out,
                  HostScales& scales) {
  const WeightForm form = weight.form();
  const WeightForm out_form{.dtype = dtype};
  const std::vector<int64_t> bounds = piece_bounds(form, rows, cols);
  parallel_pieces(static_cast<int64_t>(bounds.size()) - 1, [&](int64_t i) {
    const Range part{bounds[i], bounds[i + 1]};
    std::byte* target = out + (part.begin - rows.begin) * out_form.row_bytes(cols.size());
    std::vector<std::byte> stored(form.dtype == dtype ? 0
                                                      : part.size() * form.row_bytes(cols.size()));
    const int64_t block_row = part.begin / std::max(form.block_rows, 1);
    weight.read(part, cols, form.dtype == dtype ? target : stored.data(),
                scales.at(scales.scale, block_row), scales.at(scales.min, block_row));
    if (form.dtype != dtype) {
      convert(form.dtype, stored.data(), dtype, target, part.size() * cols.size());
    }
  });
}

}  // namespace

void SliceReader::read(const StoredWeight& weight, Range rows, Range cols, Device& device,
                       const Weight& out) {
  if (rows.size() == 0 || cols.size() == 0) return;
  const DType dtype = out.data.dtype;
  HostScales scales(weight.form(), rows, cols);
  const size_t row_bytes = WeightForm{.dtype = dtype}.row_bytes(cols.size());
  device.upload(out.data.data, rows.size() * row_bytes, row_bytes,
                [&](std::byte* memory, size_t offset, size_t count) {
                   const auto first = rows.begin + static_cast<int64_t>(offset / row_bytes);
                   const auto some = static_cast<int64_t>(count / row_bytes);
                   read_to_host(weight, dtype, {first, first + some}, cols, memory, scales);
                 });
  const auto upload = [&](const Tensor& to, const std::vector<float>& from) {
    if (!from.empty()) device.copy_to_device(to.data, from.data(), from.size() * sizeof(float));
  };
  upload(out.scale, scales.scale);
  upload(out.min, scales.min);
  bytes_read_ += weight.stored_bytes(rows, cols);
  if (progress_) progress_(bytes_read_);
}

}  // namespace shoal

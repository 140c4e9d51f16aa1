#include "runtime/checkpoint/slice_reader.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

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

// 0x7f and 0xff, eight codes at a time: without its sign bit, only 0x7f + 1 reaches bit 7.
bool has_fp8_nan(const std::byte* codes, int64_t count) {
  constexpr uint64_t kMagnitude = 0x7f7f7f7f7f7f7f7f, kOnes = 0x0101010101010101;
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    found |= (word & kMagnitude) + kOnes;
  }
  for (; i < count; ++i) found |= (static_cast<uint64_t>(codes[i]) & 0x7f) + 1;
  return (found & ~kMagnitude) != 0;
}

bool all_finite(const std::byte* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float value;
    std::memcpy(&value, values + i * 4, 4);
    if (!std::isfinite(value)) return false;
  }
  return true;
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

// Reads exactly rows x slice.cols, in the stored type.
void read_stored(const SliceReader::Slice& slice, Range rows, std::byte* out) {
  const auto element = static_cast<uint64_t>(dtype_size(slice.info->dtype));
  const auto columns = static_cast<uint64_t>(slice.columns);
  const auto at = [&](int64_t row, int64_t col) {
    return slice.info->begin +
           (static_cast<uint64_t>(row) * columns + static_cast<uint64_t>(col)) * element;
  };
  if (slice.cols.size() == slice.columns) {
    slice.file->read(at(rows.begin, 0), at(rows.end, 0), out);
    return;
  }
  const uint64_t row_bytes = static_cast<uint64_t>(slice.cols.size()) * element;
  for (int64_t row = rows.begin; row < rows.end; ++row, out += row_bytes) {
    slice.file->read(at(row, slice.cols.begin), at(row, slice.cols.end), out);
  }
}

}  // namespace

void SliceReader::read_to_host(const Slice& slice, DType dtype, Range rows, std::byte* out) const {
  const DType stored = slice.info->dtype;
  const int64_t width = slice.cols.size();
  const int64_t piece = std::max<int64_t>(kPieceBytes / (width * dtype_size(stored)), 1);
  parallel_pieces((rows.size() + piece - 1) / piece, [&](int64_t i) {
    const Range part = {rows.begin + i * piece, std::min(rows.begin + (i + 1) * piece, rows.end)};
    const int64_t count = part.size() * width;
    std::byte* target = out + i * piece * width * dtype_size(dtype);
    std::vector<std::byte> as_stored(stored == dtype ? 0 : count * dtype_size(stored));
    std::byte* source = stored == dtype ? target : as_stored.data();
    read_stored(slice, part, source);
    if (stored == DType::kF8E4M3 && has_fp8_nan(source, count)) {
      throw_invalid("{}: tensor {} holds FP8 codes that are not numbers (0x7f, 0xff)",
                    slice.file->path(), in_quotes(slice.name));
    }
    if (slice.scales && !all_finite(source, count)) {
      throw_invalid("{}: tensor {} holds scales that are not finite", slice.file->path(),
                    in_quotes(slice.name));
    }
    if (stored != dtype) convert(stored, source, dtype, target, count);
  });
}

void SliceReader::read(const Slice& slice, DType dtype, void* out) {
  const int64_t width = slice.cols.size();
  if (slice.rows.size() == 0 || width == 0) return;
  const size_t row_bytes = width * dtype_size(dtype);
  device_.upload(out, slice.rows.size() * row_bytes, row_bytes,
                 [&](std::byte* memory, size_t offset, size_t count) {
                   const auto first = slice.rows.begin + static_cast<int64_t>(offset / row_bytes);
                   const auto rows = static_cast<int64_t>(count / row_bytes);
                   read_to_host(slice, dtype, {first, first + rows}, memory);
                 });
  bytes_read_ += static_cast<uint64_t>(slice.rows.size() * width * dtype_size(slice.info->dtype));
  if (progress_) progress_(bytes_read_);
}

}  // namespace shoal

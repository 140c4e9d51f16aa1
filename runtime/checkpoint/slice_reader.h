// SliceReader: brings a rectangle of a stored matrix into device memory, reading exactly its bytes.
// Whole rows are one range of the file and are read in large pieces by several threads; a slice of
// columns is one read per row. REQUIRES: one thread calls.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/base/device.h"
#include "kernels/base/dtype.h"
#include "parallel/shard.h"
#include "runtime/checkpoint/checkpoint.h"

namespace shoal {

class SliceReader {
 public:
  // `progress` (may be empty) gets the bytes read so far, on the calling thread.
  SliceReader(Device& device, std::function<void(uint64_t)> progress)
      : device_(device), progress_(std::move(progress)) {}

  struct Slice {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* info = nullptr;
    std::string name;     // for errors
    int64_t columns = 1;  // of the stored matrix; a vector is a matrix of one column
    Range rows, cols;
    bool scales = false;  // every value has to be finite
  };

  // Writes rows x cols as `dtype`, row-major, to `out`, device memory of that size. Conversions:
  // none, F32 -> BF16, F16 | BF16 -> F32. Throws InvalidInput for a file that shrank, for FP8 codes
  // that are NaN, and for scales that are not finite.
  void read(const Slice& slice, DType dtype, void* out);

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  void read_to_host(const Slice& slice, DType dtype, Range rows, std::byte* out) const;

  Device& device_;
  std::function<void(uint64_t)> progress_;
  uint64_t bytes_read_ = 0;
};

}  // namespace shoal

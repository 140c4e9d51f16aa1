// SliceReader: brings a rectangle of a stored weight into device memory, in pieces that several
// threads read. REQUIRES: one thread calls.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/base/device.h"
#include "runtime/checkpoint/stored_weight.h"

namespace shoal {

class SliceReader {
 public:
  // `progress` (may be empty) gets the bytes read so far, on the calling thread.
  explicit SliceReader(std::function<void(uint64_t)> progress) : progress_(std::move(progress)) {}

  // Writes rows x cols of `weight` to the memory of `out`, `device`'s, whose type is the weight's own, or F32 read
  // as BF16 or F16 | BF16 read as F32. Throws what StoredWeight::read() does.
  void read(const StoredWeight& weight, Range rows, Range cols, Device& device, const Weight& out);
  // From here on nobody is told.
  void end_progress() { progress_ = {}; }

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  std::function<void(uint64_t)> progress_;
  uint64_t bytes_read_ = 0;
};

}  // namespace shoal

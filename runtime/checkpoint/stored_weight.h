// StoredWeight: one matrix of a checkpoint, whatever the file's format, as the Weight that says the same
// without loss. Every format (plain, FP8 blocks, compressed-tensors, AWQ, GPTQ, GGUF) is one
// implementation; quantising while loading is another, over one of those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/base/tensor.h"
#include "parallel/shard.h"

namespace shoal {

// The blocks of `size` that a range of rows or columns touches; none for an empty one.
Range blocks_touched(Range range, int64_t size);

// How a weight lies in memory: the fields of Weight without the memory.
struct WeightForm {
  DType dtype = DType::kBF16;  // F32 | F16 | BF16 | F8E4M3 | I8 | I4x2
  int32_t block_rows = 0;      // 0 for types without scales, as block_cols
  int32_t block_cols = 0;      // a whole row counts as k columns
  bool has_min = false;
  uint64_t row_bytes(int64_t columns) const;  // of the numbers of so many columns
  uint64_t bytes(Range rows, Range cols) const;  // of a rectangle: numbers, scales and mins
  bool operator==(const WeightForm&) const = default;
};

class StoredWeight {
 public:
  virtual ~StoredWeight() = default;
  virtual std::string where() const = 0;  // "FILE: tensor 'NAME'": for errors
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual WeightForm form() const = 0;

  // A rectangle of the matrix: its numbers, row-major, and one scale (and min) for each block that it
  // touches, row-major. Thread-safe. Throws InvalidInput for a file that shrank and for values that are
  // no numbers.
  // REQUIRES: 0 <= begin < end within [n, k]; cols even for I4x2.
  virtual void read(Range rows, Range cols,
                    std::byte* numbers,  // rows x cols of form().dtype (I4x2: half the bytes)
                    float* scale,        // [blocks touched], or null for types without scales
                    float* min) const = 0;  // as scale, or null without has_min

  // What read() of the rectangle takes from the file.
  virtual uint64_t stored_bytes(Range rows, Range cols) const = 0;
};

}  // namespace shoal

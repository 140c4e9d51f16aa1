#include "runtime/checkpoint/plain_weight.h"

#include <cstring>

#include "kernels/base/error.h"

namespace shoal {
namespace {

bool is_float(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

uint64_t bytes_of(Range rows, Range cols, DType type) {
  return static_cast<uint64_t>(rows.size() * cols.size() * dtype_size(type));
}

class PlainWeight : public StoredWeight {
 public:
  PlainWeight(TensorRef tensor, int64_t n, int64_t k)
      : tensor_(std::move(tensor)), n_(n), k_(k) {}

  std::string where() const override { return tensor_.where(); }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  WeightForm form() const override { return {.dtype = tensor_.dtype()}; }
  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    tensor_.read(k_, rows, cols, numbers);
  }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    return bytes_of(rows, cols, tensor_.dtype());
  }

 private:
  const TensorRef tensor_;
  const int64_t n_, k_;
};

class Fp8Weight : public StoredWeight {
 public:
  Fp8Weight(TensorRef codes, TensorRef scales, int64_t n, int64_t k, int32_t block_rows,
            int32_t block_cols)
      : codes_(std::move(codes)),
        scales_(std::move(scales)),
        n_(n),
        k_(k),
        block_rows_(block_rows),
        block_cols_(block_cols) {}

  std::string where() const override { return codes_.where(); }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  WeightForm form() const override { return {DType::kF8E4M3, block_rows_, block_cols_}; }
  void read(Range rows, Range cols, std::byte* numbers, float* scale, float*) const override {
    codes_.read(k_, rows, cols, numbers);
    if (has_fp8_nan(numbers, rows.size() * cols.size())) {
      throw_invalid("{} holds FP8 codes that are not numbers (0x7f, 0xff)", where());
    }
    scales_.read_finite((k_ + block_cols_ - 1) / block_cols_, blocks_touched(rows, block_rows_),
                        blocks_touched(cols, block_cols_), "scales", scale);
  }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    if (rows.size() == 0 || cols.size() == 0) return 0;
    return bytes_of(rows, cols, DType::kF8E4M3) +
           bytes_of(blocks_touched(rows, block_rows_), blocks_touched(cols, block_cols_),
                    scales_.dtype());
  }

 private:
  const TensorRef codes_, scales_;
  const int64_t n_, k_;
  const int32_t block_rows_, block_cols_;
};

}  // namespace

std::unique_ptr<StoredWeight> make_plain_weight(TensorRef tensor, int64_t n, int64_t k) {
  tensor.require_shape({n, k});
  if (!is_float(tensor.dtype())) {
    throw_invalid("{} has the type {}; a matrix is float32, float16, bfloat16 or float8_e4m3",
                  tensor.where(), dtype_name(tensor.dtype()));
  }
  return std::make_unique<PlainWeight>(std::move(tensor), n, k);
}

std::unique_ptr<StoredWeight> make_fp8_weight(TensorRef codes, TensorRef scales, int64_t n,
                                              int64_t k, int32_t block_rows, int32_t block_cols) {
  codes.require_shape({n, k});
  codes.require_type(DType::kF8E4M3);
  if (!is_float(scales.dtype())) {
    throw_invalid("{} has the type {}, should be float32", scales.where(),
                  dtype_name(scales.dtype()));
  }
  const bool one_block = block_rows >= n && block_cols >= k;
  if (!one_block || scales.info->num_elements() != 1) {
    scales.require_shape({(n + block_rows - 1) / block_rows, (k + block_cols - 1) / block_cols});
  }
  return std::make_unique<Fp8Weight>(std::move(codes), std::move(scales), n, k, block_rows,
                                     block_cols);
}

std::unique_ptr<StoredWeight> make_plain_vector(TensorRef tensor, int64_t n) {
  tensor.require_shape({n});
  if (!is_float(tensor.dtype())) {
    throw_invalid("{} has the type {}; a vector is float32, float16 or bfloat16", tensor.where(),
                  dtype_name(tensor.dtype()));
  }
  return std::make_unique<PlainWeight>(std::move(tensor), n, 1);
}

// Eight codes at a time: without its sign bit, only 0x7f + 1 reaches bit 7.
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

}  // namespace shoal

#include "runtime/quantization/compressed_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <thread>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// A multiple of the rows of every block; some MB of decoded floats for each thread.
constexpr int64_t kRowsPerThread = 128;

bool is_integer(const WeightForm& form) {
  return form.dtype == DType::kI4x2 || form.dtype == DType::kI8;
}
int bits_of(const WeightForm& form) { return form.dtype == DType::kI4x2 ? 4 : 8; }

std::string safetensors_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    default:
      SHOAL_CHECK(false, "{} in an output", dtype_name(dtype));
  }
}

struct Scales {
  int64_t rows = 0, cols = 0;  // of blocks
  std::vector<float> scale, min;
};

// The numbers of the matrix to `write`, its scales to `scales`.
void write_numbers(const StoredWeight& weight, int threads, Scales& scales,
                   const std::function<void(std::span<const std::byte>)>& write) {
  const WeightForm form = weight.form();
  const Range cols{0, weight.k()};
  const auto row_bytes = static_cast<int64_t>(form.row_bytes(weight.k()));
  // Words of 32 bits are padded with zeros.
  const int64_t padded = is_integer(form) ? (row_bytes + 3) / 4 * 4 : row_bytes;
  const auto flip = static_cast<std::byte>(bits_of(form) == 4 ? 0x88 : 0x80);
  if (has_scales(form.dtype)) {
    scales.rows = blocks_touched({0, weight.n()}, form.block_rows).size();
    scales.cols = blocks_touched(cols, form.block_cols).size();
    scales.scale.resize(scales.rows * scales.cols);
    if (form.has_min) scales.min.resize(scales.scale.size());
  }
  SHOAL_CHECK(kRowsPerThread % std::max(form.block_rows, 1) == 0, "blocks of {} rows",
              form.block_rows);
  const int64_t step = kRowsPerThread * std::max(threads, 1);
  std::vector<std::byte> numbers(std::min(step, weight.n()) * padded);
  for (int64_t begin = 0; begin < weight.n(); begin += step) {
    const int64_t end = std::min(begin + step, weight.n());
    std::vector<std::exception_ptr> failures((end - begin + kRowsPerThread - 1) / kRowsPerThread);
    {
      std::vector<std::jthread> workers;
      for (size_t t = 0; t < failures.size(); ++t) {
        workers.emplace_back([&, t] {
          try {
            const int64_t first = begin + static_cast<int64_t>(t) * kRowsPerThread;
            const Range rows{first, std::min(first + kRowsPerThread, end)};
            std::byte* out = numbers.data() + (first - begin) * padded;
            const int64_t at = form.block_rows > 0 ? first / form.block_rows * scales.cols : 0;
            weight.read(rows, cols, out, scales.scale.empty() ? nullptr : scales.scale.data() + at,
                        scales.min.empty() ? nullptr : scales.min.data() + at);
            if (!is_integer(form)) return;
            for (int64_t i = rows.size() - 1; i >= 0; --i) {  // rows move apart: last first
              std::memmove(out + i * padded, out + i * row_bytes, row_bytes);
              for (int64_t j = 0; j < row_bytes; ++j) out[i * padded + j] ^= flip;
              std::memset(out + i * padded + row_bytes, 0, padded - row_bytes);
            }
          } catch (...) {
            failures[t] = std::current_exception();
          }
        });
      }
    }
    for (const std::exception_ptr& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
    write({numbers.data(), static_cast<size_t>((end - begin) * padded)});
  }
}

// Zero points, packed along the rows.
std::vector<uint32_t> packed_zeros(const Scales& scales, int bits) {
  const int64_t per_word = 32 / bits;
  const int32_t half = 1 << (bits - 1);
  std::vector<uint32_t> words((scales.rows + per_word - 1) / per_word * scales.cols);
  for (int64_t i = 0; i < scales.rows; ++i) {
    for (int64_t g = 0; g < scales.cols; ++g) {
      const int64_t at = i * scales.cols + g;
      const auto zero = static_cast<int32_t>(std::lround(-scales.min[at] / scales.scale[at]));
      words[i / per_word * scales.cols + g] |= static_cast<uint32_t>(zero + half)
                                               << (i % per_word * bits);
    }
  }
  return words;
}

}  // namespace

std::vector<OutputTensor> output_tensors(const std::string& module, const StoredWeight& weight) {
  const WeightForm form = weight.form();
  const auto n = weight.n(), k = weight.k();
  const auto blocks = [&] {
    return std::vector<int64_t>{blocks_touched({0, n}, form.block_rows).size(),
                                blocks_touched({0, k}, form.block_cols).size()};
  };
  std::vector<OutputTensor> tensors;
  const auto add = [&](const char* part, std::string type, std::vector<int64_t> shape,
                       int64_t element) {
    int64_t bytes = element;
    for (const int64_t dim : shape) bytes *= dim;
    tensors.push_back({module + part, std::move(type), std::move(shape),
                       static_cast<uint64_t>(bytes)});
  };
  if (!is_integer(form)) {
    add(".weight", safetensors_type(form.dtype), {n, k}, dtype_size(form.dtype));
    if (form.dtype == DType::kF8E4M3) add(".weight_scale_inv", "F32", blocks(), 4);
    return tensors;
  }
  const int64_t per_word = 32 / bits_of(form);
  add(".weight_packed", "I32", {n, (k + per_word - 1) / per_word}, 4);
  add(".weight_scale", "BF16", blocks(), 2);
  add(".weight_shape", "I64", {2}, 8);
  if (form.has_min) {
    add(".weight_zero_point", "I32", {(n + per_word - 1) / per_word, blocks()[1]}, 4);
  }
  return tensors;
}

void write_weight(const StoredWeight& weight, int threads,
                  const std::function<void(std::span<const std::byte>)>& write) {
  const WeightForm form = weight.form();
  Scales scales;
  write_numbers(weight, threads, scales, write);
  if (form.dtype == DType::kF8E4M3) write(std::as_bytes(std::span(scales.scale)));
  if (!is_integer(form)) return;
  std::vector<BF16> rounded(scales.scale.size());
  for (size_t i = 0; i < rounded.size(); ++i) {
    rounded[i] = to_bf16(scales.scale[i]);
    SHOAL_CHECK(to_float(rounded[i]) == scales.scale[i], "{}: scale {}", weight.where(),
                scales.scale[i]);
  }
  write(std::as_bytes(std::span(rounded)));
  const int64_t shape[] = {weight.n(), weight.k()};
  write(std::as_bytes(std::span(shape)));
  if (!form.has_min) return;
  const std::vector<uint32_t> zeros = packed_zeros(scales, bits_of(form));
  write(std::as_bytes(std::span(zeros)));
}

}  // namespace shoal

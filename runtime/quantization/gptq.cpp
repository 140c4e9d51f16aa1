#include "runtime/quantization/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/quantization/rounding.h"

namespace shoal {
namespace {

// Rows that go through the columns together, so that a row of U is read once for all of them.
constexpr int64_t kRowsTogether = 8;

// A quantised matrix in memory, whole.
class MemoryWeight : public StoredWeight {
 public:
  MemoryWeight(std::string where, int64_t n, int64_t k, WeightForm form)
      : where_(std::move(where)), n_(n), k_(k), form_(form), blocks_(blocks_touched({0, k}, form.block_cols).size()) {
    numbers.resize(n * form.row_bytes(k));
    scale.resize(n * blocks_);
    if (form.has_min) min.resize(scale.size());
  }
  std::string where() const override { return where_; }
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  WeightForm form() const override { return form_; }
  void read(Range rows, Range cols, std::byte* out, float* out_scale,
            float* out_min) const override {
    const auto stride = static_cast<int64_t>(form_.row_bytes(k_));
    const auto skipped = static_cast<int64_t>(form_.row_bytes(cols.begin));
    const auto count = static_cast<int64_t>(form_.row_bytes(cols.size()));
    const Range blocks = blocks_touched(cols, form_.block_cols);
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      std::memcpy(out, numbers.data() + i * stride + skipped, count);
      out += count;
      const int64_t at = i * blocks_ + blocks.begin;
      out_scale = std::copy_n(scale.data() + at, blocks.size(), out_scale);
      if (out_min != nullptr) out_min = std::copy_n(min.data() + at, blocks.size(), out_min);
    }
  }
  uint64_t stored_bytes(Range rows, Range cols) const override { return form_.bytes(rows, cols); }

  std::vector<std::byte> numbers;
  std::vector<float> scale, min;  // [n, blocks]

 private:
  const std::string where_;
  const int64_t n_, k_;
  const WeightForm form_;
  const int64_t blocks_;
};

struct Matrix {
  float* values;  // [n, k], changed
  int64_t n, k;
  const std::vector<float>& factor;
  const QuantizationScheme& scheme;
};

void quantize_rows(const Matrix& m, Range rows, MemoryWeight& out) {
  const WeightForm form = out.form();
  const int bits = form.dtype == DType::kI4x2 ? 4 : 8;
  const int64_t k = m.k, group = form.block_cols, blocks = (k + group - 1) / group;
  std::vector<int8_t> codes(kRowsTogether * k);
  std::vector<GroupScale> scales(kRowsTogether);
  const int64_t count = rows.size();
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t r = 0; r < count; ++r) {
      float* row = m.values + (rows.begin + r) * k;
      if (j % group == 0) {
        // Of the values as earlier columns' errors have made them.
        scales[r] = choose_scale({row + j, static_cast<size_t>(std::min(group, k - j))}, bits,
                                 m.scheme.symmetric);
        const int64_t at = (rows.begin + r) * blocks + j / group;
        out.scale[at] = scales[r].scale;
        if (form.has_min) out.min[at] = static_cast<float>(-scales[r].zero) * scales[r].scale;
      }
      int8_t& code = codes[r * k + j];
      round_to_codes({row + j, 1}, scales[r], bits, &code);
      if (m.factor.empty()) continue;
      const float rounded = static_cast<float>(code - scales[r].zero) * scales[r].scale;
      const float* u = m.factor.data() + j * k;
      const float error = (row[j] - rounded) / u[j];
      for (int64_t l = j + 1; l < k; ++l) row[l] -= error * u[l];
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    std::byte* numbers = out.numbers.data() + (rows.begin + r) * form.row_bytes(k);
    const int8_t* row = codes.data() + r * k;
    if (bits == 8) {
      std::memcpy(numbers, row, k);
      continue;
    }
    for (int64_t j = 0; j < k; j += 2) {
      *numbers++ = static_cast<std::byte>((row[j] & 15) | (row[j + 1] & 15) << 4);
    }
  }
}

}  // namespace

std::vector<float> inverse_factor(const std::vector<float>& hessian, int64_t k) {
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += hessian[i * k + i];
  mean /= static_cast<double>(k);
  if (!(mean > 0) || !std::isfinite(mean)) return {};
  // With rows and columns reversed, H = C C^T; then U = the reverse of C^-1.
  constexpr double kDamping = 0.01;
  std::vector<double> c(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      c[i * k + j] = hessian[(k - 1 - i) * k + (k - 1 - j)] + (i == j ? kDamping * mean : 0);
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = c[i * k + j];
      const double* a = c.data() + i * k;
      const double* b = c.data() + j * k;
      for (int64_t l = 0; l < j; ++l) sum -= a[l] * b[l];
      if (i != j) {
        c[i * k + j] = sum / c[j * k + j];
      } else if (sum > 0) {
        c[i * k + i] = std::sqrt(sum);
      } else {
        return {};  // not positive, for all its damping: rounding errors of huge inputs
      }
    }
  }
  // Row i of C^-1, from the rows above it.
  std::vector<double> inverse(k * k);
  for (int64_t i = 0; i < k; ++i) {
    double* row = inverse.data() + i * k;
    for (int64_t j = 0; j < i; ++j) {
      const double factor = c[i * k + j];
      const double* other = inverse.data() + j * k;
      for (int64_t l = 0; l <= j; ++l) row[l] -= factor * other[l];
    }
    row[i] = 1;
    const double diagonal = c[i * k + i];
    for (int64_t l = 0; l <= i; ++l) row[l] /= diagonal;
  }
  std::vector<float> upper(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = i; j < k; ++j) {
      upper[i * k + j] = static_cast<float>(inverse[(k - 1 - i) * k + (k - 1 - j)]);
    }
  }
  return upper;
}

std::unique_ptr<StoredWeight> gptq_quantize(std::vector<float> values, int64_t n, int64_t k,
                                            const std::vector<float>& factor,
                                            const QuantizationScheme& scheme,
                                            const std::string& where, int threads) {
  const std::optional<WeightForm> form = scheme.form(k);
  SHOAL_CHECK(form && form->block_rows == 1 && form->dtype != DType::kF8E4M3, "{}: {}", where,
              scheme.name);
  auto out = std::make_unique<MemoryWeight>(where, n, k, *form);
  const Matrix matrix{values.data(), n, k, factor, scheme};
  std::vector<std::jthread> workers;
  for (int t = 0; t < std::max(threads, 1); ++t) {
    workers.emplace_back([&, t] {
      for (int64_t begin = t * kRowsTogether; begin < n;
           begin += kRowsTogether * std::max(threads, 1)) {
        quantize_rows(matrix, {begin, std::min(begin + kRowsTogether, n)}, *out);
      }
    });
  }
  workers.clear();
  return out;
}

}  // namespace shoal

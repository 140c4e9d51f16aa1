#include "runtime/quantization/gptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/quantization/inverse_factor.h"
#include "runtime/quantization/rounding.h"

namespace shoal {
namespace {

// Rows that go through the columns together, so that a piece of U is read once for all of them.
constexpr int64_t kRowsTogether = 16;
// Columns whose errors are collected before the columns behind them hear of it: 128 rows of U over
// a tile of 64 columns are 32 KB, which the first cache holds.
constexpr int64_t kBlock = 128;
constexpr int64_t kTile = 64;

// A quantised matrix in memory, whole.
class MemoryWeight : public StoredWeight {
 public:
  MemoryWeight(std::string where, int64_t n, int64_t k, WeightForm form)
      : where_(std::move(where)),
        n_(n),
        k_(k),
        form_(form),
        blocks_(blocks_touched({0, k}, form.block_cols).size()) {
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
  const float* values;  // [n, k]
  int64_t n, k;
  const InputStatistics& inputs;
  const QuantizationScheme& scheme;
};

// Some rows on their way through the columns.
class RowQuantizer {
 public:
  RowQuantizer(const Matrix& m, MemoryWeight& out)
      : m_(m),
        out_(out),
        form_(out.form()),
        bits_(form_.dtype == DType::kI4x2 ? 4 : 8),
        k_(m.k),
        groups_((m.k + form_.block_cols - 1) / form_.block_cols),
        values_(kRowsTogether * m.k),
        codes_(kRowsTogether * m.k),
        errors_(kRowsTogether * kBlock),
        scales_(kRowsTogether * groups_) {}

  void quantize(Range rows) {
    rows_ = rows;
    choose_scales();
    if (m_.inputs.factor.empty()) {
      for (int64_t r = 0; r < rows.size(); ++r) {
        for (int64_t g = 0; g < groups_; ++g) {
          round_to_codes(group_of(r, g), scales_[r * groups_ + g], bits_,
                         codes_.data() + r * k_ + g * form_.block_cols);
        }
      }
    } else {
      for (int64_t r = 0; r < rows.size(); ++r) {
        for (int64_t j = 0; j < k_; ++j) {
          values_[r * k_ + j] = m_.values[(rows.begin + r) * k_ + m_.inputs.order[j]];
        }
      }
      for (int64_t begin = 0; begin < k_; begin += kBlock) {
        const Range block{begin, std::min(begin + kBlock, k_)};
        round_block(block);
        spread_errors(block);
      }
    }
    store();
  }

 private:
  std::span<const float> group_of(int64_t r, int64_t g) const {
    const int64_t begin = g * form_.block_cols;
    return {m_.values + (rows_.begin + r) * k_ + begin,
            static_cast<size_t>(std::min<int64_t>(form_.block_cols, k_ - begin))};
  }

  void choose_scales() {
    const std::span<const float> importance = m_.inputs.importance;
    for (int64_t r = 0; r < rows_.size(); ++r) {
      for (int64_t g = 0; g < groups_; ++g) {
        const std::span<const float> group = group_of(r, g);
        const GroupScale chosen = choose_scale(
            group, bits_, m_.scheme.zero(),
            importance.empty() ? importance
                               : importance.subspan(g * form_.block_cols, group.size()));
        scales_[r * groups_ + g] = chosen;
        const int64_t at = (rows_.begin + r) * groups_ + g;
        out_.scale[at] = chosen.scale;
        if (form_.has_min) out_.min[at] = chosen.min;
      }
    }
  }

  // Each column's error goes to the columns of the block behind it at once.
  void round_block(Range block) {
    for (int64_t j = block.begin; j < block.end; ++j) {
      const float* u = m_.inputs.factor.data() + j * k_;
      const int64_t column = m_.inputs.order[j];
      for (int64_t r = 0; r < rows_.size(); ++r) {
        float* row = values_.data() + r * k_;
        const GroupScale scale = scales_[r * groups_ + column / form_.block_cols];
        int8_t& code = codes_[r * k_ + column];
        round_to_codes({row + j, 1}, scale, bits_, &code);
        const float error = (row[j] - (static_cast<float>(code) * scale.scale + scale.min)) / u[j];
        errors_[r * kBlock + j - block.begin] = error;
        for (int64_t l = j + 1; l < block.end; ++l) row[l] -= error * u[l];
      }
    }
  }

  // The errors of the block to all columns behind it.
  void spread_errors(Range block) {
    for (int64_t begin = block.end; begin < k_; begin += kTile) {
      const int64_t width = std::min(kTile, k_ - begin);
      for (int64_t r = 0; r < rows_.size(); ++r) {
        float* __restrict row = values_.data() + r * k_ + begin;
        for (int64_t j = block.begin; j < block.end; ++j) {
          const float* __restrict u = m_.inputs.factor.data() + j * k_ + begin;
          const float error = errors_[r * kBlock + j - block.begin];
          for (int64_t l = 0; l < width; ++l) row[l] -= error * u[l];
        }
      }
    }
  }

  void store() {
    for (int64_t r = 0; r < rows_.size(); ++r) {
      std::byte* numbers = out_.numbers.data() + (rows_.begin + r) * form_.row_bytes(k_);
      const int8_t* row = codes_.data() + r * k_;
      if (bits_ == 8) {
        std::memcpy(numbers, row, k_);
        continue;
      }
      for (int64_t j = 0; j < k_; j += 2) {
        *numbers++ = static_cast<std::byte>((row[j] & 15) | (row[j + 1] & 15) << 4);
      }
    }
  }

  const Matrix& m_;
  MemoryWeight& out_;
  const WeightForm form_;
  const int bits_;
  const int64_t k_, groups_;
  Range rows_;
  std::vector<float> values_;       // [rows, k], columns in the order that they are rounded
  std::vector<int8_t> codes_;       // [rows, k], columns in place
  std::vector<float> errors_;       // [rows, kBlock]
  std::vector<GroupScale> scales_;  // [rows, groups]
};

}  // namespace

InputStatistics input_statistics(const std::vector<float>& sum, int64_t k, int threads) {
  const auto at = [&](int64_t i) { return sum[i * k + i]; };
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += at(i);
  mean /= static_cast<double>(k);
  if (!(mean > 0) || !std::isfinite(mean)) return {};
  InputStatistics inputs;
  for (int64_t i = 0; i < k; ++i) inputs.importance.push_back(static_cast<float>(at(i) / mean));
  inputs.order.resize(k);
  std::iota(inputs.order.begin(), inputs.order.end(), 0);
  std::stable_sort(inputs.order.begin(), inputs.order.end(),
                   [&](int32_t a, int32_t b) { return at(a) > at(b); });
  constexpr double kDamping = 0.01;
  std::vector<double> ordered(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      ordered[i * k + j] = sum[inputs.order[i] * k + inputs.order[j]];
    }
    ordered[i * k + i] += kDamping * mean;
  }
  inputs.factor = inverse_factor(ordered, k, threads);
  if (inputs.factor.empty()) return {};  // for all its damping: rounding errors of huge inputs
  return inputs;
}

std::unique_ptr<StoredWeight> gptq_quantize(const std::vector<float>& values, int64_t n, int64_t k,
                                            const InputStatistics& inputs,
                                            const QuantizationScheme& scheme,
                                            const std::string& where, int threads) {
  const std::optional<WeightForm> form = scheme.form(k);
  SHOAL_CHECK(form && form->block_rows == 1 && form->dtype != DType::kF8E4M3, "{}: {}", where,
              scheme.name);
  auto out = std::make_unique<MemoryWeight>(where, n, k, *form);
  const Matrix matrix{values.data(), n, k, inputs, scheme};
  std::vector<std::jthread> workers;
  for (int t = 0; t < std::max(threads, 1); ++t) {
    workers.emplace_back([&, t] {
      RowQuantizer quantizer(matrix, *out);
      for (int64_t begin = t * kRowsTogether; begin < n;
           begin += kRowsTogether * std::max(threads, 1)) {
        quantizer.quantize({begin, std::min(begin + kRowsTogether, n)});
      }
    });
  }
  workers.clear();
  return out;
}

}  // namespace shoal

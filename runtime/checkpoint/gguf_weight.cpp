#include "runtime/checkpoint/gguf_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/checkpoint/gguf_blocks.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

// How much of a file is in memory at once, beside what it becomes.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// The number that makes 0..15 fit into I4x2's -8..7.
constexpr int kI4Offset = 8;

void require_finite(const GgufRows& rows, const GgmlBlock& block, int64_t groups, bool has_min) {
  for (int64_t g = 0; g < groups; ++g) {
    if (!std::isfinite(block.scale[g]) || (has_min && !std::isfinite(block.min[g]))) {
      throw_invalid("{} holds scales that are not finite", rows.where());
    }
  }
}

// Calls body(row, its blocks) for the blocks of `rows` that hold `cols`.
template <typename Body>
void for_each_row(const GgufRows& matrix, Range rows, Range cols, const Body& body) {
  const Range blocks = blocks_touched(cols, matrix.type->block);
  const int64_t row_bytes = blocks.size() * matrix.type->block_bytes;
  const int64_t piece = std::max<int64_t>(kPieceBytes / row_bytes, 1);
  std::vector<std::byte> data(static_cast<size_t>(std::min(piece, rows.size()) * row_bytes));
  for (int64_t first = rows.begin; first < rows.end; first += piece) {
    const Range part{first, std::min(first + piece, rows.end)};
    matrix.read_blocks(part, cols, data.data());
    for (int64_t row = part.begin; row < part.end; ++row) {
      body(row, data.data() + (row - part.begin) * row_bytes);
    }
  }
}

class QuantizedWeight : public StoredWeight {
 public:
  explicit QuantizedWeight(GgufRows rows) : rows_(std::move(rows)), form_(ggml_form(*rows_.type)) {}

  std::string where() const override { return rows_.where(); }
  int64_t n() const override { return rows_.n; }
  int64_t k() const override { return rows_.k; }
  WeightForm form() const override { return form_; }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    return static_cast<uint64_t>(rows.size() * blocks_touched(cols, rows_.type->block).size() *
                                 rows_.type->block_bytes);
  }

  void read(Range rows, Range cols, std::byte* numbers, float* scale, float* min) const override {
    const GgmlType& type = *rows_.type;
    const Range blocks = blocks_touched(cols, type.block);
    const Range groups = blocks_touched(cols, form_.block_cols);
    const int64_t per_block = type.block / form_.block_cols;
    const bool packed = form_.dtype == DType::kI4x2;
    // Q4_0 is signed already.
    const int offset = packed && form_.has_min ? kI4Offset : 0;
    GgmlBlock block;
    std::vector<int8_t> q(static_cast<size_t>(cols.size()));
    for_each_row(rows_, rows, cols, [&](int64_t row, const std::byte* data) {
      for (int64_t b = blocks.begin; b < blocks.end; ++b, data += type.block_bytes) {
        take_apart(type, data, &block);
        require_finite(rows_, block, per_block, form_.has_min);
        const Range held{std::max(cols.begin, b * type.block),
                         std::min(cols.end, (b + 1) * type.block)};
        std::copy(block.q + (held.begin - b * type.block), block.q + (held.end - b * type.block),
                  q.data() + (held.begin - cols.begin));
        const Range held_groups = blocks_touched(held, form_.block_cols);
        for (int64_t g = held_groups.begin; g < held_groups.end; ++g) {
          const float group_scale = block.scale[g - b * per_block];
          const int64_t at = (row - rows.begin) * groups.size() + (g - groups.begin);
          scale[at] = group_scale;
          if (form_.has_min) {
            min[at] = block.min[g - b * per_block] + static_cast<float>(offset) * group_scale;
          }
        }
      }
      std::byte* out = numbers + (row - rows.begin) * (packed ? cols.size() / 2 : cols.size());
      if (!packed) {
        std::memcpy(out, q.data(), q.size());
        return;
      }
      for (size_t i = 0; i + 1 < q.size(); i += 2) {
        out[i / 2] =
            static_cast<std::byte>(((q[i] - offset) & 15) | ((q[i + 1] - offset) & 15) << 4);
      }
    });
  }

 private:
  const GgufRows rows_;
  const WeightForm form_;
};

class PlainWeight : public StoredWeight {
 public:
  explicit PlainWeight(GgufRows rows) : rows_(std::move(rows)) {}

  std::string where() const override { return rows_.where(); }
  int64_t n() const override { return rows_.n; }
  int64_t k() const override { return rows_.k; }
  WeightForm form() const override { return ggml_form(*rows_.type); }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    return static_cast<uint64_t>(rows.size() * cols.size() * rows_.type->block_bytes);
  }
  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    rows_.read_blocks(rows, cols, numbers);
  }

 private:
  const GgufRows rows_;
};

class F32Weight : public StoredWeight {
 public:
  explicit F32Weight(GgufRows rows) : rows_(std::move(rows)) {}

  std::string where() const override { return rows_.where(); }
  int64_t n() const override { return rows_.n; }
  int64_t k() const override { return rows_.k; }
  WeightForm form() const override { return {DType::kF32}; }
  uint64_t stored_bytes(Range rows, Range cols) const override {
    return static_cast<uint64_t>(rows.size() * blocks_touched(cols, rows_.type->block).size() *
                                 rows_.type->block_bytes);
  }
  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    rows_.read_f32(rows, cols, reinterpret_cast<float*>(numbers));
  }

 private:
  const GgufRows rows_;
};

class KvBWeight : public StoredWeight {
 public:
  KvBWeight(GgufRows k_b, GgufRows v_b, int64_t heads)
      : k_b_(std::move(k_b)),
        v_b_(std::move(v_b)),
        heads_(heads),
        nope_(k_b_.k),
        v_dim_(v_b_.n / heads),
        lora_(v_b_.k) {}

  std::string where() const override { return k_b_.where(); }
  int64_t n() const override { return heads_ * (nope_ + v_dim_); }
  int64_t k() const override { return lora_; }
  WeightForm form() const override { return {DType::kF32}; }

  uint64_t stored_bytes(Range rows, Range cols) const override {
    uint64_t bytes = 0;
    for_each_head(rows, [&](int64_t head, Range k_rows, Range v_rows) {
      if (k_rows.size() > 0) bytes += static_cast<uint64_t>(cols.size()) * k_b_.row_bytes();
      bytes += static_cast<uint64_t>(v_rows.size() * blocks_touched(cols, v_b_.type->block).size() *
                                     v_b_.type->block_bytes);
    });
    return bytes;
  }

  void read(Range rows, Range cols, std::byte* numbers, float*, float*) const override {
    auto* out = reinterpret_cast<float*>(numbers);
    std::vector<float> transposed;
    for_each_head(rows, [&](int64_t head, Range k_rows, Range v_rows) {
      if (k_rows.size() > 0) {
        transposed.resize(static_cast<size_t>(cols.size() * nope_));  // [cols, nope]
        k_b_.read_f32({head * lora_ + cols.begin, head * lora_ + cols.end}, {0, nope_},
                      transposed.data());
        for (int64_t row = k_rows.begin; row < k_rows.end; ++row) {
          for (int64_t c = 0; c < cols.size(); ++c) *out++ = transposed[c * nope_ + row];
        }
      }
      if (v_rows.size() > 0) {
        v_b_.read_f32({head * v_dim_ + v_rows.begin, head * v_dim_ + v_rows.end}, cols, out);
        out += v_rows.size() * cols.size();
      }
    });
  }

 private:
  // body(head, rows of its nope part, rows of its v part) for every head that `rows` touches.
  template <typename Body>
  void for_each_head(Range rows, const Body& body) const {
    const int64_t per_head = nope_ + v_dim_;
    const Range heads = blocks_touched(rows, per_head);
    for (int64_t head = heads.begin; head < heads.end; ++head) {
      const int64_t first = std::max(rows.begin - head * per_head, int64_t{0});
      const int64_t last = std::min(rows.end - head * per_head, per_head);
      body(head, Range{std::min(first, nope_), std::min(last, nope_)},
           Range{std::max(first, nope_) - nope_, std::max(last, nope_) - nope_});
    }
  }

  const GgufRows k_b_, v_b_;
  const int64_t heads_, nope_, v_dim_, lora_;
};

}  // namespace

std::string GgufRows::where() const { return file->path() + ": tensor " + in_quotes(name); }

void GgufRows::read_blocks(Range rows, Range cols, std::byte* out) const {
  const Range blocks = blocks_touched(cols, type->block);
  const auto width = static_cast<uint64_t>(blocks.size() * type->block_bytes);
  const uint64_t skipped = static_cast<uint64_t>(blocks.begin * type->block_bytes);
  const auto at = [&](int64_t row) { return begin + static_cast<uint64_t>(row) * row_bytes(); };
  if (permuted_half == 0 && width == row_bytes()) {
    file->read(at(rows.begin), at(rows.end), out);
    return;
  }
  for (int64_t row = rows.begin; row < rows.end; ++row, out += width) {
    int64_t source = row;
    if (permuted_half > 0) {
      const int64_t head = row / (2 * permuted_half), in_head = row % (2 * permuted_half);
      source = head * 2 * permuted_half + in_head % permuted_half * 2 + in_head / permuted_half;
    }
    file->read(at(source) + skipped, at(source) + skipped + width, out);
  }
}

void GgufRows::read_f32(Range rows, Range cols, float* out) const {
  const Range blocks = blocks_touched(cols, type->block);
  const int64_t first = blocks.begin * type->block;
  std::vector<float> values(static_cast<size_t>(blocks.size() * type->block));
  for_each_row(*this, rows, cols, [&](int64_t row, const std::byte* data) {
    dequantize(*type, data, blocks.size(), values.data());
    const float* wanted = values.data() + (cols.begin - first);
    // A scale that is not finite makes at least one value of its group so.
    if (!std::all_of(wanted, wanted + cols.size(), [](float x) { return std::isfinite(x); })) {
      throw_invalid("{} holds values that are not finite", where());
    }
    std::copy(wanted, wanted + cols.size(), out + (row - rows.begin) * cols.size());
  });
}

std::unique_ptr<StoredWeight> make_gguf_weight(GgufRows rows) {
  if (is_plain(*rows.type)) return std::make_unique<PlainWeight>(std::move(rows));
  return std::make_unique<QuantizedWeight>(std::move(rows));
}

std::unique_ptr<StoredWeight> make_gguf_f32(GgufRows rows) {
  return std::make_unique<F32Weight>(std::move(rows));
}

std::unique_ptr<StoredWeight> make_gguf_kv_b(GgufRows k_b, GgufRows v_b, int64_t heads) {
  return std::make_unique<KvBWeight>(std::move(k_b), std::move(v_b), heads);
}

}  // namespace shoal

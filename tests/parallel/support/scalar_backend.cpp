// The verbs that the parallel layer calls, one plain loop each.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tests/parallel/support/backend.h"

namespace shoal::test {
namespace {

class HostDevice final : public Device {
 public:
  std::string name() const override { return "host"; }
  Buffer allocate(size_t bytes) override {
    return {this, std::aligned_alloc(256, (bytes + 255) / 256 * 256), bytes};
  }
  void copy_to_device(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void copy_to_host(void* host, const void* device, size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void synchronize() override {}

 protected:
  void deallocate(void* data) override { std::free(data); }
};

[[noreturn]] void not_called() { throw Bug("the parallel layer does not call this verb"); }

class ScalarOps final : public Ops {
 public:
  void embedding(const Tensor& ids, const Tensor& table, int64_t first_row,
                 const Tensor& out) override {
    for (int64_t t = 0; t < ids.dim(0); ++t) {
      const int64_t row = ids.as<int32_t>()[t] - first_row;
      for (int64_t j = 0; j < out.dim(1); ++j) {
        const bool held = 0 <= row && row < table.dim(0);
        out.row<float>(t)[j] = held ? table.row<float>(row)[j] : 0.0f;
      }
    }
  }
  void copy(const Tensor& x, const Tensor& out) override {
    SHOAL_CHECK(x.rank == 2 && x.shape == out.shape);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      std::copy_n(x.row<float>(t), x.dim(1), out.row<float>(t));
    }
  }
  void linear(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) override {
    for (int64_t t = 0; t < x.dim(0); ++t) {
      for (int64_t i = 0; i < w.n(); ++i) {
        float sum = 0;
        for (int64_t j = 0; j < w.k(); ++j) sum += x.row<float>(t)[j] * value(w, i, j);
        out.row<float>(t)[i] = sum + (bias.defined() ? bias.as<float>()[i] : 0.0f);
      }
    }
  }
  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) override {
    for (int64_t i = 0; i < rows.dim(0); ++i) {
      std::copy_n(x.row<float>(rows.as<int32_t>()[i]), x.dim(1), out.row<float>(i));
    }
  }
  void combine(const Tensor& rows, const Tensor& slot, const Tensor& weights,
               const Tensor& out) override {
    for (int64_t t = 0; t < slot.dim(0); ++t) {
      std::fill_n(out.row<float>(t), out.dim(1), 0.0f);
      for (int64_t j = 0; j < slot.dim(1); ++j) {
        const int32_t row = slot.row<int32_t>(t)[j];
        for (int64_t i = 0; row >= 0 && i < out.dim(1); ++i) {
          out.row<float>(t)[i] += weights.row<float>(t)[j] * rows.row<float>(row)[i];
        }
      }
    }
  }

  void rms_norm(const Tensor&, const Tensor&, float, const Tensor&) override { not_called(); }
  void add_rms_norm(const Tensor&, const Tensor&, const Tensor&, float, const Tensor&) override {
    not_called();
  }
  void add(const Tensor&, const Tensor&) override { not_called(); }
  void head_linear(const Tensor&, const Tensor&, const Tensor&) override { not_called(); }
  void grouped_linear(const Tensor&, std::span<const Weight>, const Tensor&,
                      const Tensor&) override {
    not_called();
  }
  void silu_mul(const Tensor&, const Tensor&, const Tensor&) override { not_called(); }
  void rope(const Tensor&, const Tensor&, const Tensor&, bool) override { not_called(); }
  void write_cache(const Tensor&, const Tensor&, const Tensor&, int64_t) override { not_called(); }
  void gather_cache(const Tensor&, const Tensor&, int32_t, int64_t, int64_t,
                    const Tensor&) override {
    not_called();
  }
  void mla_decode(const Tensor&, const Tensor&, const PagedBatch&, float, const Tensor&) override {
    not_called();
  }
  void mla_prefill(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, float,
                   const AttentionState&) override {
    not_called();
  }
  void begin_state(const AttentionState&) override { not_called(); }
  void finish_state(const AttentionState&, const Tensor&) override { not_called(); }
  void gqa_attention(const Tensor&, const Tensor&, const Tensor&, const PagedBatch&, const HeadMap&,
                     float, const Tensor&) override {
    not_called();
  }
  void route(const Tensor&, const Tensor&, const RouterSpec&, const Tensor&,
             const Tensor&) override {
    not_called();
  }
  int64_t sort_by_expert(const Tensor&, int32_t, const Tensor&, const Tensor&,
                         const Tensor&) override {
    not_called();
  }
  void dequantize(const Weight&, const Tensor&) override { not_called(); }

 private:
  static float value(const Weight& w, int64_t i, int64_t j) {
    if (w.data.dtype == DType::kF32) return w.data.row<float>(i)[j];
    SHOAL_CHECK(w.data.dtype == DType::kF8E4M3);
    return to_float(w.data.row<F8E4M3>(i)[j]) *
           w.scale.row<float>((i + w.row_offset) / w.block_rows)[(j + w.col_offset) / w.block_cols];
  }
};

}  // namespace

std::unique_ptr<Device> make_test_device() { return std::make_unique<HostDevice>(); }
std::unique_ptr<Ops> make_test_ops() { return std::make_unique<ScalarOps>(); }

}  // namespace shoal::test

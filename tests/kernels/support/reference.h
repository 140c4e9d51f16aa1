// Every verb again, in scalar double precision, written for clearness: what the kernels are held
// to. Each returns the exact result (to double precision) and, where rounding matters, a bound on
// the error that float32 arithmetic in any order may have: derived from the sum of the magnitudes
// of the terms, not tuned.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace shoal::test {

inline constexpr double kEps = 0x1p-24;  // unit roundoff of float32

// How many roundings the longest chain of a sum of n terms has: with SIMD there are at least four
// lanes and fused products, and then a short tree over the lanes; the portable target has one lane
// and rounds product and sum.
double chain(int64_t n);

struct Expected {
  std::vector<double> value;
  std::vector<double> bound;  // of |kernel - value|
  void push(double v, double b) {
    value.push_back(v);
    bound.push_back(b);
  }
};

// Calls body(offset in elements) for each element, in row-major order.
void for_each_index(const Tensor& tensor, const std::function<void(int64_t offset)>& body);
double value_at(const Tensor& tensor, int64_t offset);
std::vector<double> values(const Tensor& tensor);  // row-major

// The element of largest (error - bound), for CHECK messages: error <= bound everywhere is "".
std::string first_violation(const Tensor& actual, const Expected& expected);

// As dequantize gives it: number * scale is rounded to float, and once more when a min is added.
double weight_at(const Weight& w, int64_t row, int64_t col);

Expected linear(const Tensor& x, const Weight& w, const Tensor& bias);
Expected rms_norm(const Tensor& x, const Tensor& weight, float eps);
Expected silu_mul(const Tensor& gate, const Tensor& up);
Expected rope(const Tensor& x, const Tensor& positions, const Tensor& table, bool interleaved);
Expected combine(const Tensor& rows, const Tensor& slot, const Tensor& weights);

struct Routed {
  std::vector<int32_t> ids;
  Expected weights;
};
Routed route(const Tensor& logits, const Tensor& correction_bias, const RouterSpec& spec);

// Columns [column, column + n) of the row of a slot.
std::vector<double> cache_row(const CacheTensor& cache, int64_t slot, int64_t column, int64_t n);

// Attention of one query over keys [n, d] and values [n, dv].
Expected attention(const std::vector<double>& q, const std::vector<std::vector<double>>& keys,
                   const std::vector<std::vector<double>>& values, double scale);
Expected mla_decode(const Tensor& q, const CacheTensor& cache, const PagedBatch& batch, double scale,
                    int64_t kv_lora);
// The keys and values of all positions [0, kv rows).
Expected mla_expanded(const Tensor& q, const Tensor& kv, const Tensor& k_pe,
                      const Tensor& positions, double scale);
Expected gqa_attention(const Tensor& q, const CacheTensor& k_cache, const CacheTensor& v_cache,
                       const PagedBatch& batch, const Ops::HeadMap& heads, double scale);

}  // namespace shoal::test

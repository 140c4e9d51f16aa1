// GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounds a matrix column by column and spreads each
// column's error over the columns that follow, so that the outputs for the inputs seen change
// least.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// What is known of the inputs that a matrix of k columns is multiplied with.
struct InputStatistics {
  std::vector<int32_t>
      order;  // [k]: columns as they are rounded, those with the largest inputs first
  std::vector<float> factor;      // [k, k], row-major, in that order; empty: nothing is known
  std::vector<float> importance;  // [k]: the mean square of each column's input, of 1 on average
};

// From the sum H of x x^T over inputs x, [k, k], row-major. factor: upper triangular U with
// U^T U = (H + damping)^-1. Damping: a hundredth of the mean of the diagonal. O(k^3), shared by
// `threads`; deterministic. Empty where H is zero.
InputStatistics input_statistics(const std::vector<float>& sum, int64_t k, int threads);

// `values` [n, k] as codes of an integer scheme, against those inputs; plain rounding where nothing
// is known of them. Scales are chosen for the values as given, so groups stay in place whatever the
// order. Rows are independent; `threads` share them. Deterministic.
std::unique_ptr<StoredWeight> gptq_quantize(const std::vector<float>& values, int64_t n, int64_t k,
                                            const InputStatistics& inputs,
                                            const QuantizationScheme& scheme,
                                            const std::string& where, int threads);

}  // namespace shoal

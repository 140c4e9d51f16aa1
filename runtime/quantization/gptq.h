// GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounds a matrix column by column and spreads each
// column's error over the columns that follow, so that the outputs for the inputs seen change least.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/scheme.h"

namespace shoal {

// U [k, k], upper triangular, with U^T U = (H + damping)^-1, for the sum H of x x^T over inputs x
// [k, k], row-major. Damping: a hundredth of the mean of the diagonal. O(k^3). Empty where H is zero.
std::vector<float> inverse_factor(const std::vector<float>& hessian, int64_t k);

// `values` [n, k] as codes of an integer scheme, against inverse_factor(H); plain rounding where that
// is empty. Rows are independent; `threads` share them. Deterministic.
std::unique_ptr<StoredWeight> gptq_quantize(std::vector<float> values, int64_t n, int64_t k,
                                            const std::vector<float>& factor,
                                            const QuantizationScheme& scheme,
                                            const std::string& where, int threads);

}  // namespace shoal

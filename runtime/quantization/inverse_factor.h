// The factor of an inverse that GPTQ rounds against.
#pragma once

#include <cstdint>
#include <vector>

namespace shoal {

// U [k, k], upper triangular, row-major, with U^T U = H^-1 for the symmetric H [k, k], of which the
// lower triangle is read. O(k^3), shared by `threads`, with the same bits for any number of them.
// Empty where H is not positive definite.
std::vector<float> inverse_factor(const std::vector<double>& h, int64_t k, int threads);

}  // namespace shoal

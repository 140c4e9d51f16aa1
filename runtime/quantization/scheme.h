// QuantizationScheme: what `--quantization` and `shoal quantize --scheme` name, and which matrices
// it touches. Pure.
#pragma once

#include <optional>
#include <string>

#include "runtime/checkpoint/stored_weight.h"
#include "runtime/quantization/rounding.h"

namespace shoal {

struct QuantizationScheme {
  std::string name;            // as given
  DType dtype = DType::kI4x2;  // I4x2 | I8 | F8E4M3
  int64_t group = 0;  // columns that share a scale; 0: the whole row. F8E4M3: the block's side
  bool symmetric = true;
  bool calibrated = false;  // GPTQ over the model's own activations: `shoal quantize` only
  bool for_file = false;    // mins are integer zero points: files have no others

  ZeroPoint zero() const {
    return symmetric ? ZeroPoint::kNone : for_file ? ZeroPoint::kInteger : ZeroPoint::kFree;
  }

  // How a matrix of k columns is held; nothing when it stays as it is stored: int4 with k no
  // multiple of 16. Where k is no multiple of the group, the largest of 64, 32 and 16 that divides
  // it is used.
  std::optional<WeightForm> form(int64_t k) const;
};

inline constexpr const char* kSchemeNames =
    "int4, int4-g32, int4-asym, int4-asym-g32, int8, int8-g128, fp8";
inline constexpr const char* kCalibratedNames =
    "int4-gptq, int4-gptq-g32, int4-gptq-asym, int4-gptq-asym-g32";

// Throws InvalidInput naming `flag` and the schemes there are: calibrated ones only `for_file`.
QuantizationScheme parse_scheme(const std::string& flag, const std::string& name,
                                bool for_file = false);

// Whether weights stored as `stored` stay so under the scheme: floats of its own type, and integers
// of no more bits, which a second rounding could only make worse.
bool stays_as_stored(DType stored, const QuantizationScheme& scheme);

// Whether a scheme touches the matrix called `name`.weight: linear layers and experts, not
// embeddings, heads, routers and the MTP layer's eh_proj.
bool is_quantizable(const std::string& name);

}  // namespace shoal

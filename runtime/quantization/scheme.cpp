#include "runtime/quantization/scheme.h"

#include "kernels/base/error.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

constexpr int64_t kFp8Block = 128;  // DeepSeek's

}  // namespace

std::optional<WeightForm> QuantizationScheme::form(int64_t k) const {
  if (dtype == DType::kF8E4M3) {
    return WeightForm{dtype, static_cast<int32_t>(group), static_cast<int32_t>(group)};
  }
  if (group == 0) return WeightForm{dtype, 1, static_cast<int32_t>(k), !symmetric};
  for (int64_t size = group; size >= 16; size /= 2) {
    if (k % size == 0) return WeightForm{dtype, 1, static_cast<int32_t>(size), !symmetric};
  }
  return std::nullopt;
}

QuantizationScheme parse_scheme(const std::string& flag, const std::string& name, bool calibrated) {
  if (name == "int4") return {name, DType::kI4x2, 128};
  if (name == "int4-g32") return {name, DType::kI4x2, 32};
  if (name == "int4-asym") return {name, DType::kI4x2, 128, /*symmetric=*/false};
  if (name == "int4-asym-g32") return {name, DType::kI4x2, 32, /*symmetric=*/false};
  if (name == "int8") return {name, DType::kI8, 0};
  if (name == "int8-g128") return {name, DType::kI8, 128};
  if (name == "fp8") return {name, DType::kF8E4M3, kFp8Block};
  if (name == "int4-gptq" && calibrated) {
    return {name, DType::kI4x2, 128, /*symmetric=*/true, /*calibrated=*/true};
  }
  if (name == "int4-gptq") {
    throw_invalid("{} {}: it is calibrated ahead of time; run shoal quantize --scheme int4-gptq first",
                  flag, name);
  }
  throw_invalid("{} {}: use {}{}", flag, in_quotes(name), kSchemeNames,
                calibrated ? ", int4-gptq" : "");
}

bool is_quantizable(const std::string& name) {
  for (const char* kept : {"lm_head", "embed_tokens", ".mlp.gate", ".shared_head.head", ".eh_proj"}) {
    if (name.ends_with(kept)) return false;
  }
  return true;
}

}  // namespace shoal

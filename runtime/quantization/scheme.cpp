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

QuantizationScheme parse_scheme(const std::string& flag, const std::string& name, bool for_file) {
  QuantizationScheme scheme{.name = name, .for_file = for_file};
  if (name == "int8" || name == "int8-g128") {
    scheme.dtype = DType::kI8;
    scheme.group = name == "int8" ? 0 : 128;
    return scheme;
  }
  if (name == "fp8") {
    scheme.dtype = DType::kF8E4M3;
    scheme.group = kFp8Block;
    return scheme;
  }
  std::string_view rest = name;
  const auto take = [&](std::string_view part) {
    if (!rest.starts_with(part)) return false;
    rest.remove_prefix(part.size());
    return true;
  };
  const bool int4 = take("int4");
  scheme.calibrated = take("-gptq");
  scheme.symmetric = !take("-asym");
  scheme.group = take("-g32") ? 32 : 128;
  if (!int4 || !rest.empty()) {
    throw_invalid("{} {}: use {}{}{}", flag, in_quotes(name), kSchemeNames, for_file ? ", " : "",
                  for_file ? kCalibratedNames : "");
  }
  if (scheme.calibrated && !for_file) {
    throw_invalid("{} {}: it is calibrated ahead of time; run shoal quantize --scheme {} first", flag,
                  name, name);
  }
  return scheme;
}

bool stays_as_stored(DType stored, const QuantizationScheme& scheme) {
  if (stored == DType::kI4x2) return true;
  if (stored == DType::kI8) return scheme.dtype != DType::kI4x2;
  return stored == scheme.dtype;
}

bool is_quantizable(const std::string& name) {
  for (const char* kept : {"lm_head", "embed_tokens", ".mlp.gate", ".shared_head.head", ".eh_proj"}) {
    if (name.ends_with(kept)) return false;
  }
  return true;
}

}  // namespace shoal

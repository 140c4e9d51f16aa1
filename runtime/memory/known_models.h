// The published models that `shoal plan` knows without their files, and how to name them.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace shoal {

struct KnownModel {
  const char* name;    // "deepseek-ai/DeepSeek-V3"
  const char* config;  // config.json, for parse_model_config
  // Distilled models stand in for their parent where that does not fit.
  bool is_distill() const { return std::string_view(name).find("-Distill-") != std::string_view::npos; }
};

// Smallest first within a family: V2-Lite, V2, V3, R1, then R1's distilled models.
std::span<const KnownModel> known_models();
// By its name, with or without "deepseek-ai/", "DeepSeek-" and "R1-Distill-", in any case; null: unknown.
const KnownModel* find_known_model(std::string_view name);
std::string_view short_name(const KnownModel& model);  // "V3", "R1-Distill-Qwen-7B"

}  // namespace shoal

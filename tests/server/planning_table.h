// The table of docs/planning.md, made by what `shoal plan --json` answers.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/memory/known_models.h"
#include "server/plan_command.h"

namespace shoal {

inline constexpr std::string_view kPlanningGpus[] = {"1xRTX 4090", "2xRTX 4090", "4xRTX 4090", "8xRTX 4090",
                                                     "1xH100",     "8xH100",     "8xH200"};
inline constexpr std::string_view kPlanningBegin = "<!-- begin: shoal_planning_table -->\n";
inline constexpr std::string_view kPlanningEnd = "<!-- end: shoal_planning_table -->\n";

inline std::string rounded(double value) {
  return value < 10 ? fmt::format("{:.1f}", value) : fmt::format("{:.0f}", value);
}

// "int4: 55 t/s, 21k": the finest form of the weights that fits, the decode rate that the hardware allows at
// batch 1, and tokens of KV cache; else the same with experts in 512 GiB of host memory; else "-".
inline std::string planning_cell(const KnownModel& model, std::string_view gpus) {
  PlanCommandOptions options{.model = model.name, .gpus = std::string(gpus), .host_memory = "512GiB", .json = true};
  const auto ask = [&](const std::string& name) {
    const PlanAnswer answer = plan_answer(options);
    if (!answer.fits) return std::string();
    const auto json = nlohmann::json::parse(answer.text);
    uint64_t disk = 0;
    for (const auto& rank : json["ranks"]) disk += rank["experts_on_disk_bytes"].get<uint64_t>();
    if (disk > 0) return std::string();
    const auto tokens = json["kv_tokens"].get<int64_t>();
    return fmt::format("{}: {} t/s, {}k", name, rounded(json["rates"][0]["tokens_per_s"].get<double>()),
                       tokens / 1000);
  };
  for (const char* quantization : {"none", "fp8", "int4"}) {
    options.quantization = quantization;
    const std::string cell = ask(options.quantization == "none" ? "as is" : quantization);
    if (!cell.empty()) return cell;
  }
  options.expert_offload = "auto";
  const bool moe = !model.is_distill();
  const std::string cell = moe ? ask("int4, experts on host") : "";
  return cell.empty() ? "-" : cell;
}

inline std::string planning_table() {
  std::string table = "| model |", rule = "| --- |";
  for (const std::string_view gpus : kPlanningGpus) {
    table += fmt::format(" {} |", gpus);
    rule += " --- |";
  }
  table += "\n" + rule + "\n";
  for (const KnownModel& model : known_models()) {
    table += fmt::format("| {} |", short_name(model));
    for (const std::string_view gpus : kPlanningGpus) table += fmt::format(" {} |", planning_cell(model, gpus));
    table += "\n";
  }
  return table;
}

}  // namespace shoal

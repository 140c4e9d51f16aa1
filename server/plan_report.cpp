#include "server/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kContexts[] = {2048, 8192, 32768, 131072};
constexpr int64_t kBatches[] = {1, 8, 32, 128};
constexpr int64_t kRateContext = 1024;

std::string count_text(int64_t n) { return fmt::format("{:.2f} B", static_cast<double>(n) / 1e9); }

std::string plural(int64_t n, const std::string& noun) {
  return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

std::string rate_text(double tokens_per_s) {
  return tokens_per_s < 10 ? fmt::format("{:.1f}", tokens_per_s) : fmt::format("{:.0f}", tokens_per_s);
}

// A line of the table of the ranks' memory.
struct Line {
  std::string name;
  std::vector<uint64_t> bytes;  // by rank
};

std::vector<Line> lines_of(const MemoryPlan& plan) {
  std::vector<Line> lines;
  const auto add = [&](const std::string& name, const auto& value) {
    Line line{name, {}};
    for (const RankPlan& rank : plan.ranks) line.bytes.push_back(value(rank));
    if (std::any_of(line.bytes.begin(), line.bytes.end(), [](uint64_t b) { return b > 0; })) {
      lines.push_back(std::move(line));
    }
  };
  for (int kind = 0; kind < kNumTensorKinds; ++kind) {
    if (kind == static_cast<int>(TensorKind::kMtp)) continue;
    const bool routed = kind == static_cast<int>(TensorKind::kRoutedExperts);
    add(std::string(tensor_kind_name(static_cast<TensorKind>(kind))), [&](const RankPlan& r) {
      return r.weights.by_kind[kind] - (routed ? r.experts_on_host + r.experts_on_disk : 0);
    });
  }
  add("slots for experts", [](const RankPlan& r) { return r.expert_overhead; });
  add("absorbed MLA", [](const RankPlan& r) { return r.weights.absorbed; });
  add("RoPE table, alignment", [](const RankPlan& r) { return r.rope_table + r.weights.rounding; });
  for (const MemoryUse use : {MemoryUse::kKvCache, MemoryUse::kWorkspace, MemoryUse::kScratch,
                              MemoryUse::kSampler, MemoryUse::kCommunication, MemoryUse::kGraphs}) {
    add(std::string(memory_use_name(use)), [&](const RankPlan& r) { return r.of(use); });
  }
  add("driver (estimate)", [](const RankPlan& r) { return r.driver; });
  return lines;
}

struct RateRow {
  const char* kind;
  int64_t batch, context;
  Rate rate;
};

std::vector<RateRow> rates_of(Planner& planner, const MemoryPlan& plan) {
  const int64_t context = std::min(plan.max_model_len, kRateContext);
  const int64_t batch = std::clamp<int64_t>(plan.kv_tokens() / std::max<int64_t>(context, 1), 1,
                                            plan.options.max_num_seqs);
  std::vector<RateRow> rows{{"decode", 1, context, decode_rate(planner, plan, 1, context)}};
  if (batch > 1) rows.push_back({"decode", batch, context, decode_rate(planner, plan, batch, context)});
  rows.push_back({"prefill", plan.options.max_num_batched_tokens, context, prefill_rate(planner, plan, context)});
  return rows;
}

class TextReport {
 public:
  TextReport(Planner& planner, const PlanReport& report)
      : planner_(planner), r_(report), plan_(report.plan), c_(planner.config()) {}

  std::string text() {
    head();
    memory();
    if (plan_.fits) {
      verdict();
      capacity();
      rates();
    } else {
      advice();
    }
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    out_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }

  void head() {
    const ModelWeights& weights = planner_.weights(plan_.options.quantization, plan_.options.dtype);
    const DeviceSpec& d = planner_.device();
    line("{}: {}, {} parameters, {} per token", r_.model, c_.architecture_name,
         count_text(weights.parameters()), count_text(weights.active_parameters()));
    line("weights {}: {} in all", r_.weights, gib_text(weights.total_bytes()));
    const std::string layout = plan_.options.ranks == 1
                                   ? ""
                                   : fmt::format(", {} over {}, {} ranks",
                                                 plan_.options.dp_attention ? "DP attention" : "heads and experts split",
                                                 d.link, plan_.options.ranks);
    line("{} x {}: {} each, {}{}", d.on_gpu ? r_.gpus : 1, d.name, gib_text(d.bytes),
         r_.utilization > 0 ? fmt::format("{} of it for Shoal", gib_text(plan_.budget.bytes))
                            : fmt::format("limited to {}", gib_text(plan_.budget.bytes)),
         layout);
  }

  // A column for rank 0 and one for the fullest of the others.
  void memory() {
    std::vector<size_t> columns{0};
    if (plan_.ranks.size() > 1) {
      size_t fullest = 1;
      for (size_t r = 1; r < plan_.ranks.size(); ++r) {
        if (plan_.ranks[r].total() > plan_.ranks[fullest].total()) fullest = r;
      }
      columns.push_back(fullest);
    }
    const auto row = [&](const std::string& name, const auto& value, const std::string& note = "") {
      std::string text = fmt::format("  {:<24}", name);
      for (const size_t rank : columns) text += fmt::format(" {:>12}", value(rank));
      line("{}", note.empty() ? text : text + "   " + note);
    };
    line("");
    row("per rank", [](size_t rank) { return fmt::format("rank {}", rank); });
    for (const Line& l : lines_of(plan_)) {
      std::string note;
      if (l.name == memory_use_name(MemoryUse::kKvCache)) {
        note = fmt::format("{} tokens of {} bytes", plan_.num_pages * plan_.options.page_size,
                           plan_.kv_bytes_per_token);
      } else if (l.name == memory_use_name(MemoryUse::kWorkspace)) {
        note = fmt::format("steps of {}, {}", plural(plan_.options.max_num_batched_tokens, "token"),
                           plural(plan_.options.max_num_seqs, "sequence"));
      }
      row(l.name, [&](size_t rank) { return gib_text(l.bytes[rank]); }, note);
    }
    row("total", [&](size_t rank) { return gib_text(plan_.ranks[rank].total()); });
    if (plan_.fits) {
      row("left", [&](size_t rank) { return gib_text(plan_.budget.bytes - plan_.ranks[rank].total()); });
    }
    if (plan_.ranks.front().swap > 0) {
      row("KV pages in host memory", [&](size_t rank) { return gib_text(plan_.ranks[rank].swap); },
          "--swap-space");
    }
    host_memory();
    if (off_device() == 0) return;
    const ExpertCounts& counts = plan_.ranks.front().experts;
    row("experts in host memory", [&](size_t rank) { return gib_text(plan_.ranks[rank].experts_on_host); },
        fmt::format("{} of {}", counts.host, counts.total()));
    row("experts on disk", [&](size_t rank) { return gib_text(plan_.ranks[rank].experts_on_disk); },
        fmt::format("{} of {}", counts.disk, counts.total()));
    row("used of them a token", [&](size_t rank) {
      return gib_text(static_cast<uint64_t>(off_device_bytes(c_, plan_.ranks[rank], 1).used));
    });
  }

  // What ranks on a GPU take of the machine's own memory.
  void host_memory() {
    if (plan_.host_bytes() == 0) return;
    line("host memory: {}{} for all ranks: swapped KV pages and experts", gib_text(plan_.host_bytes()),
         plan_.budget.host > 0 ? " of " + gib_text(plan_.budget.host) : "");
  }

  uint64_t off_device() const {
    return plan_.ranks.front().experts_on_host + plan_.ranks.front().experts_on_disk;
  }

  void verdict() {
    line("\nFITS: contexts of up to {} tokens", plan_.max_model_len);
  }

  void capacity() {
    const int64_t tokens = plan_.kv_tokens();
    std::string contexts, batches;
    for (const int64_t context : kContexts) {
      if (context > plan_.max_model_len) continue;
      contexts += fmt::format("{}{} at {}", contexts.empty() ? "" : ", ", tokens / context, context);
    }
    for (const int64_t batch : kBatches) {
      const int64_t context = std::min(tokens / batch, plan_.max_model_len);
      if (context < 1) continue;
      batches += fmt::format("{}{} for {}", batches.empty() ? "" : ", ", context, batch);
    }
    if (!contexts.empty()) line("  largest batch by context     {}", contexts);
    line("  longest context by batch     {}", batches);
  }

  void rates() {
    line("\n  at most, by the hardware                tokens/s   waits for");
    for (const RateRow& row : rates_of(planner_, plan_)) {
      const StepTime& t = row.rate.time;
      const std::string name =
          row.kind == std::string("decode")
              ? fmt::format("decode, batch {}, context {}", row.batch, row.context)
              : fmt::format("prefill, {} tokens a step", row.batch);
      std::string parts = fmt::format("memory {:.2f} ms, arithmetic {:.2f} ms", t.memory_s * 1e3, t.compute_s * 1e3);
      if (t.collectives_s > 0) parts += fmt::format(", collectives {:.2f} ms", t.collectives_s * 1e3);
      if (t.host_s > 0) parts += fmt::format(", experts off the device {:.2f} ms", t.host_s * 1e3);
      line("  {:<38} {:>9}   {} ({})", name, rate_text(row.rate.tokens_per_s), t.limit(), parts);
    }
  }

  void advice() {
    line("\nDOES NOT FIT: {}", plan_.obstacle);
    if (r_.advice.empty()) {
      line("  no single change makes it fit");
      return;
    }
    const auto change = [&](const Advice& a) {
      const std::string rate = a.decode_tokens_per_s > 0
                                   ? fmt::format("decode {} tokens/s at most", rate_text(a.decode_tokens_per_s))
                                   : "";
      line("    {:<52} {:<44} {}", join_flags(a.flags), a.what, rate);
    };
    line("  smallest change that fits:");
    change(r_.advice.front());
    if (r_.advice.size() == 1) return;
    line("  or:");
    for (size_t i = 1; i < r_.advice.size(); ++i) change(r_.advice[i]);
  }

  Planner& planner_;
  const PlanReport& r_;
  const MemoryPlan& plan_;
  const ModelConfig& c_;
  std::string out_;
};

}  // namespace

std::string plan_text(Planner& planner, const PlanReport& report) {
  return TextReport(planner, report).text();
}

std::string plan_json(Planner& planner, const PlanReport& report) {
  const MemoryPlan& plan = report.plan;
  const DeviceSpec& d = planner.device();
  const ModelWeights& weights = planner.weights(plan.options.quantization, plan.options.dtype);
  Json json = {{"model", report.model},
               {"architecture", planner.config().architecture_name},
               {"parameters", {{"total", weights.parameters()}, {"active", weights.active_parameters()}}},
               {"weights", {{"form", report.weights}, {"bytes", weights.total_bytes()}}},
               {"device",
                {{"name", d.name},
                 {"count", report.gpus},
                 {"bytes", d.bytes},
                 {"gigabytes_per_s", d.gigabytes_per_s},
                 {"bf16_tflops", d.bf16_tflops},
                 {"link", d.link}}},
               {"tensor_parallel_size", plan.options.ranks},
               {"dp_attention", plan.options.dp_attention},
               {"budget_bytes", plan.budget.bytes},
               {"fits", plan.fits},
               {"max_model_len", plan.max_model_len},
               {"kv_bytes_per_token", plan.kv_bytes_per_token},
               {"kv_tokens", plan.kv_tokens()},
               {"host_bytes", plan.host_bytes()}};
  for (size_t r = 0; r < plan.ranks.size(); ++r) {
    Json rank = {{"rank", r}};
    for (const Line& l : lines_of(plan)) rank["bytes"][l.name] = l.bytes[r];
    rank["total_bytes"] = plan.ranks[r].total();
    rank["left_bytes"] =
        static_cast<int64_t>(plan.budget.bytes) - static_cast<int64_t>(plan.ranks[r].total());
    rank["swap_bytes"] = plan.ranks[r].swap;
    rank["experts_on_host_bytes"] = plan.ranks[r].experts_on_host;
    rank["experts_on_disk_bytes"] = plan.ranks[r].experts_on_disk;
    if (plan.options.experts != ExpertHome::kDevice) {
      const ExpertCounts& counts = plan.ranks[r].experts;
      rank["experts"] = {{"device", counts.device}, {"host", counts.host}, {"disk", counts.disk}};
      rank["off_device_bytes_per_token"] = off_device_bytes(planner.config(), plan.ranks[r], 1).used;
    }
    json["ranks"].push_back(std::move(rank));
  }
  if (!plan.fits) {
    json["obstacle"] = plan.obstacle;
    json["advice"] = Json::array();
    for (const Advice& a : report.advice) {
      json["advice"].push_back({{"change", a.what},
                                {"flags", a.flags},
                                {"decode_tokens_per_s", a.decode_tokens_per_s},
                                {"left_bytes", a.plan.left()}});
    }
    return json.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
  }
  for (const int64_t context : kContexts) {
    if (context > plan.max_model_len) continue;
    json["largest_batch"].push_back({{"context", context}, {"batch", plan.kv_tokens() / context}});
  }
  for (const int64_t batch : kBatches) {
    json["longest_context"].push_back(
        {{"batch", batch},
         {"context", std::min(plan.kv_tokens() / batch, plan.max_model_len)}});
  }
  for (const RateRow& row : rates_of(planner, plan)) {
    json["rates"].push_back({{"kind", row.kind},
                             {"batch", row.batch},
                             {"context", row.context},
                             {"tokens_per_s", row.rate.tokens_per_s},
                             {"limit", row.rate.time.limit()},
                             {"memory_ms", row.rate.time.memory_s * 1e3},
                             {"arithmetic_ms", row.rate.time.compute_s * 1e3},
                             {"collectives_ms", row.rate.time.collectives_s * 1e3},
                             {"off_device_ms", row.rate.time.host_s * 1e3}});
  }
  return json.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
}

}  // namespace shoal

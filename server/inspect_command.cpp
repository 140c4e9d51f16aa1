#include "server/inspect_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/checkpoint/rank_bytes.h"
#include "runtime/checkpoint/strict_json.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

// One row of the table of kinds: what is stored.
struct KindSummary {
  int64_t tensors = 0;
  int64_t parameters = 0;
  uint64_t bytes = 0;  // scales included
  std::set<std::string> types;
};

struct Summary {
  std::string dir, quantization;
  ModelConfig config;
  DType dtype = DType::kBF16;  // what the ranks would hold F32 matrices and derived weights as
  uint64_t file_bytes = 0, unused_bytes = 0;
  size_t num_files = 0;
  std::array<KindSummary, kNumTensorKinds> kinds;
  int64_t total_parameters = 0, active_parameters = 0, mtp_parameters = 0;
  std::vector<RankBytes> ranks;

  const KindSummary& of(TensorKind kind) const { return kinds[static_cast<int>(kind)]; }
};

// Parameters of the main model, and those that one token meets: its experts only, and of an
// embedding that is not also the head, one row.
void count_parameters(Summary& s) {
  const ModelConfig& c = s.config;
  for (int kind = 0; kind < kNumTensorKinds; ++kind) {
    const int64_t parameters = s.kinds[kind].parameters;
    if (kind == static_cast<int>(TensorKind::kMtp)) {
      s.mtp_parameters = parameters;
      continue;
    }
    s.total_parameters += parameters;
    if (kind == static_cast<int>(TensorKind::kRoutedExperts)) {
      s.active_parameters +=
          c.n_routed_experts > 0 ? parameters / c.n_routed_experts * c.router.top_k : 0;
    } else if (kind != static_cast<int>(TensorKind::kEmbedding) || c.tie_word_embeddings) {
      s.active_parameters += parameters;
    }
  }
}

Summary summarise(const Checkpoint& checkpoint, const ModelConfig& config, int num_ranks) {
  Summary s;
  s.dir = checkpoint.path();
  s.quantization = checkpoint.quantization();
  s.config = config;
  s.dtype = config.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  s.file_bytes = s.unused_bytes = checkpoint.total_bytes();
  s.num_files = checkpoint.num_files();
  for (const PlannedTensor& tensor : tensor_plan(config)) {
    const std::unique_ptr<StoredWeight> stored = planned_weight(checkpoint, tensor);
    const uint64_t bytes = stored->stored_bytes({0, stored->n()}, {0, stored->k()});
    KindSummary& kind = s.kinds[static_cast<int>(tensor.kind)];
    ++kind.tensors;
    kind.parameters += stored->n() * stored->k();
    kind.types.emplace(dtype_name(stored->form().dtype));
    kind.bytes += bytes;
    s.unused_bytes -= bytes;
  }
  count_parameters(s);
  for (int rank = 0; rank < num_ranks; ++rank) {
    s.ranks.push_back(
        rank_bytes(checkpoint, config, {.ranks = num_ranks, .rank = rank, .dtype = s.dtype}));
  }
  return s;
}

std::string human_count(int64_t n) {
  const auto x = static_cast<double>(n);
  if (n >= 1'000'000'000) return fmt::format("{:.2f} B", x / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.2f} M", x / 1e6);
  return n >= 1000 ? fmt::format("{:.1f} K", x / 1e3) : fmt::format("{}", n);
}

std::string human_bytes(uint64_t n) {
  const auto x = static_cast<double>(n);
  if (n >= 1'000'000'000) return fmt::format("{:.2f} GB", x / 1e9);
  if (n >= 1'000'000) return fmt::format("{:.2f} MB", x / 1e6);
  return n >= 1000 ? fmt::format("{:.1f} KB", x / 1e3) : fmt::format("{} B", n);
}

std::string plural(int64_t n, const std::string& noun) {
  return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

int64_t kv_bytes_per_token(const ModelConfig& c) {
  return c.num_hidden_layers * kv_bytes_per_token_layer(c, c.num_key_value_heads, DType::kBF16);
}

std::string router_name(RouterKind kind) {
  switch (kind) {
    case RouterKind::kGreedySoftmax:
      return "greedy";
    case RouterKind::kGroupLimitedSoftmax:
      return "group_limited_greedy";
    case RouterKind::kNoauxTcSigmoid:
      return "noaux_tc";
  }
  SHOAL_CHECK(false, "router {}", static_cast<int>(kind));
}

std::string rope_text(const ModelConfig& c) {
  const RopeScaling& s = c.rope_scaling;
  const char* name = s.kind == RopeScaling::Kind::kYarn     ? "YaRN"
                     : s.kind == RopeScaling::Kind::kLlama3 ? "llama3"
                                                            : "linear";
  std::string text = fmt::format("theta {}", c.rope_theta);
  if (s.kind == RopeScaling::Kind::kFactors) {
    text += fmt::format(", each pair scaled by its own factor up to {}",
                        *std::max_element(s.factors.begin(), s.factors.end()));
  } else if (s.kind != RopeScaling::Kind::kNone) {
    text += fmt::format(", {} scaling by {} over {}", name, s.factor,
                        s.original_max_position_embeddings);
  }
  return text;
}

class TextReport {
 public:
  explicit TextReport(const Summary& s) : s_(s), c_(s.config) {}

  std::string text() {
    dimensions();
    kinds();
    ranks();
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    out_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }
  void field(const char* name, const std::string& value) { line("  {:<14} {}", name, value); }

  void dimensions() {
    line("{}", s_.dir);
    field("architecture", c_.architecture_name);
    field("layers", fmt::format("{}{}", c_.num_hidden_layers,
                                c_.num_nextn_predict_layers > 0
                                    ? fmt::format(" + {} MTP", c_.num_nextn_predict_layers)
                                    : ""));
    field("hidden size", fmt::format("{}", c_.hidden_size));
    if (c_.is_mla()) {
      field("attention",
            fmt::format("MLA, {} heads: q_lora {}, kv_lora {}, qk {} + {} rotary, v {}",
                        c_.num_attention_heads,
                        c_.q_lora_rank > 0 ? std::to_string(c_.q_lora_rank) : "none",
                        c_.kv_lora_rank, c_.qk_nope_head_dim, c_.qk_rope_head_dim, c_.v_head_dim));
      field("experts",
            fmt::format("{} routed, {} per token, {} shared, {} wide", c_.n_routed_experts,
                        c_.router.top_k, c_.n_shared_experts, c_.moe_intermediate_size));
      field("router",
            fmt::format("{}{}", router_name(c_.router.kind),
                        c_.router.n_group > 1 ? fmt::format(", {} of {} groups",
                                                            c_.router.topk_group, c_.router.n_group)
                                              : ""));
      field("dense MLP", fmt::format("first {}, {} wide", plural(c_.first_k_dense_replace, "layer"),
                                     c_.intermediate_size));
    } else {
      field("attention", fmt::format("{} heads on {} KV heads of {}", c_.num_attention_heads,
                                     c_.num_key_value_heads, c_.head_dim));
      field("MLP", fmt::format("{} wide", c_.intermediate_size));
    }
    field("vocabulary", fmt::format("{}{}", c_.vocab_size,
                                    c_.tie_word_embeddings ? ", embedding and head tied" : ""));
    field("positions", fmt::format("{}, {}", c_.max_position_embeddings, rope_text(c_)));
    field("KV cache", fmt::format("{} bytes per token in bfloat16", kv_bytes_per_token(c_)));
    field("parameters",
          fmt::format("{}, {} per token{}", human_count(s_.total_parameters),
                      human_count(s_.active_parameters),
                      s_.mtp_parameters > 0
                          ? fmt::format("; the MTP layer {} more", human_count(s_.mtp_parameters))
                          : ""));
    field("stored", fmt::format("{} in {}{}", human_bytes(s_.file_bytes),
                                plural(static_cast<int64_t>(s_.num_files), "file"),
                                s_.quantization.empty() ? "" : ", " + s_.quantization));
  }

  void kinds() {
    line("\n  {:<16} {:>8} {:>12} {:>11}  types", "kind", "tensors", "parameters", "stored");
    for (int i = 0; i < kNumTensorKinds; ++i) {
      const KindSummary& kind = s_.kinds[i];
      if (kind.tensors == 0) continue;
      line("  {:<16} {:>8} {:>12} {:>11}  {}", tensor_kind_name(static_cast<TensorKind>(i)),
           kind.tensors, human_count(kind.parameters), human_bytes(kind.bytes),
           fmt::join(kind.types, ", "));
    }
    if (s_.unused_bytes > 0) {
      line("  {:<16} {:>8} {:>12} {:>11}", "not used", "", "", human_bytes(s_.unused_bytes));
    }
  }

  // A column per rank; for many, the ranks that hold least and most.
  void ranks() {
    constexpr size_t kMaxColumns = 8;
    std::vector<std::pair<std::string, const RankBytes*>> columns;
    if (s_.ranks.size() <= kMaxColumns) {
      for (size_t r = 0; r < s_.ranks.size(); ++r)
        columns.emplace_back(fmt::format("rank {}", r), &s_.ranks[r]);
    } else {
      const auto [least, most] = std::minmax_element(
          s_.ranks.begin(), s_.ranks.end(), [](const RankBytes& a, const RankBytes& b) {
            return a.total(false).held < b.total(false).held;
          });
      columns = {{fmt::format("least: {}", least - s_.ranks.begin()), &*least},
                 {fmt::format("most: {}", most - s_.ranks.begin()), &*most}};
    }
    const auto row = [&](std::string_view name, auto value) {
      std::string text = fmt::format("  {:<16}", name);
      for (const auto& [title, bytes] : columns)
        text += fmt::format(" {:>11}", value(title, *bytes));
      line("{}", text);
    };
    line("\n  held by each of {}", plural(static_cast<int64_t>(s_.ranks.size()), "rank"));
    row("kind", [](const std::string& title, const RankBytes&) { return title; });
    for (int i = 0; i < kNumTensorKinds; ++i) {
      if (s_.kinds[i].tensors == 0 || i == static_cast<int>(TensorKind::kMtp)) continue;
      row(tensor_kind_name(static_cast<TensorKind>(i)),
          [&](const std::string&, const RankBytes& b) { return human_bytes(b.by_kind[i].held); });
    }
    if (c_.is_mla()) {
      row("absorbed MLA",
          [](const std::string&, const RankBytes& b) { return human_bytes(b.derived); });
    }
    row("total",
        [](const std::string&, const RankBytes& b) { return human_bytes(b.total(false).held); });
    row("read from files",
        [](const std::string&, const RankBytes& b) { return human_bytes(b.total(false).read); });
    if (s_.mtp_parameters > 0) {
      row("MTP layer, more", [](const std::string&, const RankBytes& b) {
        return human_bytes(b.of(TensorKind::kMtp).held + b.derived_mtp);
      });
    }
  }

  const Summary& s_;
  const ModelConfig& c_;
  std::string out_;
};

Json to_json(const Summary& s) {
  const ModelConfig& c = s.config;
  Json json = {
      {"model", s.dir},
      {"architecture", c.architecture_name},
      {"num_hidden_layers", c.num_hidden_layers},
      {"hidden_size", c.hidden_size},
      {"num_attention_heads", c.num_attention_heads},
      {"vocab_size", c.vocab_size},
      {"max_position_embeddings", c.max_position_embeddings},
      {"parameters",
       {{"total", s.total_parameters}, {"active", s.active_parameters}, {"mtp", s.mtp_parameters}}},
      {"kv_cache_bytes_per_token", kv_bytes_per_token(c)},
      {"files", s.num_files},
      {"stored_bytes", s.file_bytes},
      {"unused_bytes", s.unused_bytes}};
  for (int i = 0; i < kNumTensorKinds; ++i) {
    const KindSummary& kind = s.kinds[i];
    if (kind.tensors == 0) continue;
    json["kinds"].push_back({{"kind", tensor_kind_name(static_cast<TensorKind>(i))},
                             {"tensors", kind.tensors},
                             {"parameters", kind.parameters},
                             {"stored_bytes", kind.bytes},
                             {"types", kind.types}});
  }
  for (size_t r = 0; r < s.ranks.size(); ++r) {
    const RankBytes& bytes = s.ranks[r];
    Json rank = {{"rank", r},
                 {"read_bytes", bytes.total(false).read},
                 {"held_bytes", bytes.total(false).held},
                 {"absorbed_bytes", bytes.derived},
                 {"mtp_read_bytes", bytes.of(TensorKind::kMtp).read},
                 {"mtp_held_bytes", bytes.of(TensorKind::kMtp).held + bytes.derived_mtp}};
    for (int i = 0; i < kNumTensorKinds; ++i) {
      if (s.kinds[i].tensors == 0) continue;
      rank["held_by_kind"][std::string(tensor_kind_name(static_cast<TensorKind>(i)))] =
          bytes.by_kind[i].held;
    }
    json["ranks"].push_back(rank);
  }
  return json;
}

}  // namespace

std::string inspect_report(const InspectOptions& options) {
  if (options.tensor_parallel_size < 1) {
    throw_invalid("--tensor-parallel-size {}: should be 1 or more", options.tensor_parallel_size);
  }
  const std::string dir = resolve_model_dir(options.model, options.revision);
  const ModelConfig config = read_model_config(dir);
  const std::unique_ptr<Checkpoint> opened = Checkpoint::open(dir);
  const Checkpoint& checkpoint = *opened;
  check_all_known(checkpoint, config);
  const Summary summary = summarise(checkpoint, config, options.tensor_parallel_size);
  if (options.json) {
    Json json = to_json(summary);
    for (const Checkpoint::FileTensor& tensor : checkpoint.file_tensors()) {
      if (!options.tensors) break;
      json["tensors"].push_back({{"name", tensor.name},
                                 {"type", tensor.type},
                                 {"shape", tensor.shape},
                                 {"bytes", tensor.bytes},
                                 {"file", tensor.file}});
    }
    return json.dump(2, ' ', true, Json::error_handler_t::replace) + "\n";
  }
  std::string text = TextReport(summary).text();
  if (options.tensors) {
    text += "\n";
    for (const Checkpoint::FileTensor& tensor : checkpoint.file_tensors()) {
      const std::string shown = in_quotes(tensor.name);
      text += fmt::format("  {:<60} {:<28} {:>11}  {}\n", shown.substr(1, shown.size() - 2),
                          fmt::format("{}[{}]", tensor.type, fmt::join(tensor.shape, ", ")),
                          human_bytes(tensor.bytes), tensor.file);
    }
  }
  return text;
}

int run_inspect(const InspectOptions& options) {
  fmt::print("{}", inspect_report(options));
  return 0;
}

}  // namespace shoal

// The plan against the ledger of the device: golden models and one of some MB, every layout that the ranks
// of this run allow, every quantisation. Peak memory is within 5 % of the plan, or within what a chunk of
// small tensors is; nothing large is allocated after loading.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>

#include "runtime/engine/loader.h"
#include "tests/bench/model_maker.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

constexpr int64_t kTokens = 96, kSequences = 6, kLength = 160;

// Chunks of small tensors are of 1 MiB, and two may be begun.
constexpr double kGranularity = 2 << 20;

std::string golden(const std::string& name) { return SHOAL_SOURCE_DIR "/tests/golden/data/" + name; }

LoadOptions options_for(const std::string& dir) {
  LoadOptions o;
  o.model_dir = dir;
  o.page_size = 16;
  o.max_model_len = kLength;
  o.max_num_seqs = kSequences;
  o.max_num_batched_tokens = kTokens;
  o.kv_cache_tokens = 4 * kLength;
  return o;
}

// One prompt that fills the step, another that goes on over a long context, and pure decode.
void run_steps(LoadedModel& model, ExpertExchange exchange) {
  const int ranks = model.layout.dp_attention ? model.layout.size : 1;
  const int64_t page = model.runner->page_size();
  uint64_t number = 1;
  const auto step = [&](int64_t tokens, int64_t first, int64_t sequences, bool absorbed) {
    StepPlan plan;
    plan.number = number++;
    plan.exchange = exchange;
    for (int64_t s = 0; s < sequences; ++s) {
      SequenceSlice slice;
      slice.dp_rank = ranks - 1;
      slice.first_position = static_cast<int32_t>(first);
      slice.tokens.assign(tokens, static_cast<int32_t>(s));
      for (int64_t p = 0; p * page < first + tokens; ++p) slice.pages.push_back(static_cast<int32_t>(p));
      slice.absorbed = absorbed;
      slice.sample = true;
      plan.slices.push_back(slice);
    }
    model.runner->run(plan);
  };
  step(kTokens, 0, 1, false);
  step(kLength - kTokens, kTokens, 1, false);
  step(kTokens / kSequences, kLength / 2, kSequences, false);
  step(1, kLength - 1, kSequences, true);
}

void check_plan(const LoadedModel& model) {
  const MemoryLedger& ledger = rank_runtime().device().ledger();
  const RankPlan& plan = model.plan.ranks.front();
  const auto near = [](double actual, double planned) {
    return std::abs(actual - planned) <= std::max(0.05 * planned, kGranularity);
  };
  for (int i = 0; i < kNumMemoryUses; ++i) {
    const auto use = static_cast<MemoryUse>(i);
    INFO(memory_use_name(use) << ": planned " << plan.of(use) << ", taken " << ledger.current(use));
    // What one model's kernels have grown to, the next one finds: every run of a server has one.
    if (use == MemoryUse::kWeights || use == MemoryUse::kKvCache) {
      CHECK(ledger.current(use) == plan.of(use));  // to the byte
    } else if (use == MemoryUse::kScratch || use == MemoryUse::kCommunication) {
      CHECK(ledger.current(use) <= plan.of(use) * 1.05 + kGranularity);
    } else {
      CHECK(near(ledger.current(use), plan.of(use)));
    }
  }
  INFO("in all: planned " << plan.planned() << ", taken " << ledger.current_total());
  CHECK(ledger.current_total() <= plan.planned() * 1.05 + kGranularity);
  CHECK(rank_runtime().workspace().high_water_bytes() <= plan.step.workspace);
  CHECK(ledger.late().empty());
}

void load_and_check(const LoadOptions& options) {
  INFO(options.model_dir << ", rank " << rank_runtime().rank() << " of " << rank_runtime().size()
                         << ", dp attention " << options.dp_attention << ", " << options.quantization
                         << ", KV " << options.kv_cache_dtype);
  const auto model = load_model(rank_runtime(), options);
  run_steps(*model, ExpertExchange::kReplicated);
  if (model->config.n_routed_experts > 0) run_steps(*model, ExpertExchange::kAllToAll);
  check_plan(*model);
}

TEST_CASE("golden models take what was planned, in every layout and quantisation") {
  for (const char* name : {"v2-lite", "v3-fp8", "qwen2", "llama3"}) {
    for (const bool dp_attention : {false, true}) {
      for (const char* quantization : {"none", "int4", "int8", "fp8"}) {
        if (std::string(name) == "v3-fp8" && std::string(quantization) != "none") continue;
        // An emulated GPU takes a second for each: one quantisation of each model is enough.
        const bool stored = std::string(quantization) == (std::string(name) == "v3-fp8" ? "none" : "int4");
        if (!rank_runtime().on_cpu() && !stored) continue;
        LoadOptions options = options_for(golden(name));
        options.dp_attention = dp_attention;
        options.quantization = quantization;
        load_and_check(options);
      }
    }
  }
}

// Large enough for 5 % to mean something: some 40 MB in bfloat16.
class MediumModel {
 public:
  explicit MediumModel(const std::string& scheme) {
    std::string pattern = (std::filesystem::temp_directory_path() / "shoal-ledger-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    bench::make_model({.config = R"({
      "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 512,
      "num_hidden_layers": 3, "vocab_size": 4096, "intermediate_size": 1024, "moe_intermediate_size": 512,
      "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 8, "n_shared_experts": 1,
      "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "topk_method": "noaux_tc",
      "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
      "num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 256, "kv_lora_rank": 128,
      "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "attention_bias": false,
      "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 4096,
      "tie_word_embeddings": false, "torch_dtype": "bfloat16"})",
                       .scheme = scheme,
                       .out = dir_});
  }
  ~MediumModel() { std::filesystem::remove_all(dir_); }
  MediumModel(const MediumModel&) = delete;
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};

TEST_CASE("a model of some MB takes what was planned within 5 %") {
  for (const char* scheme : {"bf16", "int4", "int8", "fp8"}) {
    if (!rank_runtime().on_cpu() && std::string(scheme) == "int8") continue;
    const MediumModel made(scheme);
    for (const bool dp_attention : {false, true}) {
      LoadOptions options = options_for(made.dir());
      options.dp_attention = dp_attention;
      load_and_check(options);
    }
  }
}

TEST_CASE("a limit decides the KV cache, and what does not fit is refused before a weight is read") {
  const MediumModel made("bf16");
  LoadOptions options = options_for(made.dir());
  options.kv_cache_tokens = 0;
  options.max_num_seqs = 1000;
  options.enforce_eager = true;  // or there would be a graph for each of 23 sizes
  options.max_model_len = 4096;
  options.gpu_memory_limit = "512MiB";
  const size_t before = rank_runtime().device().ledger().current(MemoryUse::kWeights);
  uint64_t too_little = 0;
  {
    const auto model = load_model(rank_runtime(), options);
    const RankPlan& plan = model->plan.ranks.front();
    too_little = plan.total() - plan.kv_cache - plan.of(MemoryUse::kWeights) / 4;
    CHECK(plan.total() <= size_t{512} << 20);
    CHECK(plan.total() > (size_t{512} << 20) - (size_t{4} << 20));
    CHECK(rank_runtime().device().ledger().current(MemoryUse::kKvCache) == plan.kv_cache);
  }
  options.max_model_len = kLength;
  options.gpu_memory_limit = std::to_string(too_little);
  INVALID(load_model(rank_runtime(), options), "does not fit: rank", "what does: ", "--quantization ");
  CHECK(rank_runtime().device().ledger().current(MemoryUse::kWeights) == before);
  for (const char* limit : {"0", "-1GiB", "9999TiB", "much"}) {
    options.gpu_memory_limit = limit;
    INVALID(load_model(rank_runtime(), options), "--gpu-memory-limit " + std::string(limit));
  }
}

}  // namespace
}  // namespace shoal

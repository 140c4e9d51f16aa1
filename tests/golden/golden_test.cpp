// Every golden checkpoint in every layout: logits within 1e-4 of the largest logit of Hugging Face
// transformers in fp32, and the same 64 greedy tokens. Started under mpirun it tests that many ranks; with
// SHOAL_TEST_DEVICE=cuda, GPUs or emulated ones.
// All ranks run the same steps; rank 0 holds the logits and checks, without leaving early (CHECK, not
// REQUIRE): the others would wait for it.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/engine/loader.h"
#include "tests/support/npy.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

// See README.md, "Tolerances".
constexpr double kTolerance = 1e-4;

struct Golden {
  std::string dir;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<NpyArray> logits;
  std::vector<int32_t> greedy;
  double max_abs_logit = 0;
};

Golden read_golden(const std::string& name) {
  Golden golden;
  golden.dir = std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data/" + name;
  const auto json = nlohmann::json::parse(std::ifstream(golden.dir + "/golden.json"));
  golden.prompts = json["prompts"].get<std::vector<std::vector<int32_t>>>();
  golden.greedy = json["greedy"].get<std::vector<int32_t>>();
  golden.max_abs_logit = json["max_abs_logit"].get<double>();
  for (size_t i = 0; i < golden.prompts.size(); ++i) {
    golden.logits.push_back(read_npy(fmt::format("{}/logits_{}.npy", golden.dir, i)));
  }
  return golden;
}

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// How a prompt is run.
struct Way {
  std::string label;
  int64_t chunk = 0;      // tokens a step; 0: all
  bool absorbed = false;  // which form of MLA
  ExpertExchange exchange = ExpertExchange::kReplicated;
  int dp_rank = 0;
};

class Sequence {
 public:
  Sequence(LoadedModel& model, const Way& way) : model_(model), way_(way) {}
  std::span<const float> run(std::span<const int32_t> tokens, bool absorbed, bool all_logits) {
    StepPlan plan;
    plan.exchange = way_.exchange;
    SequenceSlice slice;
    slice.dp_rank = way_.dp_rank;
    slice.first_position = position_;
    slice.tokens.assign(tokens.begin(), tokens.end());
    position_ += static_cast<int32_t>(tokens.size());
    const int32_t pages = (position_ + model_.runner->page_size() - 1) / model_.runner->page_size();
    // Pages backwards: a block table that is ignored is found out.
    for (int32_t i = 0; i < pages; ++i) slice.pages.push_back(model_.num_pages - 1 - i);
    slice.absorbed = absorbed;
    slice.sample = true;
    slice.all_logits = all_logits;
    plan.slices.push_back(slice);
    // Through bytes, as the ranks of a server get it.
    return model_.runner->run(StepPlan::deserialize(plan.serialize()));
  }

 private:
  LoadedModel& model_;
  const Way way_;
  int32_t position_ = 0;
};

// Graphs are recorded, where the device has them, for steps of one and of up to four sequences.
std::unique_ptr<LoadedModel> load(const std::string& dir, const std::string& dtype, bool dp_attention,
                                  bool load_mtp = false, bool graphs = false) {
  LoadOptions options;
  options.enforce_eager = !graphs;
  options.max_num_seqs = 4;
  options.load_mtp = load_mtp;
  options.model_dir = dir;
  options.dtype = dtype;
  options.dp_attention = dp_attention;
  options.page_size = 8;
  options.max_model_len = 128;
  options.kv_cache_tokens = 128;
  return load_model(rank_runtime(), options);
}

// [tokens, vocab] of a prompt on rank 0.
std::vector<float> prompt_logits(LoadedModel& model, const Way& way, std::span<const int32_t> prompt) {
  Sequence sequence(model, way);
  std::vector<float> all;
  const size_t chunk = way.chunk > 0 ? way.chunk : prompt.size();
  for (size_t begin = 0; begin < prompt.size(); begin += chunk) {
    const auto piece = prompt.subspan(begin, std::min(chunk, prompt.size() - begin));
    const auto logits = sequence.run(piece, way.absorbed, true);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - double{b[i]});
    if (!(difference <= largest)) largest = difference;  // a NaN stays
  }
  return largest;
}

void check_prompts(const Golden& golden, LoadedModel& model, const Way& way) {
  INFO(golden.dir << ", " << way.label << ", " << rank_runtime().size() << " ranks");
  for (size_t i = 0; i < golden.prompts.size(); ++i) {
    const std::vector<float> logits = prompt_logits(model, way, golden.prompts[i]);
    if (rank_runtime().rank() != 0) continue;
    CHECK(logits.size() == golden.logits[i].values.size());
    if (logits.size() != golden.logits[i].values.size()) continue;
    CHECK(largest_difference(logits, golden.logits[i].values) <= kTolerance * golden.max_abs_logit);
  }
}

void check_greedy(const Golden& golden, LoadedModel& model, const Way& way) {
  INFO(golden.dir << ", greedy, " << way.label << ", " << rank_runtime().size() << " ranks");
  Sequence sequence(model, way);
  std::span<const float> logits = sequence.run(golden.prompts[1], false, false);
  // The golden tokens are fed whatever was chosen, so that ranks stay together after a mistake.
  for (size_t i = 0; i < golden.greedy.size(); ++i) {
    if (rank_runtime().rank() == 0) {
      CHECK(std::max_element(logits.begin(), logits.end()) - logits.begin() == golden.greedy[i]);
    }
    logits = sequence.run(std::span(&golden.greedy[i], 1), /*absorbed=*/true, false);
  }
}

// An emulated GPU is a hundred times slower than the CPU: several of them run what differs by rank only.
bool all_ways() { return rank_runtime().on_cpu() || rank_runtime().size() == 1; }

const ExpertExchange kExchanges[] = {ExpertExchange::kReplicated, ExpertExchange::kAllToAll};

TEST_CASE("golden logits and greedy tokens, heads and experts over ranks") {
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    const auto model = load(golden.dir, "float32", false, false, /*graphs=*/true);
    for (ExpertExchange exchange : kExchanges) {
      if (exchange == ExpertExchange::kAllToAll && model->config.n_routed_experts == 0) continue;
      const std::string kind = exchange == ExpertExchange::kAllToAll ? "all-to-all" : "replicated";
      check_prompts(golden, *model, {kind + ", one piece", 0, false, exchange});
      if (!all_ways() && exchange == ExpertExchange::kAllToAll) continue;
      check_greedy(golden, *model, {kind, 0, false, exchange});
      if (!all_ways()) continue;
      check_prompts(golden, *model, {kind + ", pieces of 7", 7, false, exchange});
      check_prompts(golden, *model, {kind + ", token by token, absorbed", 1, true, exchange});
      check_prompts(golden, *model, {kind + ", one piece, absorbed", 0, true, exchange});
    }
  }
}

// What lets a step choose its exchange by batch size without a request's bits depending on it. A GPU's
// kernels for few rows round differently from those for many: there they agree as the tolerance says.
TEST_CASE("both expert exchanges give the same bits") {
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    for (bool dp_attention : {false, true}) {
      const auto model = load(golden.dir, "float32", dp_attention);
      if (model->config.n_routed_experts == 0) continue;
      const auto replicated = prompt_logits(*model, {}, golden.prompts[2]);
      const auto scattered =
          prompt_logits(*model, {"", 0, false, ExpertExchange::kAllToAll}, golden.prompts[2]);
      INFO(golden.dir << ", dp attention " << dp_attention);
      if (rank_runtime().on_cpu()) {
        CHECK(replicated == scattered);
      } else {
        CHECK(largest_difference(replicated, scattered) <= kTolerance * golden.max_abs_logit);
      }
    }
  }
}

// Three sequences in one decode step, which a graph pads to four: each as if alone.
TEST_CASE("decode steps of several sequences, recorded and not") {
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    for (const auto& [dp_attention, graphs] :
         std::vector<std::pair<bool, bool>>{{false, false}, {false, true}, {true, true}}) {
      const auto model = load(golden.dir, "float32", dp_attention, false, graphs);
      const int ranks = dp_attention ? rank_runtime().size() : 1;
      const auto vocab = static_cast<size_t>(model->config.vocab_size);
      StepPlan prefill, decode;
      for (int32_t i = 0; i < 3; ++i) {
        SequenceSlice slice;
        slice.dp_rank = i * ranks / 3;
        for (int32_t p = 0; p < 5; ++p) slice.pages.push_back(5 * i + (p * 3) % 5);
        slice.tokens.assign(golden.prompts[2].begin(), golden.prompts[2].begin() + 7 + i);
        prefill.slices.push_back(slice);
        slice.first_position = 7 + i;
        slice.tokens = {golden.prompts[2][7 + i]};
        slice.absorbed = slice.sample = true;
        decode.slices.push_back(slice);
      }
      model->runner->run(prefill);
      const std::span<const float> logits = model->runner->run(decode);
      if (rank_runtime().rank() != 0) continue;
      INFO(golden.dir << ", dp attention " << dp_attention << ", graphs " << graphs);
      CHECK(logits.size() == 3 * vocab);
      for (size_t i = 0; i < 3 && logits.size() == 3 * vocab; ++i) {
        CHECK(largest_difference(logits.subspan(i * vocab, vocab),
                                 std::span(golden.logits[2].values).subspan((7 + i) * vocab, vocab)) <=
              kTolerance * golden.max_abs_logit);
      }
    }
  }
}

TEST_CASE("golden logits with requests over ranks (DP attention)") {
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    const auto model = load(golden.dir, "float32", true, false, /*graphs=*/true);
    for (ExpertExchange exchange : kExchanges) {
      for (int dp_rank = 0; dp_rank < (all_ways() ? rank_runtime().size() : 1); ++dp_rank) {
        check_prompts(golden, *model, {"dp attention", 0, false, exchange, dp_rank});
      }
      if (all_ways() || exchange == ExpertExchange::kReplicated) {
        check_greedy(golden, *model, {"dp attention", 0, false, exchange, 0});
      }
    }
  }
}

// What the multi-token-prediction layer drafts for prompt 1, where a checkpoint has one.
TEST_CASE("golden logits of the multi-token-prediction layer") {
  int tested = 0;
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    const std::string file = golden.dir + "/mtp_logits_1.npy";
    if (!std::filesystem::exists(file)) continue;
    ++tested;
    const NpyArray expected = read_npy(file);
    for (bool dp_attention : {false, true}) {
      const auto model = load(golden.dir, "float32", dp_attention, /*load_mtp=*/true);
      StepPlan plan;
      SequenceSlice& slice = plan.slices.emplace_back();
      slice.tokens = golden.prompts[1];
      for (int32_t i = 0; i < model->num_pages; ++i) slice.pages.push_back(i);
      slice.all_logits = true;
      model->runner->run(plan);
      slice.tokens.erase(slice.tokens.begin());
      const std::span<const float> logits = model->runner->run_mtp(plan);
      if (rank_runtime().rank() != 0) continue;
      INFO(golden.dir << ", dp attention " << dp_attention);
      CHECK(logits.size() == expected.values.size());
      CHECK(largest_difference(logits, expected.values) <= kTolerance * golden.max_abs_logit);
    }
  }
  CHECK(tested >= 2);
}

// sm_90 multiplies FP8 weights with activations rounded to FP8 too, as DeepSeek does: of 4 bits instead of
// bfloat16's 8. That is 16 times the rounding; a median of 6 % was seen, since rounding errors of a sum
// average out.
bool multiplies_in_fp8(const LoadedModel& model) {
  return model.config.quantization.method == QuantizationMethod::kFp8 &&
         rank_runtime().device().name().find("sm_90") != std::string::npos;
}

// Median over tokens for mixtures, where a router's near tie may choose another expert; the maximum
// for dense models. The bounds are what Hugging Face itself reaches (README.md): 1.5 % and 3 %. Ours
// keeps fp32 activations and is closer, except where weights stored in fp32 are rounded (llama-plain).
TEST_CASE("golden logits in bfloat16 are as close as the formats explain") {
  for (const std::string& name : golden_names()) {
    const Golden golden = read_golden(name);
    const auto model = load(golden.dir, "bfloat16", false);
    INFO(golden.dir);
    const std::vector<float> logits = prompt_logits(*model, {}, golden.prompts[2]);
    if (rank_runtime().rank() != 0) continue;
    const auto vocab = static_cast<size_t>(model->config.vocab_size);
    std::vector<double> differences;
    for (size_t t = 0; t < golden.prompts[2].size(); ++t) {
      differences.push_back(largest_difference(
          std::span(logits).subspan(t * vocab, vocab),
          std::span(golden.logits[2].values).subspan(t * vocab, vocab)));
    }
    std::sort(differences.begin(), differences.end());
    const bool mixture = model->config.n_routed_experts > 0;
    const double difference = mixture ? differences[differences.size() / 2] : differences.back();
    double bound = mixture ? 0.015 : 0.03;
    // Ranks round their partial sums to bfloat16 before they add them: a rounding more per reduction.
    if (!rank_runtime().on_cpu() && rank_runtime().size() > 1) bound *= 1.5;
    if (multiplies_in_fp8(*model)) bound = 0.1;
    CHECK(difference <= bound * golden.max_abs_logit);
  }
}

}  // namespace
}  // namespace shoal

// Quantised KV caches end to end: how far the logits of every golden model move, and that tokens depend
// neither on how a prompt is cut nor on the neighbours. All ranks run the same steps; rank 0 has the logits.
// `kv_cache_test "[.table]"` prints the table of docs/kernels.md.
#include <catch2/catch.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/engine/loader.h"
#include "tests/support/ranks.h"

namespace shoal {
namespace {

struct Golden {
  std::string name, dir;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<int32_t> greedy;
  double max_abs_logit = 0;
};

std::vector<Golden> all_golden() {
  std::vector<Golden> all;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(SHOAL_SOURCE_DIR) + "/tests/golden/data")) {
    const auto json = nlohmann::json::parse(std::ifstream(entry.path() / "golden.json"));
    all.push_back({entry.path().filename(), entry.path(),
                   json["prompts"].get<std::vector<std::vector<int32_t>>>(),
                   json["greedy"].get<std::vector<int32_t>>(), json["max_abs_logit"].get<double>()});
  }
  std::sort(all.begin(), all.end(),
            [](const Golden& a, const Golden& b) { return a.name < b.name; });
  return all;
}

std::unique_ptr<LoadedModel> load(const Golden& golden, const std::string& kv_cache_dtype,
                                  bool dp_attention = false, bool graphs = false) {
  LoadOptions options;
  options.model_dir = golden.dir;
  options.dtype = "float32";
  options.kv_cache_dtype = kv_cache_dtype;
  options.dp_attention = dp_attention;
  options.enforce_eager = !graphs;
  options.max_num_seqs = 4;
  options.page_size = 8;
  options.max_model_len = 128;
  options.kv_cache_tokens = 128;
  return load_model(rank_runtime(), options);
}

SequenceSlice slice_of(const LoadedModel& model, std::span<const int32_t> tokens, int64_t begin) {
  SequenceSlice slice;
  slice.first_position = static_cast<int32_t>(begin);
  slice.tokens.assign(tokens.begin(), tokens.end());
  slice.sample = true;
  const auto end = begin + static_cast<int64_t>(tokens.size());
  const int64_t page_size = model.runner->page_size();
  for (int32_t i = 0; i < (end + page_size - 1) / page_size; ++i) {
    slice.pages.push_back(model.num_pages - 1 - i);
  }
  return slice;
}

// [tokens, vocab] of `tokens` run in pieces of `chunk` (0: one), on rank 0.
std::vector<float> logits_of(LoadedModel& model, std::span<const int32_t> tokens, int64_t chunk = 0,
                             bool absorbed = false) {
  std::vector<float> all;
  if (chunk == 0) chunk = static_cast<int64_t>(tokens.size());
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const auto piece = tokens.subspan(begin, std::min<size_t>(chunk, tokens.size() - begin));
    StepPlan plan;
    plan.slices.push_back(slice_of(model, piece, static_cast<int64_t>(begin)));
    plan.slices[0].all_logits = true;
    plan.slices[0].absorbed = absorbed;
    const std::span<const float> logits = model.runner->run(plan);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// Of each token, the largest difference of a logit as a share of the largest logit, in order of size.
std::vector<double> differences(const std::vector<float>& a, const std::vector<float>& b,
                                const Golden& golden, size_t vocab) {
  CHECK(a.size() == b.size());
  std::vector<double> result;
  for (size_t t = 0; t + vocab <= a.size() && a.size() == b.size(); t += vocab) {
    double largest = 0;
    for (size_t i = t; i < t + vocab; ++i) {
      const double difference = std::fabs(double{a[i]} - double{b[i]});
      if (!(difference <= largest)) largest = difference;  // a NaN stays
    }
    result.push_back(largest / golden.max_abs_logit);
  }
  std::sort(result.begin(), result.end());
  return result;
}

double median(const std::vector<double>& sorted) {
  return sorted.empty() ? 0 : sorted[sorted.size() / 2];
}

bool all_ways() { return rank_runtime().on_cpu(); }

// A bfloat16 has 8 significant bits, an e4m3 4: rounding the same numbers moves each 2^4 times as far. An
// int8 is off by up to half of m / 127, m being the largest of its group, a bfloat16 by 2^-9 of the
// number itself, whose root mean square in a group of n is at least m / sqrt(n): for our n (up to 128
// here) that is at most sqrt(128) * 2^8 / 127 / 1.4 = 16 times as far, too. What is rounded is the same, and
// an error this small moves logits linearly: so the logits of a quantised cache are within 16 times of
// what those of a bfloat16 cache are off. Both are sums of many roundings, of which the largest of a
// vocabulary is taken: a factor of two covers how those fall. Medians over tokens, for a router's near tie
// may choose another expert. (MLA's rotary part stays bfloat16 and is in the bound's favour.)
constexpr double kTimesBf16 = 2 * 16;

TEST_CASE("logits with a quantised KV cache are as close as its format explains") {
  for (const Golden& golden : all_golden()) {
    const std::span<const int32_t> prompt = golden.prompts[2];
    const auto exact_model = load(golden, "float32");
    const auto vocab = static_cast<size_t>(exact_model->config.vocab_size);
    const std::vector<float> exact = logits_of(*exact_model, prompt);
    const double bf16 =
        median(differences(logits_of(*load(golden, "bfloat16"), prompt), exact, golden, vocab));
    for (const char* dtype : {"fp8", "int8"}) {
      for (const bool dp_attention : {false, true}) {
        if (dp_attention && rank_runtime().size() == 1) continue;
        INFO(golden.name << " " << dtype << ", dp attention " << dp_attention);
        const auto model = load(golden, dtype, dp_attention, /*graphs=*/true);
        CHECK(model->runner->kv_cache().layout().dtype() == model->kv_dtype);
        const std::vector<float> whole = logits_of(*model, prompt);
        const std::vector<float> absorbed =
            all_ways() ? logits_of(*model, prompt, 1, true) : std::vector<float>();
        if (rank_runtime().rank() != 0) continue;
        const auto off = differences(whole, exact, golden, vocab);
        CHECK(median(off) <= kTimesBf16 * bf16);
        CHECK(median(off) > bf16);  // it was quantised
        if (all_ways()) CHECK(median(differences(absorbed, exact, golden, vocab)) <= kTimesBf16 * bf16);
      }
    }
  }
}

// Attention reads this step's keys as it reads all others: from the cache. So a key is the same number
// for every query, in whatever step that comes.
TEST_CASE("a quantised cache gives the same bits however a prompt is cut, and beside others") {
  if (!rank_runtime().on_cpu()) return;  // a GPU's kernels for few rows round differently
  for (const Golden& golden : all_golden()) {
    for (const char* dtype : {"fp8", "int8"}) {
      INFO(golden.name << " " << dtype);
      const auto model = load(golden, dtype);
      const std::vector<float> whole = logits_of(*model, golden.prompts[2]);
      for (const int64_t chunk : {7, 16}) CHECK(logits_of(*model, golden.prompts[2], chunk) == whole);

      // Three sequences in one decode step, and each alone.
      const auto steps = [&](std::vector<int32_t> which) {
        StepPlan prefill, decode;
        for (const int32_t i : which) {
          SequenceSlice slice;
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
        return std::vector<float>(logits.begin(), logits.end());
      };
      const std::vector<float> together = steps({0, 1, 2});
      std::vector<float> alone;
      for (const int32_t i : {0, 1, 2}) {
        const std::vector<float> logits = steps({i});
        alone.insert(alone.end(), logits.begin(), logits.end());
      }
      CHECK(together == alone);
    }
  }
}

TEST_CASE("table of KV cache formats", "[.table]") {
  std::printf("%-24s %-9s %10s %10s %7s %6s\n", "model", "cache", "median", "maximum", "greedy", "bytes");
  for (const Golden& golden : all_golden()) {
    std::vector<int32_t> tokens = golden.prompts[1];
    tokens.insert(tokens.end(), golden.greedy.begin(), golden.greedy.end());
    tokens.pop_back();
    const auto exact_model = load(golden, "float32");
    const auto vocab = static_cast<size_t>(exact_model->config.vocab_size);
    const std::vector<float> exact = logits_of(*exact_model, golden.prompts[2]);
    for (const char* dtype : {"bfloat16", "fp8", "int8"}) {
      const auto model = load(golden, dtype);
      const auto off = differences(logits_of(*model, golden.prompts[2]), exact, golden, vocab);
      const std::vector<float> logits = logits_of(*model, tokens);
      if (rank_runtime().rank() != 0) continue;
      size_t equal = 0;
      for (size_t i = 0; i < golden.greedy.size(); ++i) {
        const auto row = logits.begin() + (golden.prompts[1].size() - 1 + i) * vocab;
        equal += std::max_element(row, row + vocab) - row == golden.greedy[i];
      }
      std::printf("%-24s %-9s %9.3f%% %9.3f%% %4zu/%zu %6ld\n", golden.name.c_str(), dtype,
                  100 * median(off), 100 * off.back(), equal, golden.greedy.size(),
                  model->runner->kv_cache().layout().bytes_per_token());
    }
  }
}

}  // namespace
}  // namespace shoal

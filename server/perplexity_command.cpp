#include "server/perplexity_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "runtime/checkpoint/model_dir.h"
#include "runtime/checkpoint/strict_json.h"
#include "runtime/text/tokenizer.h"
#include "server/launcher.h"
#include "server/progress_bar.h"
#include "server/single_sequence.h"

namespace shoal {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;
// Tokens of a step: bounds the logits held at once, 128 rows of a vocabulary of 150,000 are 77 MB.
constexpr size_t kChunk = 128;

// -log of the probability that `logits` give to `token`.
double negative_log_likelihood(std::span<const float> logits, int32_t token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum) - logits[token];
}

struct Score {
  int64_t tokens = 0;
  double sum = 0;
};

// Which tokens of a window count, besides the first, which nothing predicts.
class Filter {
 public:
  Filter(const PerplexityOptions& options, const Tokenizer& tokenizer, const ModelConfig& config)
      : eos_(config.eos_token_ids) {
    if (options.score_after.empty()) return;
    begin_ = tokenizer.token_to_id(options.score_after);
    if (!begin_) throw_invalid("--score-after {}: no token of this model", options.score_after);
  }
  std::vector<bool> scored(std::span<const int32_t> window) const {
    std::vector<bool> scored(window.size(), !begin_);
    bool inside = false;
    for (size_t i = 0; begin_ && i < window.size(); ++i) {
      scored[i] = inside;
      inside = window[i] == *begin_ ||
               (inside && std::find(eos_.begin(), eos_.end(), window[i]) == eos_.end());
    }
    return scored;
  }

 private:
  std::optional<int32_t> begin_;
  const std::vector<int32_t> eos_;
};

// One window, on rank 0.
void score_window(SingleSequence& sequence, std::span<const int32_t> window, const Filter& filter,
                  int64_t vocab, Score& score) {
  sequence.restart();
  const std::vector<bool> scored = filter.scored(window);
  const auto inputs = window.first(window.size() - 1);
  for (size_t begin = 0; begin < inputs.size(); begin += kChunk) {
    const auto piece = inputs.subspan(begin, std::min(kChunk, inputs.size() - begin));
    const std::span<const float> logits =
        sequence.run(piece, /*absorbed=*/false, /*all_logits=*/true);
    if (logits.empty()) continue;  // not rank 0
    for (size_t i = 0; i < piece.size(); ++i) {
      if (!scored[begin + i + 1]) continue;
      score.sum += negative_log_likelihood(logits.subspan(i * vocab, vocab), window[begin + i + 1]);
      ++score.tokens;
    }
  }
}

}  // namespace

int run_perplexity(const PerplexityOptions& options) {
  const EngineOptions& e = options.engine;
  if (options.context < 2) throw_invalid("--context {}: use 2 or more", options.context);
  if (e.tensor_parallel_size > 1 && !started_by_mpirun()) {
    return run_self_under_mpirun(e.tensor_parallel_size);
  }
  const std::string dir = resolve_model_dir(e.model, e.revision);
  const Tokenizer tokenizer = Tokenizer::FromCheckpoint(dir);
  const std::vector<int32_t> tokens = tokenizer.encode(read_small_file(options.text, kMaxTextBytes),
                                                       {.add_special_tokens = false});
  const std::optional<int32_t> bos = tokenizer.bos_id();
  std::vector<int32_t> prefix = tokenizer.encode("", {.add_special_tokens = true});
  if (prefix.size() != 1) prefix.clear();  // an eos too is no beginning
  if (tokens.size() < 2) {
    throw_invalid("--text {}: {} tokens; at least 2 are needed", options.text, tokens.size());
  }

  RankRuntime rank({.device = e.device, .num_threads = e.threads_per_rank});
  LoadOptions load;
  load.model_dir = dir;
  load.load_format = e.load_format;
  load.dtype = e.dtype;
  load.kv_cache_dtype = e.kv_cache_dtype;
  load.quantization = e.quantization;
  load.dp_attention = e.dp_attention;
  load.page_size = e.page_size;
  load.max_model_len = options.context;
  load.max_num_seqs = 1;
  load.kv_cache_tokens = options.context;
  load.gpu_memory_limit = e.gpu_memory_limit;
  load.expert_offload = e.expert_offload;
  load.num_gpu_experts = e.num_gpu_experts;
  load.host_memory = e.host_memory;
  load.max_num_batched_tokens = kChunk;
  load.all_logits = true;
  load.warm_up = false;
  load.enforce_eager = true;
  const std::unique_ptr<LoadedModel> model = load_model(rank, load);
  const int64_t vocab = model->config.vocab_size;
  for (const int32_t token : tokens) {
    if (token >= vocab) {
      throw_invalid("--text {}: gives token {}; the model's vocabulary has {}", options.text, token,
                    vocab);
    }
  }

  const Filter filter(options, tokenizer, model->config);
  SingleSequence sequence(*model, parse_exchange(e.expert_exchange));
  Score score;
  const auto start = std::chrono::steady_clock::now();
  {
    std::unique_ptr<ProgressBar> bar;
    if (rank.rank() == 0) bar = std::make_unique<ProgressBar>("Perplexity", "tokens");
    for (size_t begin = 0; begin < tokens.size();) {
      std::vector<int32_t> window = prefix;
      if (!prefix.empty() && tokens[begin] == prefix[0]) window.clear();  // the text has its own
      size_t end = std::min(begin + options.context - window.size(), tokens.size());
      if (bos) end = std::find(tokens.begin() + begin + 1, tokens.begin() + end, *bos) - tokens.begin();
      window.insert(window.end(), tokens.begin() + static_cast<int64_t>(begin),
                    tokens.begin() + static_cast<int64_t>(end));
      if (window.size() > 1) score_window(sequence, window, filter, vocab, score);
      begin = end;
      if (bar) bar->update(begin, tokens.size());
    }
  }
  rank.group().barrier();
  if (rank.rank() != 0) return 0;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (score.tokens == 0) {
    throw_invalid("--score-after {}: nothing in {} follows it", options.score_after, options.text);
  }
  const double mean = score.sum / static_cast<double>(score.tokens);
  if (options.json) {
    const nlohmann::ordered_json json = {{"tokens", score.tokens},
                                         {"mean_nll", mean},
                                         {"perplexity", std::exp(mean)},
                                         {"tokens_per_second", score.tokens / seconds}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("tokens {}, mean NLL {:.6f}, perplexity {:.4f}, {:.1f} tokens/s\n", score.tokens, mean,
               std::exp(mean), score.tokens / seconds);
  }
  return 0;
}

}  // namespace shoal

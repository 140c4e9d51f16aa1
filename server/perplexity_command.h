// `shoal perplexity`: how well a model predicts a text: what quantising costs, as a number.
#pragma once

#include <string>

#include "server/engine_options.h"

namespace shoal {

struct PerplexityOptions {
  EngineOptions engine;
  std::string text;   // --text FILE: UTF-8
  int context = 512;  // --context: tokens of a window
  std::string score_after;  // --score-after TOKEN: only what follows it, to the next eos
  bool json = false;  // --json
};

// The text is cut into windows of `context` tokens that are independent of each other; each begins
// with the tokenizer's bos where that adds one, a bos in the text begins a new one (documents, dialogues),
// and every token after a window's first is scored.
// With --score-after only answers count: models that were tuned on dialogues have learned to give these,
// not to guess the questions. Prints tokens scored, mean negative log-likelihood (nats), perplexity and tokens per second.
// Runs on every rank; with more than one it starts itself under mpirun. Returns the exit code.
int run_perplexity(const PerplexityOptions& options);

}  // namespace shoal

// `shoal perplexity`: how well a model predicts a text: what quantising costs, as a number.
#pragma once

#include <string>

#include "server/engine_options.h"

namespace shoal {

struct PerplexityOptions {
  EngineOptions engine;
  std::string text;   // --text FILE: UTF-8
  int context = 512;  // --context: tokens of a window
  bool json = false;  // --json
};

// The text is cut into windows of `context` tokens that are independent of each other; each begins
// with the tokenizer's bos where that adds one, and every token after a window's first is scored.
// Prints tokens scored, mean negative log-likelihood (nats), perplexity and tokens per second.
// Runs on every rank; with more than one it starts itself under mpirun. Returns the exit code.
int run_perplexity(const PerplexityOptions& options);

}  // namespace shoal

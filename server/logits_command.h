// `shoal logits`: writes the logits of every position of a prompt, [tokens, vocab_size] float32, as a
// NumPy file: the door through which anyone can compare Shoal with another implementation.
#pragma once

#include <string>

#include "server/engine_options.h"

namespace shoal {

struct LogitsOptions {
  EngineOptions engine;
  std::string tokens;   // --tokens 1,2,3
  std::string out;      // --out FILE.npy
  int greedy = 0;       // --greedy N: also print N greedily chosen tokens that follow
  int chunk = 0;        // --chunk C: prefill in pieces of C tokens (0: in one piece)
  std::string mtp_out;  // --mtp-out FILE.npy: the multi-token-prediction layer's logits too, [tokens - 1,
                        // vocab_size]: row i predicts token i + 2
  bool absorbed = false;  // --absorbed: the absorbed form of MLA for the prompt too
};

// Runs on every rank; rank 0 writes. With more than one rank it starts itself under mpirun.
// Returns the exit code.
int run_logits(const LogitsOptions& options);

}  // namespace shoal

// `shoal chat`: a client of a running server: one-shot, in a pipe, or interactive.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/client_channel.h"

namespace shoal {

struct ChatOptions {
  ServerAddress address;
  std::string system;                // --system
  std::vector<std::string> message;  // positional words, joined by spaces; none: pipe or session
  bool reasoning = true;             // --no-reasoning: do not show it
  bool stats = false;                // --stats
  double timeout = 0;                // --timeout: seconds for one answer; 0: none
  // Absent: the server's defaults.
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<int32_t> top_k, max_tokens;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
};

// Returns 0, or 1 when a one-shot or piped question got no answer. Throws InvalidInput when no
// server can be reached.
int run_chat(const ChatOptions& options);

}  // namespace shoal

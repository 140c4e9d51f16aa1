// LoadClient: many streams at once from one process, over gRPC's callback API: no thread waits for
// any of them. Knows how to send one request and to time what comes; when to send which is
// LoadRun's business.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/client_channel.h"

namespace shoal {

using LoadTime = std::chrono::steady_clock::time_point;

// What a server says of itself.
struct LoadServer {
  std::string model;
  int32_t context_length = 0, vocab_size = 0;
  std::vector<int32_t> end_ids;
};

struct LoadCall {
  // The whole prompt: token ids, or for Chat messages of (role, content).
  std::vector<int32_t> prompt;
  std::vector<std::pair<std::string, std::string>> messages;
  int32_t max_tokens = 1;
  bool ignore_eos = false;
  double temperature = 0;
  uint64_t seed = 0;
  int32_t cancel_after = -1;    // tokens seen when the client cancels; 0: at once; -1: never
  double deadline_seconds = 0;  // 0: none
  bool keep_answer = false;     // in LoadAnswer: the next turn of a conversation needs it
};

struct LoadAnswer {
  int code = 0;  // gRPC's status
  std::string error;
  bool cancelled = false;  // by this client, on purpose
  LoadTime sent{};
  double ttft = -1, latency = 0;  // seconds; no token came: -1; latency until the last token
  double ended = 0;               // seconds until the status
  std::vector<float> itl;         // seconds between messages with tokens
  int32_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  std::vector<int32_t> ids;  // with keep_answer
  std::string text;
};

class LoadClient {
 public:
  LoadClient(const ServerAddress& address, bool chat, int connections);
  // REQUIRES: no call is under way.
  ~LoadClient();

  // Waits while the server loads its model, telling `on_wait` how far it is. Throws InvalidInput
  // when no server answers or it cannot become ready.
  LoadServer connect(const std::function<void(const std::string&)>& on_wait);
  std::vector<int32_t> tokenize(const std::string& text);
  std::string detokenize(const std::vector<int32_t>& ids);

  // From any thread. `on_tokens`: so many came; `on_done`: the last word; both on gRPC's threads,
  // one after the other for a call.
  using OnTokens = std::function<void(LoadTime, int32_t)>;
  using OnDone = std::function<void(LoadAnswer)>;
  void start(const LoadCall& call, OnTokens on_tokens, OnDone on_done);

 private:
  struct Wire;
  const ServerAddress address_;
  const bool chat_;
  std::unique_ptr<Wire> wire_;
  std::atomic<uint64_t> next_{0};
};

// "OK", "RESOURCE_EXHAUSTED", ...
std::string status_name(int code);

}  // namespace shoal

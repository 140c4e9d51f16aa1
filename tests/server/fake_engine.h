// An EngineClient without ranks: emits scripted tokens, one for each live request and step, on a
// thread of its own, and does with cancels and ends what the real one promises.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/engine_client.h"

namespace shoal {

class FakeEngine : public EngineClient {
 public:
  FakeEngine();
  ~FakeEngine() override;

  void submit(Request request, std::function<void(const TokenEvent&)> on_event) override;
  void cancel(RequestId id) override;
  EngineStatus status() const override;
  void set_on_state(std::function<void(const EngineStatus&)> on_state) override;

  // What every request answers from now on: these tokens, then the end token. Empty: tokens without
  // end, until max_tokens.
  void set_answer(std::vector<int32_t> tokens, int32_t end_token);
  void set_state(EngineState state, const std::string& detail = "");
  void set_context(int32_t max_model_len);
  // What it claims to have measured (EngineStatus).
  void set_rates(double prompt_token_seconds, double decode_step_seconds);
  // While paused no step runs, as while the ranks start again; cancels wait too.
  void pause(bool paused);
  // Ends every live request with kError.
  void fail_all(const std::string& error);

  std::vector<Request> submitted() const;
  size_t live() const;
  // Waits, at most ten seconds, until no request is live.
  bool wait_idle();

 private:
  struct Live {
    Request request;
    std::function<void(const TokenEvent&)> on_event;
    std::vector<int32_t> answer;
    int32_t end_token = 0;
    int32_t emitted = 0;
    bool cancelled = false;
  };
  void run();
  // The next event of one request; true when it is its last.
  static bool step(Live* live, TokenEvent* event);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Live> live_;
  std::vector<Request> submitted_;
  std::vector<int32_t> answer_;
  int32_t end_token_ = 1;
  std::string error_;
  EngineStatus status_;
  std::function<void(const EngineStatus&)> on_state_;
  uint64_t steps_ = 0;
  bool paused_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace shoal

// What observers are told of calls that run through the front end.
#include <catch2/catch.hpp>
#include <condition_variable>
#include <map>
#include <mutex>

#include "server/observability.h"
#include "tests/server/fake_engine.h"
#include "tests/server/http_get.h"
#include "tests/server/test_model.h"

namespace shoal {
namespace {

class Witness final : public CallObserver {
 public:
  void on_tokens(const CallRecord& call, int32_t tokens, double seconds) override {
    const std::lock_guard lock(mutex_);
    REQUIRE(seconds >= 0);
    gaps_[call.id] += tokens;
  }
  void on_end(const CallRecord& call) override {
    const std::lock_guard lock(mutex_);
    ends_.push_back(call);
    changed_.notify_all();
  }
  std::vector<CallRecord> wait_for_ends(size_t count) {
    std::unique_lock lock(mutex_);
    REQUIRE(
        changed_.wait_for(lock, std::chrono::seconds(20), [&] { return ends_.size() >= count; }));
    return ends_;
  }
  int32_t gaps(const std::string& id) {
    const std::lock_guard lock(mutex_);
    return gaps_[id];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, int32_t> gaps_;
  std::vector<CallRecord> ends_;
};

v1::CompleteRequest request(int32_t max_tokens, int32_t n = 1) {
  v1::CompleteRequest request;
  request.set_text("one two three");
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_n(n);
  return request;
}

// Takes updates until the call's end, as a stream does.
struct Reader {
  explicit Reader(std::shared_ptr<Call> call) : call(std::move(call)) {
    this->call->start([this] {
      const std::lock_guard lock(mutex);
      woken = true;
      changed.notify_all();
    });
  }
  void read_all() {
    for (CallUpdate update;;) {
      switch (call->take(&update)) {
        case Call::Next::kEnd: return;
        case Call::Next::kUpdate: break;
        case Call::Next::kNothing: {
          std::unique_lock lock(mutex);
          REQUIRE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return woken; }));
          woken = false;
        }
      }
    }
  }
  std::shared_ptr<Call> call;
  std::mutex mutex;
  std::condition_variable changed;
  bool woken = false;
};

struct Server {
  Server()
      : front_end(test_model(), test_tokenizer(), test_template(), engine,
                  AdmissionOptions{.max_sequences = 64}) {
    front_end.book().observe(witness);
  }
  FakeEngine engine;
  FrontEnd front_end;
  std::shared_ptr<Witness> witness = std::make_shared<Witness>();
};

TEST_CASE("a call's record has its tokens, its times and its end") {
  Server server;
  CallContext context;
  context.request_id = "r";
  Reader reader(server.front_end.complete(request(7), context));
  reader.read_all();
  const CallRecord call = server.witness->wait_for_ends(1)[0];
  REQUIRE(call.id == reader.call->id());
  REQUIRE(std::string(call.method) == "Complete");
  REQUIRE(call.context.request_id == "r");
  REQUIRE(call.status.code == CallCode::kOk);
  REQUIRE(call.max_tokens == 7);
  REQUIRE(call.completion_tokens == 7);
  REQUIRE(call.prompt_tokens > 0);
  REQUIRE(call.cached_tokens == 1);
  REQUIRE(call.finish_reasons.size() == 1);
  REQUIRE(std::string(call.finish_reasons[0]) == "length");
  REQUIRE(server.witness->gaps(call.id) == 6);
  REQUIRE(call.arrived <= *call.submitted);
  REQUIRE(*call.submitted <= *call.first_token);
  REQUIRE(*call.first_token <= *call.last_token);
  REQUIRE(*call.last_token <= *call.ended);
  REQUIRE(call.prompt.empty());
  REQUIRE(server.front_end.status().tpot_p50_seconds() > 0);
}

TEST_CASE("samples are counted apart, and gaps are between tokens of one") {
  Server server;
  Reader reader(server.front_end.complete(request(5, 3), {}));
  reader.read_all();
  const CallRecord call = server.witness->wait_for_ends(1)[0];
  REQUIRE(call.n == 3);
  REQUIRE(call.completion_tokens == 15);
  REQUIRE(call.finish_reasons.size() == 3);
  REQUIRE(server.witness->gaps(call.id) == 12);
}

TEST_CASE("cancelled and refused calls are told of once") {
  Server server;
  server.engine.set_answer({}, kTestEnd);  // tokens without end
  Reader reader(server.front_end.complete(request(400), {}));
  reader.call->end({CallCode::kCancelled, "the client cancelled the call"});
  reader.call->end({CallCode::kDeadlineExceeded, "late"});
  reader.read_all();
  server.front_end.book().rejected("Chat", {}, {CallCode::kUnavailable, "loading"});
  REQUIRE(server.engine.wait_idle());
  const std::vector<CallRecord> ends = server.witness->wait_for_ends(2);
  REQUIRE(ends.size() == 2);
  REQUIRE(ends[0].status.code == CallCode::kCancelled);
  REQUIRE(ends[0].finish_reasons.empty());
  REQUIRE(ends[1].status.code == CallCode::kUnavailable);
  REQUIRE(!ends[1].submitted);
}

TEST_CASE("prompts are in records only where the operator wants them") {
  Server server;
  server.front_end.keep_prompts();
  Reader reader(server.front_end.complete(request(2), {}));
  reader.read_all();
  REQUIRE(server.witness->wait_for_ends(1)[0].prompt.find("one two three") != std::string::npos);
}

TEST_CASE("/metrics and /ready follow a server's calls") {
  FakeEngine engine;
  FrontEnd front_end(test_model(), test_tokenizer(), test_template(), engine,
                     AdmissionOptions{.max_sequences = 64});
  ObservabilityOptions options;
  options.metrics_port = 0;
  options.log_requests = false;
  const Observability observability(options, {.model_name = "test/model", .version = "1"},
                                    front_end, engine);
  const std::string address = observability.metrics_address();
  REQUIRE(http_get(address, "/ready").status == 200);
  for (int i = 0; i < 3; ++i) {
    Reader reader(front_end.complete(request(4), {}));
    reader.read_all();
  }
  const std::string text = http_get(address, "/metrics").body;
  const std::string labels = "{model_name=\"test/model\",code=\"OK\",method=\"Complete\"} 3\n";
  REQUIRE(text.find("shoal_calls_ended_total" + labels) != std::string::npos);
  REQUIRE(
      text.find(
          "vllm:inter_token_latency_seconds_count{engine=\"0\",model_name=\"test/model\"} 9\n") !=
      std::string::npos);
  REQUIRE(text.find("shoal_calls_accepted_total{model_name=\"test/model\"} 3\n") !=
          std::string::npos);
  REQUIRE(text.find("shoal_state{model_name=\"test/model\",state=\"ready\"} 1\n") !=
          std::string::npos);
  engine.set_state(EngineState::kRestarting, "rank 1 died");
  REQUIRE(http_get(address, "/ready").status == 503);
  REQUIRE(http_get(address, "/ready").body == "rank 1 died\n");
  engine.set_state(EngineState::kReady);
  front_end.drain();
  REQUIRE(http_get(address, "/ready").body == "draining\n");
  REQUIRE(http_get(address, "/health").status == 200);
  REQUIRE(http_get(address, "/metrics").body.find("state=\"draining\"} 1\n") != std::string::npos);
}

}  // namespace
}  // namespace shoal

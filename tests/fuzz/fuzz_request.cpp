// A message of shoal.v1 from a client, as the front end takes it: refused by InvalidInput or CallRefused, or what
// reaches the engine keeps the promises that the engine rests on, and the answer can be sent. The first byte says
// which message follows.
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/base/error.h"
#include "server/front_end.h"
#include "server/request_validation.h"
#include "server/wire.h"

namespace {

using namespace shoal;

constexpr int32_t kContext = 256;
const std::string kModel = SHOAL_SOURCE_DIR "/deploy/demo-model";

void require(bool condition) {
  if (!condition) std::abort();
}

// Looks at what it is given, and answers when asked to.
class WatchingEngine : public EngineClient {
 public:
  explicit WatchingEngine(int32_t vocab_size) : vocab_size_(vocab_size) {}
  void submit(Request request, std::function<void(const TokenEvent&)> on_event) override {
    const SamplingParams& s = request.sampling;
    require(!request.tokens.empty() && request.prompt_len == std::ssize(request.tokens));
    require(s.max_tokens >= 1 && request.prompt_len + s.max_tokens <= kContext);
    require(s.min_tokens >= 0 && s.min_tokens <= s.max_tokens);
    for (const int32_t id : request.tokens) require(0 <= id && id < vocab_size_);
    for (const int32_t id : s.stop_token_ids) require(0 <= id && id < vocab_size_);
    for (const auto& [id, bias] : s.logit_bias) require(0 <= id && id < vocab_size_ && bias >= -100 && bias <= 100);
    require(s.temperature >= 0 && s.temperature <= 100 && s.top_p > 0 && s.top_p <= 1);
    require(s.min_p >= 0 && s.min_p <= 1 && s.top_k >= 0 && s.top_k < vocab_size_);
    require(s.repetition_penalty >= 0.01f && s.repetition_penalty <= 100);
    require(s.num_logprobs >= -1 && s.num_logprobs <= 20);
    requests_.push_back({std::move(request), std::move(on_event)});
  }
  void cancel(RequestId) override {}
  EngineStatus status() const override {
    EngineStatus status;
    status.state = EngineState::kReady;
    status.max_model_len = kContext;
    return status;
  }
  void set_on_state(std::function<void(const EngineStatus&)>) override {}

  // A few tokens for each request, bytes that are no character among them, then the end.
  void answer() {
    for (auto& [request, on_event] : requests_) {
      for (int32_t i = 0; i < 4; ++i) {
        TokenEvent event;
        event.id = request.id;
        event.token = (request.tokens[0] * 31 + i * 97) % vocab_size_;
        if (request.sampling.num_logprobs >= 0) {
          event.logprobs.emplace();
          for (int32_t k = 0; k < request.sampling.num_logprobs; ++k) event.logprobs->top.emplace_back(k, -1.0f);
        }
        if (i == 3) event.finish_reason = FinishReason::kLength;
        on_event(event);
      }
    }
    requests_.clear();
  }
  size_t live() const { return requests_.size(); }

 private:
  const int32_t vocab_size_;
  std::vector<std::pair<Request, std::function<void(const TokenEvent&)>>> requests_;
};

struct Server {
  Server() : tokenizer(Tokenizer::FromCheckpoint(kModel)), engine(tokenizer.vocab_size()) {
    ServedModel model;
    model.name = "fuzz";
    model.vocab_size = tokenizer.vocab_size();
    model.eos_token_ids = {1};
    front_end = std::make_unique<FrontEnd>(std::move(model), tokenizer, ChatTemplate::FromCheckpoint(kModel), engine,
                                           AdmissionOptions{.max_sequences = kMaxSamples});
  }
  Tokenizer tokenizer;
  WatchingEngine engine;
  std::unique_ptr<FrontEnd> front_end;
};

template <typename Response>
void run(Server& server, const std::shared_ptr<Call>& call) {
  call->start([] {});
  require(server.engine.live() >= 1 && server.engine.live() <= kMaxSamples);
  server.engine.answer();
  CallUpdate update;
  Call::Next next;
  while ((next = call->take(&update)) == Call::Next::kUpdate) {
    Response response;
    fill_response(*server.front_end, update, &response);
    require(response.SerializeAsString().size() < (size_t{8} << 20));
    Response again;
    require(again.ParseFromString(response.SerializeAsString()));  // its text is UTF-8
  }
  require(next == Call::Next::kEnd);
  require(server.front_end->book().counts().open == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Server server;
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const FrontEnd& reading = *server.front_end;
  try {
    switch (data[0] % 4) {
      case 0: {
        v1::ChatRequest request;
        parse_message(bytes, &request);
        run<v1::ChatResponse>(server, server.front_end->chat(request, {}));
        break;
      }
      case 1: {
        v1::CompleteRequest request;
        parse_message(bytes, &request);
        run<v1::CompleteResponse>(server, server.front_end->complete(request, {}));
        break;
      }
      case 2: {
        v1::TokenizeRequest request;
        parse_message(bytes, &request);
        const v1::TokenizeResponse response = reading.tokenize(request);
        for (const int32_t id : response.ids()) {
          require(0 <= id && id < server.tokenizer.vocab_size());
        }
        break;
      }
      case 3: {
        v1::DetokenizeRequest request;
        parse_message(bytes, &request);
        v1::DetokenizeResponse again;
        require(again.ParseFromString(reading.detokenize(request).SerializeAsString()));
        break;
      }
    }
  } catch (const InvalidInput& error) {
    const std::string_view message = error.what();
    require(message.size() < 2000 && message.find('\n') == message.npos);
  } catch (const CallRefused&) {
  }
  return 0;
}

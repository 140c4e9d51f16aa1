// The front end: everything between a client's message and the engine's requests. Validates,
// renders, tokenizes, admits, and makes calls. Knows no gRPC.
//
// Thread-safe. Throws InvalidInput for a wrong field and CallRefused for what is not the message's
// fault. The engine client must outlive it and every call that it made.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/model_config.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/call.h"
#include "server/engine_client.h"
#include "server/metrics/recent_calls.h"
#include "shoal/v1/inference.pb.h"

namespace shoal {

// What is served, known before the engine is.
struct ServedModel {
  std::string name, architecture;
  int32_t vocab_size = 0;
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  GenerationDefaults defaults;
};

class FrontEnd {
 public:
  // Throws InvalidInput when the model's own sampling defaults are out of range.
  FrontEnd(ServedModel model, Tokenizer tokenizer, ChatTemplate chat_template, EngineClient& engine,
           AdmissionOptions admission);

  // A call that is admitted and not started yet.
  std::shared_ptr<Call> chat(const v1::ChatRequest& request, const CallContext& context);
  std::shared_ptr<Call> complete(const v1::CompleteRequest& request, const CallContext& context);
  v1::TokenizeResponse tokenize(const v1::TokenizeRequest& request) const;
  v1::DetokenizeResponse detokenize(const v1::DetokenizeRequest& request) const;
  v1::GetModelResponse model() const;
  v1::GetStatusResponse status() const;

  const std::string& model_name() const { return model_.name; }
  std::string token_bytes(int32_t id) const { return std::string(tokenizer_.token_bytes(id)); }
  CallBook& book() { return *book_; }
  // From now on new calls are refused; running ones go on.
  void drain() { draining_ = true; }
  bool draining() const { return draining_; }
  // Calls' records hold their prompts (CallRecord::prompt). Before the first call.
  void keep_prompts() { keep_prompts_ = true; }

 private:
  RequestLimits ready_limits() const;  // throws CallRefused unless calls can be taken
  void check_model(const std::string& name) const;
  std::string render(const google::protobuf::RepeatedPtrField<v1::Message>& messages,
                     const google::protobuf::RepeatedPtrField<std::string>& tools,
                     const google::protobuf::Map<std::string, std::string>& kwargs) const;
  std::shared_ptr<Call> admit(const char* method, const CallContext& context,
                              CallSampling sampling, OutputFormat format,
                              std::vector<int32_t> prompt, int32_t priority, bool stream);

  const ServedModel model_;
  const Tokenizer tokenizer_;
  const ChatTemplate chat_template_;
  EngineClient& engine_;
  const std::shared_ptr<CallBook> book_;
  const std::shared_ptr<RecentCalls> recent_ = std::make_shared<RecentCalls>();
  bool keep_prompts_ = false;
  const Clock::time_point started_ = Clock::now();
  size_t longest_token_ = 1;  // bytes
  std::atomic<RequestId> next_id_{1};
  std::atomic<bool> draining_{false};
};

}  // namespace shoal

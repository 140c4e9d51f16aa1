#include "server/wire.h"

#include <google/protobuf/stubs/logging.h>

#include <mutex>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// protobuf only logs which text field is not UTF-8; the message of the thread that parses is kept.
thread_local std::string parse_complaint;

void keep_complaint(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  parse_complaint = message;
}

v1::FinishReason finish_reason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    default:
      return v1::FINISH_REASON_UNSPECIFIED;
  }
}

// What ChatOutput and CompleteOutput have in common.
template <typename Output>
void fill_output(const FrontEnd& front_end, const OutputDelta& delta, Output* output) {
  output->set_index(delta.index);
  output->set_finish_reason(finish_reason(delta.finish_reason));
  if (delta.stop_string) output->set_stop_string(*delta.stop_string);
  if (delta.stop_token_id) output->set_stop_token_id(*delta.stop_token_id);
  for (const auto& [id, logprobs] : delta.logprobs) {
    v1::TokenLogprob* token = output->add_logprobs();
    token->set_token_id(id);
    token->set_token(front_end.token_bytes(id));
    token->set_logprob(logprobs.logprob);
    for (const auto& [top_id, logprob] : logprobs.top) {
      v1::TopLogprob* top = token->add_top();
      top->set_token_id(top_id);
      top->set_token(front_end.token_bytes(top_id));
      top->set_logprob(logprob);
    }
  }
}

void fill_usage(const CallUsage& usage, v1::Usage* out) {
  out->set_prompt_tokens(usage.prompt_tokens);
  out->set_completion_tokens(usage.completion_tokens);
  out->set_reasoning_tokens(usage.reasoning_tokens);
  out->set_cached_tokens(usage.cached_tokens);
}

}  // namespace

void parse_message(const std::string& bytes, google::protobuf::Message* message) {
  static std::once_flag once;
  std::call_once(once, [] { google::protobuf::SetLogHandler(&keep_complaint); });
  parse_complaint.clear();
  if (message->ParseFromString(bytes)) return;
  // "String field 'shoal.v1.Message.content' contains invalid UTF-8 data when parsing ..."
  const size_t begin = parse_complaint.find('\'');
  const size_t end = parse_complaint.find('\'', begin + 1);
  if (begin != std::string::npos && end != std::string::npos) {
    throw_invalid("{} is not valid UTF-8", parse_complaint.substr(begin + 1, end - begin - 1));
  }
  throw_invalid("the request is no {}", message->GetTypeName());
}

bool fill_response(const FrontEnd& front_end, const CallUpdate& update,
                   v1::ChatResponse* response) {
  for (const OutputDelta& delta : update.outputs) {
    if (delta.content.empty() && delta.reasoning.empty() && delta.logprobs.empty() &&
        delta.finish_reason == FinishReason::kNone) {
      continue;
    }
    v1::ChatOutput* output = response->add_outputs();
    fill_output(front_end, delta, output);
    output->set_content(delta.content);
    output->set_reasoning_content(delta.reasoning);
  }
  if (update.usage) fill_usage(*update.usage, response->mutable_usage());
  return response->outputs_size() > 0 || response->has_usage();
}

bool fill_response(const FrontEnd& front_end, const CallUpdate& update,
                   v1::CompleteResponse* response) {
  for (const OutputDelta& delta : update.outputs) {
    v1::CompleteOutput* output = response->add_outputs();
    fill_output(front_end, delta, output);
    output->set_text(delta.content);
    output->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  }
  if (update.usage) fill_usage(*update.usage, response->mutable_usage());
  return true;
}

}  // namespace shoal

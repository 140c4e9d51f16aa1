#include "server/front_end.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <utility>

#include "kernels/base/error.h"
#include "server/conversation.h"
#include "server/status_fields.h"
#include "server/request_validation.h"

namespace shoal {
namespace {

// Unicode normalisation may shorten text before it is tokenized: a Hangul syllable of three letters
// composes from 9 bytes to 3, the most that any composition gives.
constexpr size_t kNormalisationFactor = 3;

// A load takes seconds to minutes; asking is cheap.
constexpr std::chrono::milliseconds kLoadingHint{1000};

uint64_t draw_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

v1::ServerState server_state(EngineState state, bool draining) {
  if (draining) return v1::SERVER_STATE_DRAINING;
  switch (state) {
    case EngineState::kStarting:
    case EngineState::kLoading:
      return v1::SERVER_STATE_LOADING;
    case EngineState::kReady:
      return v1::SERVER_STATE_READY;
    case EngineState::kRestarting:
      return v1::SERVER_STATE_RESTARTING;
    case EngineState::kFailed:
      return v1::SERVER_STATE_FAILED;
    case EngineState::kStopped:
      return v1::SERVER_STATE_DRAINING;
  }
  return v1::SERVER_STATE_UNSPECIFIED;
}

EngineRates engine_rates(const EngineStatus& engine) {
  EngineRates rates;
  // Before the ranks are there (again) what was measured does not count.
  if (engine.state != EngineState::kReady) return rates;
  rates.prompt_token_seconds = engine.prompt_token_seconds;
  rates.decode_step_seconds = engine.decode_step_seconds;
  if (engine.prefix_queries > 0) {
    rates.hit_rate =
        static_cast<double>(engine.prefix_hits) / static_cast<double>(engine.prefix_queries);
  }
  return rates;
}

}  // namespace

FrontEnd::FrontEnd(ServedModel model, Tokenizer tokenizer, ChatTemplate chat_template,
                   EngineClient& engine, AdmissionOptions admission)
    : model_(std::move(model)),
      tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      engine_(engine),
      book_(std::make_shared<CallBook>(std::move(admission))) {
  book_->observe(recent_);
  for (int32_t id = 0; id < tokenizer_.vocab_size(); ++id) {
    longest_token_ = std::max(longest_token_, tokenizer_.token_bytes(id).size());
  }
  longest_token_ *= kNormalisationFactor;
  try {
    check_sampling({}, model_.defaults, {1, model_.vocab_size});
  } catch (const InvalidInput& error) {
    throw_invalid("generation_config.json: {}", error.what());
  }
}

RequestLimits FrontEnd::ready_limits() const {
  if (draining_) throw CallRefused(CallCode::kUnavailable, "the server is shutting down");
  const EngineStatus status = engine_.status();
  switch (status.state) {
    case EngineState::kReady:
      return {status.max_model_len, model_.vocab_size};
    case EngineState::kRestarting:
    case EngineState::kStarting:
    case EngineState::kLoading:
      // It was ready before: calls wait for the new ranks.
      if (status.max_model_len > 0) return {status.max_model_len, model_.vocab_size};
      throw CallRefused(CallCode::kUnavailable,
                        fmt::format("the model is loading ({})", status.detail), Refusal::kLoading,
                        kLoadingHint);
    case EngineState::kFailed:
      throw CallRefused(CallCode::kUnavailable,
                        fmt::format("the engine failed: {}", status.detail));
    case EngineState::kStopped:
      break;
  }
  throw CallRefused(CallCode::kUnavailable, "the server is shutting down");
}

void FrontEnd::check_model(const std::string& name) const {
  if (name.empty() || name == model_.name) return;
  throw CallRefused(CallCode::kNotFound,
                    fmt::format("model is {}; this server has \"{}\"", shown(name), model_.name));
}

std::string FrontEnd::render(const google::protobuf::RepeatedPtrField<v1::Message>& messages,
                             const google::protobuf::RepeatedPtrField<std::string>& tools,
                             const google::protobuf::Map<std::string, std::string>& kwargs) const {
  check_messages(messages);
  check_tools(tools);
  check_template_kwargs(kwargs);
  return render_conversation(chat_template_, messages, tools, kwargs);
}

std::shared_ptr<Call> FrontEnd::chat(const v1::ChatRequest& request,
                                     const CallContext& context) {
  const RequestLimits limits = ready_limits();
  check_model(request.model());
  check_priority(request.priority());
  CallSampling sampling = check_sampling(request.sampling(), model_.defaults, limits);
  const std::string text =
      render(request.messages(), request.tools(), request.chat_template_kwargs());
  check_prompt_bytes(text.size(), longest_token_, limits);
  std::vector<int32_t> prompt = tokenizer_.encode(text, {.add_special_tokens = false});
  fit_to_context(&sampling, static_cast<int64_t>(prompt.size()), limits);
  const OutputFormat format{.split_reasoning = true,
                            .starts_in_reasoning = prompt_opens_reasoning(text)};
  return admit("Chat", context, std::move(sampling), format, std::move(prompt), request.priority(),
               !request.has_stream() || request.stream());
}

std::shared_ptr<Call> FrontEnd::complete(const v1::CompleteRequest& request,
                                         const CallContext& context) {
  const RequestLimits limits = ready_limits();
  check_model(request.model());
  check_priority(request.priority());
  CallSampling sampling = check_sampling(request.sampling(), model_.defaults, limits);
  std::vector<int32_t> prompt;
  switch (request.prompt_case()) {
    case v1::CompleteRequest::kText:
      check_prompt_bytes(request.text().size(), longest_token_, limits);
      prompt = tokenizer_.encode(request.text());
      break;
    case v1::CompleteRequest::kTokenIds:
      check_token_ids(request.token_ids().ids(), "token_ids.ids", limits.vocab_size);
      prompt.assign(request.token_ids().ids().begin(), request.token_ids().ids().end());
      break;
    case v1::CompleteRequest::PROMPT_NOT_SET:
      throw_invalid("prompt is missing; text or token_ids must be set");
  }
  fit_to_context(&sampling, static_cast<int64_t>(prompt.size()), limits);
  return admit("Complete", context, std::move(sampling), {}, std::move(prompt), request.priority(),
               !request.has_stream() || request.stream());
}

std::shared_ptr<Call> FrontEnd::admit(const char* method, const CallContext& context,
                                      CallSampling sampling, OutputFormat format, std::vector<int32_t> prompt,
                                      int32_t priority, bool stream) {
  if (!sampling.has_seed) sampling.params.seed = draw_seed();
  const int32_t n = sampling.n;
  Admission::Ask ask;
  ask.client = context.client;
  ask.n = n;
  ask.priority = std::max(priority, context.client->best_priority);
  ask.prompt_tokens = static_cast<int64_t>(prompt.size());
  if (context.deadline) {
    ask.seconds_left =
        std::chrono::duration<double>(*context.deadline - std::chrono::system_clock::now()).count();
    ask.rates = engine_rates(engine_.status());
  }
  Admission::Ticket ticket = book_->admission().admit(ask);
  Call::Setup setup;
  setup.context = context;
  setup.first_request_id = next_id_.fetch_add(n);
  setup.id = fmt::format("{}-{:x}", method[1] == 'h' ? "chat" : "cmpl", draw_seed());
  setup.method = method;
  if (keep_prompts_) setup.prompt_text = tokenizer_.decode(prompt, /*skip_special_tokens=*/false);
  setup.sampling = std::move(sampling);
  setup.format = format;
  setup.prompt = std::move(prompt);
  setup.priority = ask.priority;
  setup.stream = stream;
  return std::make_shared<Call>(std::move(setup), std::move(ticket), tokenizer_, engine_, book_);
}

v1::TokenizeResponse FrontEnd::tokenize(const v1::TokenizeRequest& request) const {
  v1::TokenizeResponse response;
  std::vector<int32_t> ids;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      ids = tokenizer_.encode(
          request.text(), {.add_special_tokens =
                               !request.has_add_special_tokens() || request.add_special_tokens()});
      break;
    case v1::TokenizeRequest::kConversation: {
      const v1::Conversation& conversation = request.conversation();
      response.set_rendered(render(conversation.messages(), conversation.tools(),
                                   conversation.chat_template_kwargs()));
      ids = tokenizer_.encode(response.rendered(), {.add_special_tokens = false});
      break;
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      throw_invalid("input is missing; text or conversation must be set");
  }
  response.mutable_ids()->Add(ids.begin(), ids.end());
  return response;
}

v1::DetokenizeResponse FrontEnd::detokenize(const v1::DetokenizeRequest& request) const {
  check_token_ids(request.ids(), "ids", model_.vocab_size);
  v1::DetokenizeResponse response;
  response.set_text(
      tokenizer_.decode({request.ids().data(), static_cast<size_t>(request.ids_size())},
                        request.skip_special_tokens()));
  return response;
}

v1::GetModelResponse FrontEnd::model() const {
  v1::GetModelResponse response;
  response.set_name(model_.name);
  response.set_architecture(model_.architecture);
  response.set_context_length(engine_.status().max_model_len);
  response.set_vocab_size(model_.vocab_size);
  response.mutable_eos_token_ids()->Add(model_.eos_token_ids.begin(), model_.eos_token_ids.end());
  if (model_.bos_token_id) response.set_bos_token_id(*model_.bos_token_id);
  response.set_has_chat_template(!chat_template_.is_fallback());
  const SamplingParams params = check_sampling({}, model_.defaults, {1, model_.vocab_size}).params;
  v1::SamplingParams* defaults = response.mutable_default_sampling();
  defaults->set_temperature(params.temperature);
  defaults->set_top_p(params.top_p);
  defaults->set_top_k(params.top_k);
  defaults->set_min_p(params.min_p);
  defaults->set_repetition_penalty(params.repetition_penalty);
  return response;
}

v1::GetStatusResponse FrontEnd::status() const {
  const EngineStatus engine = engine_.status();
  const CallCounts calls = book_->counts();
  v1::GetStatusResponse response;
  response.set_state(server_state(engine.state, draining_));
  response.set_detail(engine.detail);
  response.set_uptime_seconds(std::chrono::duration<double>(Clock::now() - started_).count());
  response.set_world_size(engine.world_size);
  for (const std::string& rank : engine.ranks) response.add_ranks(rank);
  response.set_weight_bytes(engine.weight_bytes);
  response.set_kv_cache_bytes(engine.kv_cache_bytes);
  response.set_kv_tokens(engine.kv_tokens);
  response.set_kv_pages_total(engine.pages_total);
  response.set_kv_pages_used(engine.pages_used);
  response.set_requests_running(engine.running);
  response.set_requests_waiting(engine.waiting);
  response.set_streams_open(calls.open);
  response.set_prefix_queries(engine.prefix_queries);
  response.set_prefix_hits(engine.prefix_hits);
  response.set_preemptions(engine.preemptions);
  response.set_pages_swapped_out(engine.tiers.swapped_out);
  response.set_pages_swapped_in(engine.tiers.swapped_in);
  response.set_pages_spilled(engine.tiers.spilled);
  response.set_pages_restored(engine.tiers.restored);
  response.set_pages_saved(engine.tiers.saved);
  response.set_pages_loaded(engine.tiers.loaded);
  response.set_steps(engine.steps);
  response.set_prompt_tokens(engine.prompt_tokens);
  response.set_generated_tokens(engine.generated_tokens);
  response.set_engine_restarts(engine.restarts);
  response.set_calls_ok(calls.ok);
  response.set_calls_cancelled(calls.cancelled);
  response.set_calls_deadline_exceeded(calls.deadline_exceeded);
  response.set_calls_rejected(calls.rejected);
  response.set_calls_failed(calls.failed);
  response.set_calls_accepted(calls.accepted);
  for (const auto& [reason, count] : calls.rejected_by) {
    (*response.mutable_calls_rejected_by())[reason] = count;
  }
  response.set_sequences_alive(calls.sequences);
  response.set_pending_bytes(calls.pending_bytes);
  response.set_model(model_.name);
  fill_observed(engine, recent_->quantiles(), &response);
  return response;
}

}  // namespace shoal

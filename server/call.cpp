#include "server/call.h"

#include <fmt/format.h>

#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

void append(OutputDelta* to, OutputDelta&& from) {
  to->content += from.content;
  to->reasoning += from.reasoning;
  to->token_ids.insert(to->token_ids.end(), from.token_ids.begin(), from.token_ids.end());
  to->logprobs.insert(to->logprobs.end(), std::make_move_iterator(from.logprobs.begin()),
                      std::make_move_iterator(from.logprobs.end()));
  if (from.finish_reason != FinishReason::kNone) {
    to->finish_reason = from.finish_reason;
    to->stop_string = std::move(from.stop_string);
    to->stop_token_id = from.stop_token_id;
  }
}

}  // namespace

void CallBook::opened(std::shared_ptr<Call> call) {
  std::lock_guard lock(mutex_);
  const Call* key = call.get();
  open_.emplace(key, std::move(call));
  ++counts_.accepted;
}

void CallBook::closed(const Call* call, CallCode code) {
  std::shared_ptr<Call> last;  // destroyed after the lock is released
  std::lock_guard lock(mutex_);
  const auto it = open_.find(call);
  if (it == open_.end()) return;
  last = std::move(it->second);
  open_.erase(it);
  ++(code == CallCode::kOk                 ? counts_.ok
     : code == CallCode::kCancelled        ? counts_.cancelled
     : code == CallCode::kDeadlineExceeded ? counts_.deadline_exceeded
                                           : counts_.failed);
}

void CallBook::rejected(const char* method, const CallContext& context, const CallStatus& status) {
  {
    std::lock_guard lock(mutex_);
    ++counts_.rejected;
    ++counts_.rejected_by[refusal_name(status)];
  }
  CallRecord record;
  record.method = method;
  record.context = context;
  record.status = status;
  record.arrived = context.arrived;
  record.ended = Clock::now();
  for (const auto& observer : observers_) observer->on_end(record);
}

CallCounts CallBook::counts() const {
  CallCounts counts;
  std::vector<std::shared_ptr<Call>> open;
  {
    std::lock_guard lock(mutex_);
    counts = counts_;
    for (const auto& [key, call] : open_) open.push_back(call);
  }
  counts.open = static_cast<int64_t>(open.size());
  counts.sequences = admission_->sequences();
  for (const auto& call : open) counts.pending_bytes += static_cast<int64_t>(call->pending_bytes());
  return counts;
}

std::vector<std::shared_ptr<Call>> CallBook::calls() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Call>> calls;
  for (const auto& [key, call] : open_) calls.push_back(call);
  return calls;
}

void CallBook::end_stalled(Clock::duration timeout) {
  const Clock::time_point now = Clock::now();
  for (const std::shared_ptr<Call>& call : calls()) {
    if (!call->stalled(now, timeout)) continue;
    call->end({CallCode::kResourceExhausted,
               fmt::format("the client has not read for {:.1f} s (--stream-stall-timeout)",
                           std::chrono::duration<double>(timeout).count())});
  }
}

void CallBook::end_all(const CallStatus& status) {
  for (const std::shared_ptr<Call>& call : calls()) call->end(status);
}

Call::Call(Setup setup, Admission::Ticket ticket, const Tokenizer& tokenizer,
           EngineClient& engine, std::shared_ptr<CallBook> book)
    : setup_(std::move(setup)),
      ticket_(std::move(ticket)),
      engine_(engine),
      book_(std::move(book)),
      pending_(setup_.sampling.n),
      unfinished_(setup_.sampling.n),
      last_token_(setup_.sampling.n) {
  record_.id = setup_.id;
  record_.method = setup_.method;
  record_.prompt = std::move(setup_.prompt_text);
  record_.context = setup_.context;
  record_.n = setup_.sampling.n;
  record_.max_tokens = setup_.sampling.params.max_tokens;
  record_.prompt_tokens = static_cast<int32_t>(setup_.prompt.size());
  record_.arrived = setup_.context.arrived;
  for (int32_t i = 0; i < setup_.sampling.n; ++i) {
    sequences_.emplace_back(tokenizer, setup_.sampling, setup_.format);
    pending_[i].index = i;
  }
  usage_.prompt_tokens = static_cast<int32_t>(setup_.prompt.size());
}

void Call::start(std::function<void()> wake) {
  wake_ = std::move(wake);
  record_.submitted = Clock::now();
  book_->opened(shared_from_this());
  for (int32_t i = 0; i < setup_.sampling.n; ++i) {
    Request request;
    request.id = setup_.first_request_id + i;
    request.tokens = setup_.prompt;
    request.prompt_len = static_cast<int32_t>(setup_.prompt.size());
    request.sampling = setup_.sampling.params;
    request.sampling.seed += i;
    request.priority = setup_.priority;
    request.client = setup_.context.client->id;
    request.cache_salt = setup_.context.client->cache_salt;
    engine_.submit(std::move(request), [self = shared_from_this(), i](const TokenEvent& event) {
      self->on_event(i, event);
    });
  }
  // The client may have gone while the samples were handed over.
  bool failed;
  {
    std::lock_guard lock(mutex_);
    failed = failed_;
  }
  if (failed) cancel_requests();
}

void Call::on_event(int32_t index, const TokenEvent& event) {
  bool cancel_one = false, cancel_all = false, first = false;
  std::optional<double> gap;
  const bool engine_failed = event.finish_reason == FinishReason::kError &&
                             engine_.status().state == EngineState::kFailed;
  {
    std::lock_guard lock(mutex_);
    SequenceOutput& sequence = sequences_[index];
    if (!failed_ && !sequence.finished()) {
      if (event.finish_reason == FinishReason::kError) {
        fail({engine_failed ? CallCode::kUnavailable : CallCode::kInternal, event.error});
        cancel_all = true;
      } else if (event.finish_reason == FinishReason::kAbort) {
        fail({CallCode::kUnavailable, "the server ended the call"});
        cancel_all = true;
      } else {
        first = event.token && !last_token_[index];
        gap = note_token(index, event);
        OutputDelta delta;
        sequence.push(event, &delta);
        if (delta.finish_reason != FinishReason::kNone) {
          record_.finish_reasons.push_back(
              delta.finish_reason == FinishReason::kLength ? "length" : "stop");
        }
        if (index == 0 && event.cached_tokens > 0) usage_.cached_tokens = event.cached_tokens;
        pending_bytes_ += delta.bytes();
        append(&pending_[index], std::move(delta));
        if (sequence.finished()) {
          --unfinished_;
          cancel_one = event.finish_reason == FinishReason::kNone;  // a stop string
        } else if (pending_bytes_ > kMaxPendingBytes) {
          fail({CallCode::kResourceExhausted,
                fmt::format("more than {} MiB wait to be read; read faster, ask for less, or use "
                            "stream = true",
                            kMaxPendingBytes >> 20)});
          cancel_all = true;
        }
      }
    }
  }
  if (gap) {
    for (const auto& observer : book_->observers()) observer->on_tokens(record_, 1, *gap);
  }
  if (first) ticket_.started(index);
  if (event.finish_reason != FinishReason::kNone) ticket_.ended(index);
  if (cancel_one) engine_.cancel(setup_.first_request_id + index);
  if (cancel_all) cancel_requests();
  wake_();
}

std::optional<double> Call::note_token(int32_t index, const TokenEvent& event) {
  if (!event.token) return std::nullopt;
  const Clock::time_point now = Clock::now();
  if (!record_.first_token) record_.first_token = now;
  if (index == 0 && event.queue_seconds) record_.queue_seconds = *event.queue_seconds;
  record_.last_token = now;
  const std::optional<Clock::time_point> before = std::exchange(last_token_[index], now);
  if (!before) return std::nullopt;
  return std::chrono::duration<double>(now - *before).count();
}

void Call::fail(CallStatus status) {
  failed_ = true;
  status_ = std::move(status);
}

void Call::cancel_requests() {
  for (int32_t i = 0; i < setup_.sampling.n; ++i) engine_.cancel(setup_.first_request_id + i);
}

Call::Next Call::take(CallUpdate* update) {
  {
    std::lock_guard lock(mutex_);
    writing_since_.reset();
    if (!failed_ && !last_taken_) {
      const bool last = unfinished_ == 0;
      if (!last && (!setup_.stream || pending_bytes_ == 0)) return Next::kNothing;
      update->outputs.clear();
      for (OutputDelta& delta : pending_) {
        if (delta.empty()) continue;
        const int32_t index = delta.index;
        update->outputs.push_back(std::exchange(delta, OutputDelta{}));
        delta.index = index;
      }
      pending_bytes_ = 0;
      if (!last && update->outputs.empty()) return Next::kNothing;
      if (last) {
        for (const SequenceOutput& sequence : sequences_) {
          usage_.completion_tokens += sequence.completion_tokens();
          usage_.reasoning_tokens += sequence.reasoning_tokens();
        }
        update->usage = usage_;
        last_taken_ = true;
      }
      writing_since_ = Clock::now();
      return Next::kUpdate;
    }
    if (std::exchange(closed_, true)) return Next::kEnd;
    record_.status = status_;
    record_.ended = Clock::now();
    record_.cached_tokens = usage_.cached_tokens;
    for (const SequenceOutput& sequence : sequences_) {
      record_.completion_tokens += sequence.completion_tokens();
    }
  }
  book_->closed(this, status().code);
  for (const auto& observer : book_->observers()) observer->on_end(record_);
  return Next::kEnd;
}

void Call::end(CallStatus status) {
  {
    std::lock_guard lock(mutex_);
    if (failed_ || closed_) return;
    fail(std::move(status));
  }
  cancel_requests();
  wake_();
}

CallStatus Call::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

size_t Call::pending_bytes() const {
  std::lock_guard lock(mutex_);
  return pending_bytes_;
}

bool Call::stalled(Clock::time_point now, Clock::duration timeout) const {
  std::lock_guard lock(mutex_);
  return writing_since_ && now - *writing_since_ > timeout;
}

}  // namespace shoal

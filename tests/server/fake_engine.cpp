#include "tests/server/fake_engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace shoal {

FakeEngine::FakeEngine() {
  status_.state = EngineState::kReady;
  status_.max_model_len = 512;
  status_.world_size = 1;
  status_.pages_total = 100;
  thread_ = std::thread([this] { run(); });
}

FakeEngine::~FakeEngine() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void FakeEngine::submit(Request request, std::function<void(const TokenEvent&)> on_event) {
  std::lock_guard lock(mutex_);
  submitted_.push_back(request);
  Live live;
  live.request = std::move(request);
  live.on_event = std::move(on_event);
  live.answer = answer_;
  live.end_token = end_token_;
  live_.emplace(live.request.id, std::move(live));
  changed_.notify_all();
}

void FakeEngine::cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  const auto it = live_.find(id);
  if (it != live_.end()) it->second.cancelled = true;
}

EngineStatus FakeEngine::status() const {
  std::lock_guard lock(mutex_);
  EngineStatus status = status_;
  status.running = static_cast<int64_t>(live_.size());
  status.pages_used = status.running;
  status.steps = steps_;
  return status;
}

void FakeEngine::set_on_state(std::function<void(const EngineStatus&)> on_state) {
  std::lock_guard lock(mutex_);
  on_state_ = std::move(on_state);
}

void FakeEngine::set_answer(std::vector<int32_t> tokens, int32_t end_token) {
  std::lock_guard lock(mutex_);
  answer_ = std::move(tokens);
  end_token_ = end_token;
}

void FakeEngine::set_state(EngineState state, const std::string& detail) {
  std::function<void(const EngineStatus&)> on_state;
  EngineStatus status;
  {
    std::lock_guard lock(mutex_);
    status_.state = state;
    status_.detail = detail;
    status = status_;
    on_state = on_state_;
  }
  if (on_state) on_state(status);
}

void FakeEngine::set_context(int32_t max_model_len) {
  std::lock_guard lock(mutex_);
  status_.max_model_len = max_model_len;
}

void FakeEngine::set_rates(double prompt_token_seconds, double decode_step_seconds) {
  std::lock_guard lock(mutex_);
  status_.prompt_token_seconds = prompt_token_seconds;
  status_.decode_step_seconds = decode_step_seconds;
}

void FakeEngine::pause(bool paused) {
  std::lock_guard lock(mutex_);
  paused_ = paused;
  changed_.notify_all();
}

void FakeEngine::fail_all(const std::string& error) {
  std::lock_guard lock(mutex_);
  error_ = error;
  changed_.notify_all();
}

std::vector<Request> FakeEngine::submitted() const {
  std::lock_guard lock(mutex_);
  return submitted_;
}

size_t FakeEngine::live() const {
  std::lock_guard lock(mutex_);
  return live_.size();
}

bool FakeEngine::wait_idle() {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(10), [this] { return live_.empty(); });
}

bool FakeEngine::step(Live* live, TokenEvent* event) {
  event->id = live->request.id;
  if (live->cancelled) {
    event->finish_reason = FinishReason::kAbort;
    return true;
  }
  const SamplingParams& sampling = live->request.sampling;
  const bool ends =
      !live->answer.empty() && live->emitted == static_cast<int32_t>(live->answer.size());
  event->token = ends                   ? live->end_token
                 : live->answer.empty() ? live->request.tokens.back()
                                        : live->answer[live->emitted];
  event->cached_tokens = 1;
  ++live->emitted;
  if (sampling.num_logprobs >= 0) {
    TokenLogprobs logprobs;
    logprobs.logprob = -0.5f;
    for (int32_t i = 0; i < sampling.num_logprobs; ++i) {
      logprobs.top.emplace_back(*event->token + i, -0.5f - static_cast<float>(i));
    }
    event->logprobs = logprobs;
  }
  const std::vector<int32_t>& stops = sampling.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), *event->token) != stops.end() || ends) {
    event->finish_reason = FinishReason::kStop;
    event->matched_stop_token = event->token;
    return true;
  }
  if (live->emitted == sampling.max_tokens) {
    event->finish_reason = FinishReason::kLength;
    return true;
  }
  return false;
}

void FakeEngine::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (live_.empty() || (paused_ && error_.empty())) {
      changed_.wait(lock);
      continue;
    }
    ++steps_;
    std::vector<std::pair<std::function<void(const TokenEvent&)>, TokenEvent>> events;
    for (auto it = live_.begin(); it != live_.end();) {
      TokenEvent event;
      bool last = true;
      if (error_.empty()) {
        last = step(&it->second, &event);
      } else {
        event.id = it->first;
        event.finish_reason = FinishReason::kError;
        event.error = error_;
      }
      events.emplace_back(it->second.on_event, std::move(event));
      it = last ? live_.erase(it) : std::next(it);
    }
    error_.clear();
    lock.unlock();
    for (const auto& [on_event, event] : events) on_event(event);
    events.clear();
    std::this_thread::sleep_for(std::chrono::microseconds(200));  // a step takes time
    lock.lock();
    changed_.notify_all();
  }
}

}  // namespace shoal

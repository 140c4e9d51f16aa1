#include "runtime/engine/engine.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// While requests wait for files only. Pages of a megabyte take about that long to read.
constexpr std::chrono::milliseconds kLoadPoll{1};
// A working engine calls its sink at least so often, between steps.
constexpr std::chrono::seconds kSignOfLife{1};
// Between reports when the engine comes to rest: short requests that come one by one do not notice.
constexpr std::chrono::milliseconds kRestInterval{100};
// Between reports of the ranks: one costs all ranks a gather of some KB.
constexpr std::chrono::seconds kReportInterval{1};
// Of a new measurement in an average: as many steps or copies count as a change takes to show.
constexpr double kNewest = 0.2;

void average(double& mean, double value) {
  mean = mean == 0 ? value : (1 - kNewest) * mean + kNewest * value;
}

// What every rank does of a plan before its step. Collective where the plan asks: how many pages of
// the load all ranks have, -1 when some do not know yet.
int64_t do_pages(const StepPlan& plan, ProcessGroup& group, StepRunner& runner) {
  runner.move_pages(plan);
  return plan.ask == 0 ? -1 : group.min(runner.loaded(plan.ask));
}

// Collective where the plan asks for it; on rank 0 everybody's.
std::vector<RankReport> do_report(const StepPlan& plan, ProcessGroup& group, RankReport own) {
  if (group.size() == 1) return {std::move(own)};
  std::vector<RankReport> reports;
  for (const std::vector<std::byte>& bytes : group.gather(own.serialize())) {
    reports.push_back(RankReport::deserialize(bytes));
  }
  return reports;
}

RankReport report_of(const StepRunner& runner, const RankStats& counted) {
  RankReport report = runner.report();
  report.stats.steps = counted.steps;
  report.stats.step_seconds = counted.step_seconds;
  return report;
}

}  // namespace

Engine::Engine(EngineConfig config, ProcessGroup& group, StepRunner& runner, EventSink sink)
    : config_(std::move(config)),
      group_(group),
      runner_(runner),
      sink_(std::move(sink)),
      scheduler_(config_.scheduler) {
  SHOAL_CHECK(config_.vocab_size > 0, "vocab_size {}", config_.vocab_size);
  stats_.scheduler = scheduler_.stats();
}

void Engine::submit(Request request) {
  const std::lock_guard lock(mutex_);
  submitted_.push_back({std::move(request), Clock::now()});
  wake_.notify_one();
}

void Engine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
  wake_.notify_one();
}

void Engine::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_.notify_one();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Engine::run() {
  while (take_inbox()) turn();
  drain();
  std::vector<TokenEvent> events;
  for (RequestId id : scheduler_.ids()) {
    scheduler_.cancel(id);
    events.push_back({.id = id, .finish_reason = FinishReason::kAbort});
  }
  publish_stats(nullptr, 0, 0);
  emit(std::move(events));
  StepPlan shutdown;
  shutdown.number = last_step_ + 1;
  shutdown.kind = StepKind::kShutdown;
  broadcast(shutdown);
}

// Waits for work; false when it is time to stop.
bool Engine::take_inbox() {
  std::vector<Submitted> submitted;
  std::vector<RequestId> cancelled;
  bool stopping;
  {
    std::unique_lock lock(mutex_);
    const auto asked = [&] { return stopping_ || !submitted_.empty() || !cancelled_.empty(); };
    if (std::exchange(only_loading_, false)) {
      wake_.wait_for(lock, kLoadPoll, asked);
    } else {
      wake_.wait(lock, [&] { return asked() || running_ || scheduler_.has_work(); });
    }
    submitted = std::exchange(submitted_, {});
    cancelled = std::exchange(cancelled_, {});
    stopping = stopping_;
  }
  std::vector<TokenEvent> events;
  for (auto& [request, arrived] : submitted) {
    const RequestId id = request.id;
    try {
      check_token_ids(request);
      scheduler_.add(std::move(request));
      waiting_[id] = {arrived, std::nullopt};
    } catch (const InvalidInput& e) {
      events.push_back({.id = id, .finish_reason = FinishReason::kError, .error = e.what()});
    }
  }
  for (RequestId id : cancelled) {
    if (scheduler_.cancel(id)) events.push_back({.id = id, .finish_reason = FinishReason::kAbort});
    waiting_.erase(id);
  }
  if (!submitted.empty() || !cancelled.empty()) publish_stats(nullptr, 0, 0);
  emit(std::move(events));
  return !stopping;
}

void Engine::check_token_ids(const Request& request) const {
  const auto check = [&](const char* what, int32_t id) {
    if (id < 0 || id >= config_.vocab_size) {
      throw_invalid("{} {}: token ids are 0 to {}", what, id, config_.vocab_size - 1);
    }
  };
  for (int32_t id : request.tokens) check("prompt token", id);
  for (int32_t id : request.sampling.stop_token_ids) check("stop_token_ids", id);
  for (const auto& [id, bias] : request.sampling.logit_bias) check("logit_bias", id);
}

ExpertExchange Engine::exchange_for(int64_t num_tokens) const {
  switch (config_.exchange) {
    case ExchangePolicy::kReplicated: return ExpertExchange::kReplicated;
    case ExchangePolicy::kAllToAll: return ExpertExchange::kAllToAll;
    case ExchangePolicy::kAuto: break;
  }
  return num_tokens >= config_.all_to_all_min_tokens ? ExpertExchange::kAllToAll
                                                     : ExpertExchange::kReplicated;
}

// One turn of the loop. With running_ from the turn before, this is where host work hides under it:
// from plan() to begin() the device is busy with that step, and from finish() on with this one.
void Engine::turn() {
  std::optional<StepPlan> plan = scheduler_.plan();
  // Rank 0 asks once it has read its own share: before that the answer is known.
  const uint64_t loading = scheduler_.loading();
  const bool ask = loading != 0 && runner_.loaded(loading) >= 0;
  if (!plan && ask) plan = StepPlan{.number = last_step_, .kind = StepKind::kPages};
  if (!plan) {
    only_loading_ = loading != 0 && !running_;
    return drain();
  }
  if (ask) plan->ask = loading;
  if (plan->kind == StepKind::kPages) {
    move_pages(*plan);
    publish_stats(nullptr, 0, 0);
    return drain();
  }
  plan->exchange = exchange_for(plan->num_tokens());
  plan->ahead = config_.async_scheduling && runner_.can_run_ahead(*plan, most_logprobs(*plan));
  // Tokens that are there must not wait for the end of this step.
  if (!plan->ahead) drain();
  const auto begun = Clock::now();
  last_step_ = plan->number;
  if (begun - last_report_ >= kReportInterval) {
    plan->report = true;
    last_report_ = begun;
  }
  begin_waiting(*plan);
  move_pages(*plan);
  runner_.begin(*plan);
  std::vector<TokenEvent> events;
  if (running_) events = finish();
  runner_.sample(sample_inputs(*plan));
  running_ = {std::move(*plan), begun};
  emit(std::move(events));
  if (!running_->plan.ahead) drain();
}

void Engine::begin_waiting(const StepPlan& plan) {
  if (waiting_.empty()) return;
  const auto now = Clock::now();
  for (const SequenceSlice& s : plan.slices) {
    if (s.absorbed) continue;  // of a generated token: it has begun long ago
    const auto it = waiting_.find(s.request);
    if (it == waiting_.end() || it->second.queue_seconds) continue;
    it->second.queue_seconds = std::chrono::duration<double>(now - it->second.arrived).count();
  }
}

void Engine::end_waiting(TokenEvent& event) {
  if (waiting_.empty()) return;
  const auto it = waiting_.find(event.id);
  if (it == waiting_.end()) return;
  event.queue_seconds = it->second.queue_seconds;
  waiting_.erase(it);
}

void Engine::publish_reports(const std::vector<RankReport>& reports) {
  balance_.update(reports);
  const std::lock_guard lock(mutex_);
  stats_.ranks.clear();
  for (const RankReport& report : reports) stats_.ranks.push_back(report.stats);
  stats_.experts = balance_.balance();
}

// Tells the ranks the plan, and does the work on pages that it begins with.
void Engine::move_pages(const StepPlan& plan) {
  broadcast(plan);
  const int64_t there = do_pages(plan, group_, runner_);
  if (there >= 0) scheduler_.loaded(plan.ask, there);
  if (plan.report) publish_reports(do_report(plan, group_, report_of(runner_, own_)));
}

// What a page's copy takes, and a token that is run again: by the steps that are mostly prompt,
// because a recomputed sequence runs in such.
void Engine::measure(const StepPlan& plan, double seconds) {
  const StepRunner::CopyTimes times = runner_.copy_times();
  if (const int64_t pages = times.pages - copy_times_.pages; pages > 0) {
    average(page_copy_seconds_, (times.seconds - copy_times_.seconds) / static_cast<double>(pages));
    copy_times_ = times;
  }
  int64_t prompt_tokens = 0;
  for (const SequenceSlice& s : plan.slices) {
    if (!s.absorbed) prompt_tokens += static_cast<int64_t>(s.tokens.size());
  }
  if (2 * prompt_tokens >= plan.num_tokens()) {
    average(token_seconds_, seconds / static_cast<double>(plan.num_tokens()));
    // A small step takes nearly as long as a larger one, so it says nothing about many tokens.
    if (2 * plan.num_tokens() >= config_.scheduler.max_num_batched_tokens) {
      average(prompt_token_seconds_, seconds / static_cast<double>(plan.num_tokens()));
    }
  } else {
    average(decode_step_seconds_, seconds);
  }
  const TierConfig& tiers = config_.scheduler.tiers;
  scheduler_.set_costs(page_copy_seconds_ > 0 ? page_copy_seconds_ : tiers.page_copy_seconds,
                       token_seconds_ > 0 ? token_seconds_ : tiers.token_seconds);
}

void Engine::broadcast(const StepPlan& plan) {
  if (group_.size() == 1) return;
  std::vector<std::byte> message = plan.serialize();
  group_.broadcast(message);
}

// Collects and applies the running step.
std::vector<TokenEvent> Engine::finish() {
  std::vector<Scheduler::Sampled> sampled;
  for (SampleResult& result : runner_.collect()) {
    sampled.push_back({result.token, std::move(result.logprobs)});
  }
  const Running step = std::move(*running_);
  running_.reset();
  std::vector<TokenEvent> events = scheduler_.apply(step.plan, sampled);
  for (TokenEvent& event : events) end_waiting(event);
  const auto end = Clock::now();
  const auto start = std::max(step.begun, std::exchange(last_end_, end));
  const double seconds = std::chrono::duration<double>(end - start).count();
  ++own_.steps;
  own_.step_seconds += seconds;
  measure(step.plan, seconds);
  publish_stats(&step.plan, events.size(), seconds);
  return events;
}

// Ends the running step, if there is one, with no other behind it.
void Engine::drain() {
  if (!running_) return;
  if (running_->plan.ahead) {
    StepPlan idle;
    idle.number = last_step_;
    idle.kind = StepKind::kIdle;
    broadcast(idle);
  }
  std::vector<TokenEvent> events = finish();
  if (!scheduler_.has_work()) report_at_rest();
  emit(std::move(events));
}

// With the last events of a busy time, so that what is known of the ranks does not stay as it was up to a
// second before.
void Engine::report_at_rest() {
  const auto now = Clock::now();
  if (now - last_report_ < kRestInterval) return;
  last_report_ = now;
  StepPlan plan{.number = last_step_, .kind = StepKind::kPages};
  plan.report = true;
  move_pages(plan);
}

void Engine::emit(std::vector<TokenEvent> events) {
  // Steps without tokens (a long prompt in pieces) are signs of life, too.
  const auto now = Clock::now();
  if (events.empty() && now - last_emit_ < kSignOfLife) return;
  last_emit_ = now;
  sink_(std::move(events));
}

int32_t Engine::most_logprobs(const StepPlan& plan) const {
  int32_t most = -1;
  for (const SequenceSlice& slice : plan.slices) {
    if (slice.sample) {
      most = std::max(most, scheduler_.request(slice.request).sampling.num_logprobs);
    }
  }
  return most;
}

std::vector<SampleInput> Engine::sample_inputs(const StepPlan& plan) const {
  std::vector<SampleInput> inputs;
  for (const SequenceSlice& slice : plan.slices) {
    if (!slice.sample) continue;
    SampleInput& in = inputs.emplace_back();
    if (!scheduler_.awaits(slice.request, plan.number)) continue;
    const Request& request = scheduler_.request(slice.request);
    in.params = &request.sampling;
    in.tokens = scheduler_.tokens(slice.request);
    in.prompt_len = request.prompt_len;
    in.end_token_ids = request.sampling.stop_token_ids;
    if (!request.sampling.ignore_eos) {
      in.end_token_ids.insert(in.end_token_ids.end(), config_.scheduler.eos_token_ids.begin(),
                              config_.scheduler.eos_token_ids.end());
    }
  }
  return inputs;
}

void Engine::publish_stats(const StepPlan* plan, size_t num_sampled, double seconds) {
  int64_t prompt_tokens = 0;
  if (plan != nullptr) {
    for (const SequenceSlice& s : plan->slices) {
      if (!s.absorbed) prompt_tokens += static_cast<int64_t>(s.tokens.size());
    }
  }
  SchedulerStats scheduler = scheduler_.stats();
  const std::lock_guard lock(mutex_);
  stats_.scheduler = scheduler;
  if (plan == nullptr) return;
  stats_.steps = plan->number;
  stats_.offload = runner_.offload_stats();
  stats_.prompt_tokens += prompt_tokens;
  stats_.generated_tokens += static_cast<int64_t>(num_sampled);
  stats_.last_step_seconds = seconds;
  stats_.prompt_token_seconds = prompt_token_seconds_;
  stats_.decode_step_seconds = decode_step_seconds_;
  stats_.step_tokens.add(kStepTokenBounds, static_cast<double>(plan->num_tokens()));
  stats_.step_seconds.add(kStepSecondsBounds, seconds);
}

void run_worker(ProcessGroup& group, StepRunner& runner) {
  RankStats counted;
  for (;;) {
    std::vector<std::byte> message;
    group.broadcast(message);
    const StepPlan plan = StepPlan::deserialize(message);
    if (plan.kind == StepKind::kShutdown) return;
    do_pages(plan, group, runner);
    if (plan.report) do_report(plan, group, report_of(runner, counted));
    const auto begin = std::chrono::steady_clock::now();
    if (plan.kind == StepKind::kRun) runner.begin(plan);
    // While no plan comes this rank must find out for itself what went wrong with its last step.
    const bool only_report = plan.kind == StepKind::kPages && plan.report;
    if (!plan.ahead && !only_report) runner.wait();
    counted.steps += plan.kind == StepKind::kRun ? 1 : 0;
    counted.step_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
}

}  // namespace shoal

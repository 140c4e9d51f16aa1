#include "server/load/load_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using std::chrono::steady_clock;
using Duration = steady_clock::duration;

constexpr size_t kMaxSeconds = 7 * 86400;  // of the series of tokens: a week
constexpr std::chrono::milliseconds kTick{100};

double to_seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }
Duration from_seconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

double cpu_seconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + t.tv_usec * 1e-6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

}  // namespace

LoadRun::LoadRun(const BenchServeOptions& options, LoadClient& client, Workload& workload,
                 std::function<std::string(const std::vector<int32_t>&)> detokenize)
    : options_(options),
      client_(client),
      workload_(workload),
      detokenize_(std::move(detokenize)),
      tokens_(kMaxSeconds) {}

void LoadRun::warm_up(int count) {
  const int at_once = options_.max_concurrency > 0 ? options_.max_concurrency : count;
  std::string error;
  int running = 0, done = 0, sent = 0;
  std::unique_lock lock(mutex_);
  while (done < count) {
    while (sent < count && running < at_once) {
      Conversation conversation{.session = workload_.sample()};
      ++sent;
      ++running;
      lock.unlock();
      client_.start(
          next_call(&conversation), [](LoadTime, int32_t) {},
          [&](LoadAnswer answer) {
            std::lock_guard guard(mutex_);
            if (answer.code != 0) error = status_name(answer.code) + ": " + answer.error;
            --running;
            ++done;
            changed_.notify_all();
          });
      lock.lock();
    }
    changed_.wait(lock, [&] { return done == count || (sent < count && running < at_once); });
  }
  if (!error.empty()) throw_invalid("a warm-up request failed: {}", error);
}

LoadCall LoadRun::next_call(Conversation* c) const {
  const LoadTurn& turn = c->session.turns[c->turn];
  LoadCall call;
  if (detokenize_) {
    c->messages.emplace_back("user", detokenize_(turn.prompt));
    call.messages = c->messages;
  } else {
    c->history.insert(c->history.end(), turn.prompt.begin(), turn.prompt.end());
    call.prompt = c->history;
  }
  call.max_tokens = turn.output_len;
  call.ignore_eos = options_.ignore_eos;
  call.temperature = options_.temperature;
  call.seed = options_.seed + sent_;
  call.cancel_after = turn.cancel_after;
  call.deadline_seconds = turn.deadline_seconds;
  call.keep_answer = c->turn + 1 < c->session.turns.size();
  return call;
}

// `could_have`: when nothing but this client held the request back any more.
void LoadRun::send(std::shared_ptr<Conversation> conversation, LoadTime could_have) {
  const LoadCall call = next_call(conversation.get());
  ++sent_;
  ++running_;
  LoadOutcome outcome;
  const LoadTime now = steady_clock::now();
  outcome.lag = to_seconds(now - could_have);
  outcome.queued = to_seconds(could_have - conversation->due);
  outcome.start = to_seconds(now - begin_);
  outcome.asked_tokens = call.max_tokens;
  outcome.had_deadline = call.deadline_seconds > 0;
  record_.peak_concurrency = std::max(record_.peak_concurrency, running_);
  LoadSecond& at = second(outcome.start);
  ++at.sent;
  at.concurrency = std::max(at.concurrency, running_);
  client_.start(
      call,
      [this](LoadTime time, int32_t count) {
        const auto index = static_cast<size_t>(std::max(to_seconds(time - begin_), 0.0));
        tokens_[std::min(index, tokens_.size() - 1)].fetch_add(count, std::memory_order_relaxed);
      },
      [this, conversation, outcome](LoadAnswer answer) mutable {
        outcome.answer = std::move(answer);
        std::lock_guard lock(mutex_);
        finished_.push_back({std::move(conversation), std::move(outcome)});
        changed_.notify_one();
      });
}

// Keeps the outcome, and lines up the next turn.
void LoadRun::settle(Finished finished) {
  --running_;
  slot_free_ = steady_clock::now();
  LoadAnswer& answer = finished.outcome.answer;
  LoadSecond& at = second(finished.outcome.start + answer.ended);
  ++(answer.code == 0 ? at.completed : at.failed);
  Conversation& c = *finished.conversation;
  if (++c.turn < c.session.turns.size() && answer.code == 0) {
    c.history.insert(c.history.end(), answer.ids.begin(), answer.ids.end());
    if (detokenize_) c.messages.emplace_back("assistant", std::move(answer.text));
    c.due = slot_free_ + from_seconds(options_.turn_delay);
    due_.push(finished.conversation);
  }
  answer.ids = {};
  answer.text = {};
  record_.outcomes.push_back(std::move(finished.outcome));
}

LoadSecond& LoadRun::second(double at) {
  const size_t index = std::min(static_cast<size_t>(std::max(at, 0.0)), kMaxSeconds - 1);
  if (record_.seconds.size() <= index) {
    // A second in which nothing begins or ends has what runs through it.
    record_.seconds.resize(index + 1, LoadSecond{.concurrency = running_});
  }
  return record_.seconds[index];
}

LoadRecord LoadRun::run(const std::function<void(int64_t)>& progress,
                        const std::atomic<bool>& stop) {
  record_ = {};
  for (auto& count : tokens_) count.store(0, std::memory_order_relaxed);
  const double cpu = cpu_seconds();
  begin_ = slot_free_ = steady_clock::now();
  const LoadTime until =
      options_.duration > 0 ? begin_ + from_seconds(options_.duration) : LoadTime::max();
  LoadTime next_tick = begin_;
  std::optional<LoadSession> upcoming = workload_.next();
  bool sending = true;
  while (true) {
    LoadTime now = steady_clock::now();
    if (stop || now >= until) sending = false;
    LoadTime wake = next_tick;
    while (sending) {
      const bool free = options_.max_concurrency == 0 || running_ < options_.max_concurrency;
      if (!free) break;  // an answer will wake us
      const LoadTime arrival = upcoming ? begin_ + from_seconds(upcoming->at) : LoadTime::max();
      const LoadTime follow = due_.empty() ? LoadTime::max() : due_.top()->due;
      const LoadTime first = std::min(arrival, follow);
      if (first > now || first >= until) {
        wake = std::min(wake, first);
        break;
      }
      std::shared_ptr<Conversation> conversation;
      if (follow <= arrival) {
        conversation = due_.top();
        due_.pop();
      } else {
        conversation = std::make_shared<Conversation>();
        conversation->session = std::move(*upcoming);
        conversation->due = arrival;
        upcoming = workload_.next();
      }
      const LoadTime due = conversation->due;
      // With a limit, a request waits for a slot first: that is the limit's doing and not ours.
      send(std::move(conversation), options_.max_concurrency > 0 ? std::max(due, slot_free_) : due);
      now = steady_clock::now();
      if (stop || now >= until) sending = false;
      if (now >= next_tick) break;  // answers are settled, too, while many are sent
    }
    const bool more = sending && (upcoming || !due_.empty());
    if (running_ == 0 && !more) break;
    std::vector<Finished> finished;
    {
      std::unique_lock lock(mutex_);
      if (finished_.empty()) changed_.wait_until(lock, wake);
      finished.swap(finished_);
    }
    for (Finished& one : finished) settle(std::move(one));
    if (steady_clock::now() >= next_tick) {
      next_tick = steady_clock::now() + kTick;
      second(to_seconds(steady_clock::now() - begin_));
      if (progress) progress(static_cast<int64_t>(record_.outcomes.size()));
    }
  }
  double last = 0;
  for (const LoadOutcome& outcome : record_.outcomes)
    last = std::max(last, outcome.start + outcome.answer.ended);
  record_.duration = last;
  record_.cpu_seconds = cpu_seconds() - cpu;
  record_.interrupted = stop;
  for (size_t i = 0; i < record_.seconds.size(); ++i) record_.seconds[i].tokens = tokens_[i];
  return std::move(record_);
}

}  // namespace shoal

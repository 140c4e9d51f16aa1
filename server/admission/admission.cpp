#include "server/admission/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/base/error.h"

namespace shoal {
namespace {

using std::chrono::milliseconds;
using Seconds = std::chrono::duration<double>;

// A retry that comes sooner finds nothing changed; one that comes later than a minute may be told a later
// time then.
constexpr milliseconds kShortestHint{100}, kLongestHint{60'000};
constexpr milliseconds kUnknownHint{1000};

double burst_of(const Client& client) {
  return client.burst > 0 ? std::max(1.0, client.burst) : std::max(1.0, client.requests_per_second);
}

std::string seconds_text(milliseconds time) {
  return fmt::format("{:.1f} s", Seconds(time).count());
}

}  // namespace

Admission::Admission(AdmissionOptions options) : options_(std::move(options)) {}

// So many are alive when others wait for their place in the steps, or outside.
int64_t Admission::busy_from() const {
  if (options_.max_running == 0) return options_.max_sequences;
  return std::min(options_.max_running, options_.max_sequences);
}

milliseconds Admission::hint(double sequences, std::optional<double> per_second, Seconds after) {
  if (!per_second) return kUnknownHint;
  const Seconds longest = kLongestHint;
  const Seconds wait = *per_second > 0 ? after + Seconds(sequences / *per_second) : longest;
  return std::clamp(std::chrono::ceil<milliseconds>(std::min(wait, longest)), kShortestHint,
                    kLongestHint);
}

void Admission::check_client(const Ask& ask, Time now) {
  const Client& client = *ask.client;
  const auto known = clients_.find(client.id);
  if (client.max_sequences > 0) {
    const int64_t alive = known == clients_.end() ? 0 : known->second.sequences;
    if (ask.n > client.max_sequences) {
      throw_invalid("n is {}; this client may have {} sequences at once", ask.n,
                    client.max_sequences);
    }
    if (alive + ask.n > client.max_sequences) {
      std::optional<double> rate = finishes_.per_second(now);
      if (rate) *rate *= static_cast<double>(alive) / static_cast<double>(sequences_);
      const milliseconds retry =
          hint(static_cast<double>(alive + ask.n - client.max_sequences), rate);
      throw CallRefused(
          CallCode::kResourceExhausted,
          fmt::format("this client has {} sequences alive, the call asks for {} more, its limit is {}; "
                      "try again in {}",
                      alive, ask.n, client.max_sequences, seconds_text(retry)),
          Refusal::kClientSequences, retry);
    }
  }
  if (client.requests_per_second > 0) {
    const Seconds wait =
        clients_[client.id].bucket.wait(now, client.requests_per_second, burst_of(client));
    if (wait.count() > 0) {
      const milliseconds retry(static_cast<int64_t>(
          std::min(std::ceil(1000 * wait.count() - 1e-6), double{std::numeric_limits<int32_t>::max()})));
      throw CallRefused(CallCode::kResourceExhausted,
                        fmt::format("this client may make {:g} calls a second; try again in {}",
                                    client.requests_per_second, seconds_text(retry)),
                        Refusal::kClientRate, retry);
    }
  }
}

void Admission::check_queue(const Ask& ask, Time now) {
  if (ask.n > options_.max_sequences) {
    throw_invalid("n is {}; this server takes {} sequences at once (--max-queue)", ask.n,
                  options_.max_sequences);
  }
  const int64_t surplus = sequences_ + ask.n - options_.max_sequences;
  if (surplus <= 0) return;
  // Whoever was refused before comes back before: a place that comes free is promised once.
  const std::optional<double> rate = finishes_.per_second(now);
  milliseconds retry = hint(static_cast<double>(surplus), rate);
  if (rate && promised_ > now) retry = std::max(retry, hint(ask.n, rate, promised_ - now));
  if (rate) promised_ = now + retry;
  throw CallRefused(CallCode::kResourceExhausted,
                    fmt::format("the queue is full: {} sequences are alive, this call asks for {} more, "
                                "--max-queue is {}; try again in {}",
                                sequences_, ask.n, options_.max_sequences, seconds_text(retry)),
                    Refusal::kQueueFull, retry);
}

void Admission::check_deadline(const Ask& ask, Time now) const {
  if (!ask.seconds_left) return;
  const WaitingPrompts::Ahead ahead = waiting_.ahead_of(ask.priority, ask.client->id);
  FirstTokenInputs in;
  in.prompt_tokens_ahead = ahead.tokens;
  in.own_prompt_tokens = ask.prompt_tokens;
  in.hit_rate = ask.rates.hit_rate;
  in.prompt_token_seconds = ask.rates.prompt_token_seconds;
  in.decode_step_seconds = ask.rates.decode_step_seconds;
  in.running = started_ > 0;
  if (options_.max_running > 0) {
    in.finishes_per_second = finishes_.per_second(now);
    in.finishes_needed =
        std::max<int64_t>(0, ahead.sequences + 1 + started_ - options_.max_running);
  }
  if (!cannot_make_it(in, *ask.seconds_left)) return;
  if (*ask.seconds_left <= 0) {
    throw CallRefused(CallCode::kDeadlineExceeded, "the call's deadline passed before it began",
                      Refusal::kDeadline);
  }
  throw CallRefused(
      CallCode::kDeadlineExceeded,
      fmt::format("the call's deadline is in {:.3f} s, its first token could not come before {:.3f} s: "
                  "{} tokens of prompts are ahead of its {}, and {} sequences must end first",
                  *ask.seconds_left, least_seconds_to_first_token(in), in.prompt_tokens_ahead,
                  in.own_prompt_tokens, in.finishes_needed),
      Refusal::kDeadline);
}

Admission::Ticket Admission::admit(const Ask& ask) {
  Ticket ticket;
  ticket.place_ = std::make_unique<Ticket::Place>();
  Ticket::Place& place = *ticket.place_;
  place.client = ask.client->id;
  place.priority = ask.priority;
  place.samples.resize(static_cast<size_t>(ask.n), Ticket::Sample::kEnded);
  {
    const std::lock_guard lock(mutex_);
    const Time now = options_.now();
    check_client(ask, now);
    check_queue(ask, now);
    check_deadline(ask, now);
    ClientState& client = clients_[ask.client->id];
    if (ask.client->requests_per_second > 0) client.bucket.take();
    place.number = ++numbers_;
    waiting_.add(place.priority, place.client, place.number, ask.prompt_tokens, ask.n);
    std::ranges::fill(place.samples, Ticket::Sample::kWaiting);
    client.sequences += ask.n;
    sequences_ += ask.n;
    finishes_.set_busy(now, sequences_ >= busy_from());
  }
  ticket.admission_ = shared_from_this();
  return ticket;
}

void Admission::leave_waiting(Ticket::Place& place) {
  waiting_.prompt_done(place.priority, place.client, place.number);
  waiting_.sequence_left(place.priority, place.client);
}

void Admission::end_sample(Ticket::Place& place, Ticket::Sample& sample) {
  if (sample == Ticket::Sample::kEnded) return;
  if (sample == Ticket::Sample::kStarted) {
    --started_;
  } else {
    leave_waiting(place);
  }
  sample = Ticket::Sample::kEnded;
  const auto client = clients_.find(place.client);
  // What a client without sequences may be remembered for is its rate.
  if (--client->second.sequences == 0 && client->second.bucket.unused()) clients_.erase(client);
  --sequences_;
  const Time now = options_.now();
  finishes_.finished(now);
  finishes_.set_busy(now, sequences_ >= busy_from());
}

int64_t Admission::sequences() const {
  const std::lock_guard lock(mutex_);
  return sequences_;
}

bool Admission::idle() const {
  const std::lock_guard lock(mutex_);
  return sequences_ == 0 && started_ == 0 && waiting_.empty();
}

void Admission::Ticket::started(int32_t sample) {
  if (place_ == nullptr) return;
  const std::lock_guard lock(admission_->mutex_);
  Sample& state = place_->samples.at(static_cast<size_t>(sample));
  if (state != Sample::kWaiting) return;
  admission_->leave_waiting(*place_);
  state = Sample::kStarted;
  ++admission_->started_;
}

void Admission::Ticket::ended(int32_t sample) {
  if (place_ == nullptr) return;
  const std::lock_guard lock(admission_->mutex_);
  admission_->end_sample(*place_, place_->samples.at(static_cast<size_t>(sample)));
}

Admission::Ticket::~Ticket() {
  if (place_ == nullptr || admission_ == nullptr) return;
  const std::lock_guard lock(admission_->mutex_);
  for (Sample& sample : place_->samples) admission_->end_sample(*place_, sample);
}

}  // namespace shoal

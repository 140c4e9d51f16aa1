#include "server/load/workload.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/base/error.h"

namespace shoal {
namespace {

constexpr int64_t kDefaultPrompts = 1000;
// Conversations of a ShareGPT file that are tokenized; more requests use them again.
constexpr size_t kMaxConversations = 2000;

double parse_number(const std::string& flag, const std::string& text, const std::string& part) {
  char* end = nullptr;
  const double value = std::strtod(part.c_str(), &end);
  if (part.empty() || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw_invalid("{} {}: use milliseconds as 500, or 50:5000", flag, text);
  }
  return value;
}

void check(const BenchServeOptions& o) {
  if (o.input_len < 1) throw_invalid("--random-input-len {}: at least 1", o.input_len);
  if (o.output_len < 1) throw_invalid("--random-output-len {}: at least 1", o.output_len);
  if (!(o.range_ratio >= 0 && o.range_ratio < 1)) {
    throw_invalid("--random-range-ratio {}: from 0 to less than 1", o.range_ratio);
  }
  if (!(o.sigma > 0 && o.sigma <= 10))
    throw_invalid("--lognormal-sigma {}: more than 0, at most 10", o.sigma);
  if (o.prefix_len < 0) throw_invalid("--random-prefix-len {}: 0 or more", o.prefix_len);
  if (o.num_prefixes < 1) throw_invalid("--random-num-prefixes {}: at least 1", o.num_prefixes);
  if (o.turns < 1) throw_invalid("--num-turns {}: at least 1", o.turns);
  if (!(o.cancel_fraction >= 0 && o.cancel_fraction <= 1)) {
    throw_invalid("--cancel-fraction {}: from 0 to 1", o.cancel_fraction);
  }
  if (!(o.trace_speedup > 0)) throw_invalid("--trace-speedup {}: more than 0", o.trace_speedup);
  const bool file = o.dataset == "sharegpt" || o.dataset == "trace";
  if (!file && o.dataset != "random" && o.dataset != "lognormal") {
    throw_invalid("--dataset-name {}: use random, lognormal, sharegpt or trace", o.dataset);
  }
  if (file && o.dataset_path.empty())
    throw_invalid("--dataset-name {}: give its --dataset-path", o.dataset);
}

}  // namespace

std::pair<double, double> parse_deadline(const std::string& text) {
  if (text.empty()) return {0, 0};
  const std::string flag = "--deadline-ms";
  const size_t colon = text.find(':');
  const double low = parse_number(flag, text, text.substr(0, colon)) / 1000;
  if (colon == std::string::npos) return {low, low};
  const double high = parse_number(flag, text, text.substr(colon + 1)) / 1000;
  if (high < low) throw_invalid("{} {}: the second number is the larger one", flag, text);
  return {low, high};
}

Workload::Workload(const BenchServeOptions& options, Model model)
    : options_(options), model_(std::move(model)), arrivals_(options), random_(options.seed) {
  check(options_);
  if (model_.vocab_size < 1 || model_.context_length < 2) {
    throw_invalid(
        "the server has a context of {} tokens and a vocabulary of {}: nothing to ask there",
        model_.context_length, model_.vocab_size);
  }
  deadline_ = parse_deadline(options_.deadline_ms);
  limit_ = options_.num_prompts > 0 ? options_.num_prompts
           : options_.duration > 0  ? -1
                                    : kDefaultPrompts;
  if (options_.dataset == "trace") {
    trace_ = read_trace(options_.dataset_path);
    const auto lines = static_cast<int64_t>(trace_.size()) * options_.turns;
    limit_ = options_.num_prompts > 0 ? std::min(options_.num_prompts, lines) : lines;
  } else if (options_.dataset == "sharegpt") {
    std::vector<SharedConversation> all = read_sharegpt(options_.dataset_path);
    std::shuffle(all.begin(), all.end(), random_);
    const size_t wanted =
        limit_ < 0 ? kMaxConversations : std::min<size_t>(kMaxConversations, limit_);
    for (size_t i = 0; i < std::min(all.size(), wanted); ++i) {
      std::vector<LoadTurn> turns;
      for (const auto& exchange : all[i].exchanges) {
        if (static_cast<int>(turns.size()) == options_.turns) break;
        LoadTurn turn;
        turn.prompt = model_.tokenize(exchange.question);
        turn.output_len =
            std::max(static_cast<int32_t>(model_.tokenize(exchange.answer).size()), 1);
        turns.push_back(std::move(turn));
      }
      shared_.push_back(std::move(turns));
    }
  }
  for (int32_t i = 0; i < options_.num_prefixes && options_.prefix_len > 0; ++i) {
    prefixes_.push_back(draw_ids(random_, options_.prefix_len));
  }
}

std::optional<LoadSession> Workload::next() {
  if (limit_ >= 0 && made_ >= limit_) return std::nullopt;
  LoadSession session = make(random_, sessions_++);
  session.at = trace_.empty() ? arrivals_.next() : session.at / options_.trace_speedup;
  if (limit_ >= 0 && made_ + static_cast<int64_t>(session.turns.size()) > limit_) {
    session.turns.resize(limit_ - made_);
  }
  made_ += static_cast<int64_t>(session.turns.size());
  return session;
}

LoadSession Workload::sample() const {
  std::mt19937_64 random(~options_.seed);
  LoadSession session = make(random, 0);
  session.turns.resize(1);
  session.turns[0].cancel_after = -1;
  session.turns[0].deadline_seconds = 0;
  return session;
}

LoadSession Workload::make(std::mt19937_64& random, int64_t index) const {
  LoadSession session;
  if (!trace_.empty()) session.at = trace_[index].timestamp;
  if (!shared_.empty()) {
    session.turns = shared_[index % shared_.size()];
    for (LoadTurn& turn : session.turns) add_faults(random, &turn);
  } else {
    for (int turn = 0; turn < options_.turns; ++turn) {
      session.turns.push_back(make_turn(random, index, turn));
    }
  }
  if (!prefixes_.empty()) {
    const auto& prefix = prefixes_[index % prefixes_.size()];
    auto& prompt = session.turns[0].prompt;
    prompt.insert(prompt.begin(), prefix.begin(), prefix.end());
  }
  fit(&session);
  return session;
}

LoadTurn Workload::make_turn(std::mt19937_64& random, int64_t index, int turn) const {
  LoadTurn result;
  int32_t input = options_.input_len, output = options_.output_len;
  if (!trace_.empty() && turn == 0) {
    input = trace_[index].input_len;
    output = trace_[index].output_len;
  } else {
    input = draw_length(random, input);
    output = draw_length(random, output);
  }
  result.prompt = draw_ids(random, input);
  result.output_len = output;
  add_faults(random, &result);
  return result;
}

int32_t Workload::draw_length(std::mt19937_64& random, int32_t length) const {
  double drawn = length;
  if (options_.dataset == "lognormal") {
    // Of mean `length`: that of a lognormal distribution is exp(mu + sigma^2 / 2).
    const double mu = std::log(length) - options_.sigma * options_.sigma / 2;
    drawn = std::lognormal_distribution<double>(mu, options_.sigma)(random);
  } else if (options_.range_ratio > 0) {
    const double low = length * (1 - options_.range_ratio),
                 high = length * (1 + options_.range_ratio);
    drawn = static_cast<double>(std::uniform_int_distribution<int64_t>(
        static_cast<int64_t>(std::floor(low)), static_cast<int64_t>(std::ceil(high)))(random));
  }
  return static_cast<int32_t>(std::clamp(std::round(drawn), 1.0, 1e9));
}

std::vector<int32_t> Workload::draw_ids(std::mt19937_64& random, int32_t count) const {
  std::uniform_int_distribution<int32_t> draw(0, model_.vocab_size - 1);
  // What no context holds is cut before it is made.
  std::vector<int32_t> ids(std::min(count, model_.context_length));
  for (int32_t& id : ids) {
    do {
      id = draw(random);
    } while (model_.vocab_size > 16 &&
             std::find(model_.end_ids.begin(), model_.end_ids.end(), id) != model_.end_ids.end());
  }
  return ids;
}

void Workload::add_faults(std::mt19937_64& random, LoadTurn* turn) const {
  std::uniform_real_distribution<double> draw(0, 1);
  if (draw(random) < options_.cancel_fraction) {
    turn->cancel_after = static_cast<int32_t>(draw(random) * turn->output_len);
  }
  turn->deadline_seconds = deadline_.first + draw(random) * (deadline_.second - deadline_.first);
}

// A request that the context cannot hold would only be refused: first the answer is cut, then the
// question. Turns that the context has no room for are left out.
void Workload::fit(LoadSession* session) const {
  int64_t used = 0;
  const int64_t context = model_.context_length;
  for (size_t i = 0; i < session->turns.size(); ++i) {
    LoadTurn& turn = session->turns[i];
    const int64_t left = context - used;
    if (left < 2) {
      session->turns.resize(i);
      return;
    }
    if (static_cast<int64_t>(turn.prompt.size()) > left - 1) turn.prompt.resize(left - 1);
    turn.output_len = static_cast<int32_t>(
        std::min<int64_t>(turn.output_len, left - static_cast<int64_t>(turn.prompt.size())));
    used += static_cast<int64_t>(turn.prompt.size()) + turn.output_len;
  }
}

}  // namespace shoal

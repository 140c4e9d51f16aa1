// Workload: the conversations of a run, one after the other: when each begins, what it asks, how
// long the answers are, and which of its requests are cancelled or given a deadline. The same seed
// gives the same ones. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "server/load/arrivals.h"
#include "server/load/dataset.h"
#include "server/load/load_options.h"

namespace shoal {

struct LoadTurn {
  std::vector<int32_t> prompt;  // without what came before
  int32_t output_len = 0;
  int32_t cancel_after = -1;    // tokens; 0: at once; -1: never
  double deadline_seconds = 0;  // 0: none
};

struct LoadSession {
  double at = 0;  // seconds from the start of the run
  std::vector<LoadTurn> turns;
};

class Workload {
 public:
  // The model, as far as a workload has to know it.
  struct Model {
    int32_t vocab_size = 0, context_length = 0;
    std::vector<int32_t> end_ids;  // which a random prompt leaves out
    std::function<std::vector<int32_t>(const std::string&)> tokenize;  // of sharegpt
  };
  // Throws InvalidInput for options out of range and for a bad file.
  Workload(const BenchServeOptions& options, Model model);

  std::optional<LoadSession> next();  // nothing: that was all
  // A conversation like the first, for warming up; next() goes on as if it had not been asked.
  LoadSession sample() const;
  int64_t num_requests() const { return limit_; }  // in all; -1: without end

 private:
  LoadSession make(std::mt19937_64& random, int64_t index) const;
  LoadTurn make_turn(std::mt19937_64& random, int64_t index, int turn) const;
  int32_t draw_length(std::mt19937_64& random, int32_t length) const;
  std::vector<int32_t> draw_ids(std::mt19937_64& random, int32_t count) const;
  void add_faults(std::mt19937_64& random, LoadTurn* turn) const;
  void fit(LoadSession* session) const;

  const BenchServeOptions options_;
  const Model model_;
  std::pair<double, double> deadline_{0, 0};  // seconds
  std::vector<TraceEntry> trace_;
  std::vector<std::vector<LoadTurn>> shared_;   // of a ShareGPT file
  std::vector<std::vector<int32_t>> prefixes_;  // of the groups
  int64_t limit_ = -1, made_ = 0, sessions_ = 0;
  Arrivals arrivals_;
  std::mt19937_64 random_;
};

// "500" or "50:5000" of --deadline-ms, in seconds. Throws InvalidInput.
std::pair<double, double> parse_deadline(const std::string& text);

}  // namespace shoal

// StepPlan: what all ranks do in one step. Plain data made by rank 0 and broadcast; the other ranks
// only execute it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/cache/page_key.h"
#include "runtime/request/request.h"

namespace shoal {

// Consecutive tokens of one sequence that a step runs.
struct SequenceSlice {
  RequestId request = 0;
  int32_t dp_rank = 0;          // whose KV pages these are: always 0 without DP attention
  int32_t first_position = 0;   // of tokens[0]
  std::vector<int32_t> tokens;  // at least one
  std::vector<int32_t> pages;   // the sequence's pages, enough for first_position + tokens
  // Which form of attention: expanded for positions inside the prompt, absorbed for generated ones.
  // Chosen by position and not by batch, so that a token's bits do not depend on its neighbours; a
  // slice never crosses from one to the other.
  bool absorbed = false;
  bool sample = false;      // the slice ends the sequence so far: its last row's logits are needed
  bool all_logits = false;  // logits of every row (`shoal logits`)
  // >= 0: the one token, for which tokens[0] only keeps the place, is this one of the tokens that
  // the step before this one sampled (counted over its slices with `sample`), which only the
  // devices have.
  int32_t from_sample = -1;
};

// One page between the device and a slot of host memory.
struct PageCopy {
  int32_t dp_rank = 0;
  int32_t page = 0;
  int32_t slot = 0;
  bool to_host = false;
};

// One page between a slot of host memory and the KV checkpoint, in the background.
struct PageFile {
  enum class Kind : uint8_t { kSave, kLoad, kDrop } kind = Kind::kSave;
  int32_t dp_rank = 0;
  int32_t slot = 0;     // not of kDrop
  uint64_t ticket = 0;  // of kLoad: those of one ticket follow each other and are read in order
  PageKey key{};
};

// kIdle: there is no step to plan while the last one runs: the ranks wait for its end.
// kPages: no step, only the work on pages; `number` is the last step's.
enum class StepKind : uint8_t { kRun, kIdle, kShutdown, kPages };

// How the routed experts of this step are reached; the choice is rank 0's, by batch size.
enum class ExpertExchange : uint8_t { kReplicated, kAllToAll };

struct StepPlan {
  uint64_t number = 0;
  StepKind kind = StepKind::kRun;
  ExpertExchange exchange = ExpertExchange::kReplicated;
  bool ahead = false;  // rank 0 goes on to the next plan, or kIdle, before this step has ended
  // What is done before the step, in this order: saves (of slots filled by earlier plans), the
  // copies, one after the other in the device's order, then loads and drops are begun.
  std::vector<PageCopy> copies;
  std::vector<PageFile> files;
  // Not 0: after that the ranks take the minimum over what they have loaded of this ticket.
  uint64_t ask = 0;
  bool report = false;  // before the step the ranks tell rank 0 what they have done (RankReport)
  std::vector<SequenceSlice>
      slices;  // by dp_rank; absorbed ones first within a rank: the order of logits

  int64_t num_tokens() const {
    int64_t n = 0;
    for (const SequenceSlice& s : slices) n += static_cast<int64_t>(s.tokens.size());
    return n;
  }
  int64_t num_samples() const {
    int64_t n = 0;
    for (const SequenceSlice& s : slices) n += s.sample ? 1 : 0;
    return n;
  }
  std::vector<std::byte> serialize() const;
  // Length-checked; throws Bug when the bytes are not a plan.
  static StepPlan deserialize(std::span<const std::byte> bytes);
};

}  // namespace shoal

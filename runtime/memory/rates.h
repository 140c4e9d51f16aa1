// Rates: what bandwidth, arithmetic and links allow a plan at most. Limits, not promises: kernels reach
// 60 to 90 % of them (docs/performance.md). Formulas: docs/planning.md.
#pragma once

#include <string>

#include "runtime/memory/memory_plan.h"

namespace shoal {

// Time of one step on the slowest rank, by what it waits for.
struct StepTime {
  double memory_s = 0;       // reading weights and KV cache
  double compute_s = 0;      // multiplying
  double collectives_s = 0;  // bytes and latency
  double host_s = 0;         // experts off the device: computed by the CPU or streamed, read from disk
  // Memory and arithmetic overlap; the rest waits.
  double seconds() const { return std::max(memory_s, compute_s) + collectives_s + host_s; }
  // "memory bandwidth", "arithmetic", "collectives", "host memory": the largest.
  std::string limit() const;
};

struct Rate {
  double tokens_per_s = 0;
  StepTime time;
};

struct HostSpec {
  double gigabytes_per_s = 100;     // of memory, as the CPU's experts read it: eight channels of DDR4
  double gigaflops = 1000;          // of all cores, on decoded weights: see stream_min_rows()
  double disk_gigabytes_per_s = 3;  // of a file on one NVMe drive
};

// Bytes of experts off the device that a step of `tokens` tokens (of all ranks) uses on one rank, when the
// router is balanced: by the CPU or the link, and of those from files.
struct OffDeviceBytes {
  double used = 0, from_disk = 0;
};
OffDeviceBytes off_device_bytes(const ModelConfig& config, const RankPlan& rank, int64_t tokens);

// One token for each of `batch` sequences that have `context` tokens.
Rate decode_rate(Planner& planner, const MemoryPlan& plan, int64_t batch, int64_t context,
                 const HostSpec& host = {});
// Steps of max_num_batched_tokens tokens of prompts that have `context` tokens.
Rate prefill_rate(Planner& planner, const MemoryPlan& plan, int64_t context, const HostSpec& host = {});

}  // namespace shoal

#include "server/status_fields.h"

#include <algorithm>

#include "server/metrics/process_stats.h"

namespace shoal {

void fill_observed(const EngineStatus& engine, const RecentCalls::Quantiles& recent,
                   v1::GetStatusResponse* response) {
  response->set_ttft_p50_seconds(recent.ttft_p50);
  response->set_ttft_p90_seconds(recent.ttft_p90);
  response->set_tpot_p50_seconds(recent.tpot_p50);
  response->set_tpot_p90_seconds(recent.tpot_p90);
  response->set_last_step_seconds(engine.last_step_seconds);
  response->set_process_resident_bytes(process_stats().resident_bytes);
  // Before the first steps only the memory is known.
  for (size_t r = 0; r < std::max(engine.rank_stats.size(), engine.memory.size()); ++r) {
    v1::RankStatus& rank = *response->add_rank_status();
    if (r < engine.rank_stats.size()) {
      const RankStats& stats = engine.rank_stats[r];
      const auto bytes = [&](Traffic verb) {
        return static_cast<uint64_t>(stats.bytes_sent[static_cast<int>(verb)]);
      };
      rank.set_steps(stats.steps);
      rank.set_step_seconds(stats.step_seconds);
      rank.set_collective_seconds(stats.collective_seconds);
      rank.set_resident_bytes(stats.resident_bytes);
      rank.set_bytes_all_reduce(bytes(Traffic::kAllReduce));
      rank.set_bytes_all_gather(bytes(Traffic::kAllGather));
      rank.set_bytes_reduce_scatter(bytes(Traffic::kReduceScatter));
      rank.set_bytes_all_to_all(bytes(Traffic::kAllToAll));
      rank.set_bytes_gather(bytes(Traffic::kGather));
      rank.set_expert_rows(stats.expert_rows);
    }
    if (r >= engine.memory.size()) continue;
    for (const MemoryTaken& memory : engine.memory[r]) {
      if (memory.planned == 0 && memory.taken == 0) continue;
      v1::MemoryUseStatus& use = *rank.add_memory();
      use.set_use(memory.use);
      use.set_planned_bytes(memory.planned);
      use.set_taken_bytes(memory.taken);
    }
  }
  v1::ExpertStatus& experts = *response->mutable_experts();
  experts.set_mean_imbalance(engine.experts.mean_imbalance);
  experts.set_worst_imbalance(engine.experts.worst_imbalance);
  experts.set_worst_layer(engine.experts.worst_layer);
  experts.set_rank_imbalance(engine.experts.rank_imbalance);
  experts.set_idle_experts(engine.experts.idle_experts);
}

}  // namespace shoal

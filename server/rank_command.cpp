#include "server/rank_command.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/backend.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/kv_tiers.h"
#include "runtime/engine/loader.h"
#include "server/engine_service.h"

namespace shoal {
namespace {

// A wrong flag or file is wrong on every rank, most of the time. The others let rank 0 say it first;
// its end is theirs, so that the user reads one line and not one of each rank.
constexpr std::chrono::seconds kRankZeroFirst{2};

ExchangePolicy parse_exchange(const std::string& value) {
  if (value == "auto") return ExchangePolicy::kAuto;
  if (value == "replicated") return ExchangePolicy::kReplicated;
  if (value == "all-to-all") return ExchangePolicy::kAllToAll;
  throw_invalid("--expert-exchange {}: use auto, replicated or all-to-all", value);
}

LoadOptions load_options(const EngineOptions& o) {
  LoadOptions load;
  load.model_dir = resolve_model_dir(o.model, o.revision);
  load.load_format = o.load_format;
  load.dtype = o.dtype;
  load.kv_cache_dtype = o.kv_cache_dtype;
  load.quantization = o.quantization;
  load.dp_attention = o.dp_attention;
  load.page_size = o.page_size;
  load.max_model_len = o.max_model_len;
  load.max_num_seqs = o.max_num_seqs;
  load.kv_cache_tokens = o.kv_cache_tokens;
  load.kv_cache_memory_bytes = o.kv_cache_memory_bytes;
  load.gpu_memory_utilization = o.gpu_memory_utilization;
  load.gpu_memory_limit = o.gpu_memory_limit;
  load.expert_offload = o.expert_offload;
  load.num_gpu_experts = o.num_gpu_experts;
  load.host_memory = o.host_memory;
  load.enforce_eager = o.enforce_eager;
  load.max_num_batched_tokens = o.max_num_batched_tokens;
  return load;
}

TierOptions tier_options(const EngineOptions& o) {
  return {.swap_space = o.swap_space,
          .preemption_mode = o.preemption_mode,
          .kv_checkpoint_dir = o.kv_checkpoint_dir,
          .kv_checkpoint_size = o.kv_checkpoint_size,
          .enable_prefix_caching = o.enable_prefix_caching};
}

EngineConfig engine_config(const EngineOptions& o, const RankRuntime& rank,
                           const LoadedModel& model) {
  EngineConfig config;
  config.vocab_size = static_cast<int32_t>(model.config.vocab_size);
  config.exchange = parse_exchange(o.expert_exchange);
  config.async_scheduling = o.async_scheduling;
  SchedulerConfig& s = config.scheduler;
  s.max_num_seqs = o.max_num_seqs;
  s.max_num_batched_tokens = o.max_num_batched_tokens;
  s.max_model_len = static_cast<int32_t>(model.max_model_len);
  s.page_size = model.runner->page_size();
  s.num_pages = model.runner->num_pages();
  s.num_pools = o.dp_attention ? rank.size() : 1;
  s.enable_prefix_caching = o.enable_prefix_caching;
  s.eos_token_ids = model.config.eos_token_ids;
  return config;
}

// What rank 0 says of all ranks. Collective; the others' result is nothing.
EngineReady gather_ready(RankRuntime& rank, const LoadedModel& model) {
  struct {
    uint64_t weight_bytes, kv_cache_bytes;
    uint64_t planned[kNumMemoryUses], taken[kNumMemoryUses];
  } held = {model.source->bytes_held(), static_cast<uint64_t>(model.runner->kv_cache_bytes()), {}, {}};
  const RankPlan& plan = model.plan.ranks.front();
  for (int use = 0; use < kNumMemoryUses; ++use) {
    held.planned[use] = plan.of(static_cast<MemoryUse>(use));
    held.taken[use] = rank.device().ledger().peak(static_cast<MemoryUse>(use));
  }
  if (model.experts) {
    held.weight_bytes += plan.weights.of(TensorKind::kRoutedExperts) - plan.experts_on_disk;
  }
  const std::string description = rank.description();
  std::vector<std::byte> message(sizeof held + description.size());
  std::memcpy(message.data(), &held, sizeof held);
  std::memcpy(message.data() + sizeof held, description.data(), description.size());
  EngineReady ready;
  for (const std::vector<std::byte>& m : rank.group().gather(message)) {
    SHOAL_CHECK(m.size() >= sizeof held);
    std::memcpy(&held, m.data(), sizeof held);
    ready.weight_bytes += held.weight_bytes;
    ready.kv_cache_bytes += held.kv_cache_bytes;
    std::vector<EngineReady::Memory>& memory = ready.memory.emplace_back();
    for (int use = 0; use < kNumMemoryUses; ++use) {
      memory.push_back({std::string(memory_use_name(static_cast<MemoryUse>(use))), held.planned[use],
                        held.taken[use]});
    }
    ready.ranks.emplace_back(reinterpret_cast<const char*>(m.data()) + sizeof held,
                             m.size() - sizeof held);
  }
  return ready;
}

void log_memory(RankRuntime& rank, const LoadedModel& model) {
  for (const std::string& line : memory_lines(model.plan, rank.device())) spdlog::info("{}", line);
}

void run_rank_zero(const EngineOptions& options, RankRuntime& rank, EngineService& service) {
  auto directory = open_kv_checkpoint(tier_options(options), rank);
  LoadOptions load = load_options(options);
  load.swap_bytes = swap_bytes(tier_options(options), rank);
  const auto model = load_model(rank, load,
                                [&](uint64_t read, uint64_t total) { service.loading(read, total); });
  TierConfig tiers = attach_tiers(tier_options(options), rank, *model, options.quantization,
                                  std::move(directory));
  EngineReady ready = gather_ready(rank, *model);
  log_memory(rank, *model);
  EngineConfig config = engine_config(options, rank, *model);
  config.scheduler.tiers = std::move(tiers);
  ready.world_size = rank.size();
  ready.max_model_len = static_cast<int32_t>(model->max_model_len);
  ready.kv_tokens =
      int64_t{config.scheduler.num_pools} * config.scheduler.num_pages * config.scheduler.page_size;
  ready.load_seconds = model->load_seconds;
  Engine* self = nullptr;
  Engine engine(config, rank.group(), *model->runner, [&](std::vector<TokenEvent> events) {
    service.emit(std::move(events), self->stats());
  });
  self = &engine;
  // However run() ends, the service must not call an engine that is gone.
  struct Release {
    EngineService& service;
    ~Release() { service.release(); }
  } release{service};
  service.serve(engine, ready);
  engine.run();
}

void run_other_rank(const EngineOptions& options, RankRuntime& rank) {
  auto directory = open_kv_checkpoint(tier_options(options), rank);
  LoadOptions load = load_options(options);
  load.swap_bytes = swap_bytes(tier_options(options), rank);
  const auto model = load_model(rank, load);
  attach_tiers(tier_options(options), rank, *model, options.quantization, std::move(directory));
  gather_ready(rank, *model);
  log_memory(rank, *model);
  run_worker(rank.group(), *model->runner);
}

}  // namespace

int run_rank(const EngineOptions& options, const std::string& socket_path) {
  // The end of what started this rank (mpirun, or the front end) is its end.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // One letter for the level, as the front end's log reads it.
  spdlog::set_pattern("%L %v");
  RankRuntime rank({.device = options.device,
                    .gemm_cache = options.gemm_cache,
                    .num_threads = options.threads_per_rank});
  spdlog::set_pattern(fmt::format("%L rank {}: %v", rank.rank()));
  if (rank.size() != options.tensor_parallel_size) {
    throw_invalid("--tensor-parallel-size {}: started as {} ranks", options.tensor_parallel_size,
                  rank.size());
  }
  std::unique_ptr<EngineService> service;
  try {
    if (rank.rank() == 0) {
      service = std::make_unique<EngineService>(socket_path);
      run_rank_zero(options, rank, *service);
    } else {
      run_other_rank(options, rank);
    }
  } catch (const InvalidInput& error) {
    if (service) {
      service->failed(error.what(), /*invalid_input=*/true);
    } else {
      std::this_thread::sleep_for(kRankZeroFirst);
    }
    throw;
  } catch (const std::exception& error) {
    if (service) service->failed(error.what(), /*invalid_input=*/false);
    // The others may be inside a collective that will never end.
    if (rank.size() > 1) rank.group().abort(error.what());
    throw;
  }
  return 0;
}

}  // namespace shoal

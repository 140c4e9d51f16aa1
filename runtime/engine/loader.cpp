#include "runtime/engine/loader.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include <spdlog/spdlog.h>

#include "runtime/memory/advice.h"
#include "runtime/quantization/dummy_checkpoint.h"
#include "runtime/quantization/quantized_weight.h"

namespace shoal {
namespace {

// Allocated in a step, when everything has its size: what is smaller is a list of a request's own.
constexpr size_t kLateBytes = size_t{1} << 20;

DType parse_dtype(const std::string& value, DType automatic) {
  if (value == "auto") return automatic;
  if (value == "float32") return DType::kF32;
  if (value == "bfloat16") return DType::kBF16;
  throw_invalid("--dtype {}: use auto, float32 or bfloat16", value);
}

PlanOptions plan_options(const LoadOptions& o, const LoadedModel& m) {
  PlanOptions plan;
  plan.ranks = m.layout.size;
  plan.dp_attention = m.layout.dp_attention;
  plan.overlap_min_tokens = m.layout.overlap_min_tokens;
  plan.dtype = m.dtype;
  plan.kv_cache_dtype = o.kv_cache_dtype;
  plan.page_size = o.page_size;
  plan.max_model_len = o.max_model_len;
  plan.max_num_seqs = o.max_num_seqs;
  if (o.max_num_batched_tokens > 0) plan.max_num_batched_tokens = o.max_num_batched_tokens;
  plan.kv_cache_tokens = o.kv_cache_tokens;
  plan.kv_cache_memory_bytes = o.kv_cache_memory_bytes;
  plan.swap_bytes = o.swap_bytes;
  plan.with_mtp = o.load_mtp && m.config.num_nextn_predict_layers > 0;
  plan.all_logits = o.all_logits;
  plan.graphs = !o.enforce_eager;
  return plan;
}

PlanBudget plan_budget(const LoadOptions& o, RankRuntime& rank) {
  Device& device = rank.device();
  const auto [available, total] = device.memory_info();
  if (!o.gpu_memory_limit.empty()) {
    return {.bytes = parse_memory_limit(o.gpu_memory_limit, total, device.name())};
  }
  if (rank.on_cpu()) {
    // Pages that leave the KV cache go to the same memory.
    const uint64_t free = available + device.ledger().current_total(), swap = o.swap_bytes * rank.size();
    return cpu_budget(free > swap ? free - swap : 0, rank.size());
  }
  // What other processes and the libraries hold, and what this rank already has of its plan, are not free.
  const size_t taken = total - available, own = std::min(taken, device.ledger().current_total());
  return {.bytes = static_cast<uint64_t>(o.gpu_memory_utilization * static_cast<double>(total)),
          .driver = taken - own};
}

// Of host memory for experts, on this node.
uint64_t host_budget(const LoadOptions& o, RankRuntime& rank, const PlanBudget& device) {
  const auto [available, total] = rank.host_device().memory_info();
  if (!o.host_memory.empty()) {
    const uint64_t bytes = parse_size("--host-memory", o.host_memory);
    if (bytes > total) {
      throw_invalid("--host-memory {}: this machine has {}", o.host_memory, gib_text(total));
    }
    return bytes;
  }
  // The rest is for other processes, and for the page cache that files are read through.
  constexpr double kShare = 0.9;
  const auto free = static_cast<uint64_t>(kShare * static_cast<double>(available));
  // On the CPU a limit sets apart what plays the device; without one all of it is the same memory.
  const bool apart = rank.on_cpu() && !o.gpu_memory_limit.empty();
  const uint64_t taken = apart ? device.bytes * rank.size() : 0;
  return free > taken ? free - taken : 1;
}

// What the first rank that has a complaint says, on all ranks; empty: none has.
std::string first_complaint(ProcessGroup& group, const std::string& mine) {
  std::vector<std::byte> message;
  for (const auto& complaint : group.gather(std::as_bytes(std::span(mine.data(), mine.size())))) {
    if (message.empty()) message = complaint;
  }
  group.broadcast(message);
  return {reinterpret_cast<const char*>(message.data()), message.size()};
}

std::string refusal(const LoadOptions& o, Planner& planner, const MemoryPlan& plan) {
  const std::vector<Advice> advice = advise(planner, {.options = plan.options,
                                                      .budget = plan.budget,
                                                      .gpus = plan.options.ranks,
                                                      .utilization = o.gpu_memory_utilization,
                                                      .may_quantise = o.quantization == "none",
                                                      .may_offload = o.expert_offload == "off"});
  std::string text = fmt::format("{} does not fit: {}", o.model_dir, plan.obstacle);
  if (advice.empty()) return text + "; no single change makes it fit (shoal plan)";
  text += "; what does: ";
  for (size_t i = 0; i < advice.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", or ", join_flags(advice[i].flags));
  }
  return text;
}

// Sets plan, max_model_len and num_pages.
void plan_memory(const LoadOptions& options, RankRuntime& rank, LoadedModel& m) {
  DeviceSpec device;
  device.name = rank.device().name();
  device.on_gpu = !rank.on_cpu();
  if (device.on_gpu) device.gpu = rank.gpu_traits();
  Planner planner(m.config, forms_of_checkpoint(m.checkpoint, m.dtype), device);
  if (options.expert_offload == "off" && options.num_gpu_experts >= 0) {
    throw_invalid("--num-gpu-experts {}: the others need a home: give --expert-offload auto",
                  options.num_gpu_experts);
  }
  PlanOptions planned = plan_options(options, m);
  PlanBudget budget = plan_budget(options, rank);
  budget.host = host_budget(options, rank, budget);
  m.plan = planner.plan_rank(planned, budget, rank.rank());
  if (options.expert_offload != "off" && m.config.n_routed_experts > 0) {
    planned.offload_mode = parse_offload_mode(options.expert_offload);
    planned.num_device_experts = options.num_gpu_experts;
    // All ranks or none: steps of one are recorded and run ahead of only if the others' are.
    if (rank.group().min(m.plan.fits && options.num_gpu_experts < 0 ? 1 : 0) == 0) {
      planned.experts = ExpertHome::kDisk;
      m.plan = planner.plan_rank(planned, budget, rank.rank());
    }
  }
  const int64_t page = options.page_size, pages = rank.group().min(m.plan.num_pages);
  const bool asked = options.kv_cache_tokens > 0 || options.kv_cache_memory_bytes > 0;
  if (asked && pages < 1) throw_invalid("--kv-cache-memory: too small for one page of {} tokens", page);
  if (asked && options.max_model_len > pages * page) {
    const int64_t per_token = m.plan.kv_bytes_per_token;
    throw_invalid("--max-model-len {}: the KV cache holds {} tokens ({} bytes a token); give "
                  "--kv-cache-memory {} or more, or a smaller --max-model-len",
                  options.max_model_len, pages * page, per_token, per_token * options.max_model_len);
  }
  planner.settle(m.plan, pages);
  const std::string complaint =
      first_complaint(rank.group(), m.plan.fits ? "" : refusal(options, planner, m.plan));
  if (!complaint.empty()) throw InvalidInput(complaint);
  m.num_pages = static_cast<int32_t>(pages);
  m.max_model_len = m.plan.max_model_len;
}

OffloadConfig offload_config(const LoadedModel& m, const RankRuntime& rank) {
  OffloadConfig config;
  const RankPlan& plan = m.plan.ranks.front();
  config.mode = m.plan.options.offload_mode;
  config.counts = plan.experts;
  for (int64_t i = 0; i < m.config.num_hidden_layers; ++i) config.layers += m.config.is_moe_layer(i);
  config.slot_bytes = plan.expert_slot;
  config.hidden = m.config.hidden_size;
  config.inner = m.config.moe_intermediate_size;
  config.experts = split_evenly(m.config.n_routed_experts, m.layout.size)[m.layout.rank];
  // PCIe 4.0 x16, of what most machines have at least. To the CPU itself nothing is faster than its memory.
  constexpr double kLinkGigabytes = 25;
  config.link_gigabytes_per_s = rank.on_cpu() ? 0 : kLinkGigabytes;
  config.cpu_threads = rank.num_threads();
  return config;
}

// The pieces that the steps take their memory from, in the sizes planned.
void make_workspace(RankRuntime& rank, const StepMemory& step) {
  Workspace& workspace = rank.workspace();
  workspace.reset();
  workspace.reserve(step.workspace);
  if (step.aside > 0) {
    workspace.aside().reset();
    workspace.aside().reserve(step.aside);
  }
  rank.collectives().reserve(step.communication);
}

void record_graphs(const LoadOptions& options, const RankRuntime& rank, LoadedModel& m) {
  const auto start = std::chrono::steady_clock::now();
  int graphs = 0;
  const bool recorded = m.runner->record_graphs(
      options.max_num_seqs, m.max_model_len, [&](int done, int all) {
        graphs = all;
        if (rank.rank() == 0 && (done % 8 == 1 || done == all)) {
          spdlog::info("recording CUDA graphs: {} of {}", done, all);
        }
      });
  if (!recorded || rank.rank() != 0) return;
  spdlog::info("recorded {} CUDA graphs for decode steps of 1 to {} sequences in {:.1f} s", graphs,
               decode_buckets(options.max_num_seqs).back(),
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace

std::unique_ptr<LoadedModel> load_model(
    RankRuntime& rank, const LoadOptions& options,
    const std::function<void(uint64_t, uint64_t)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  auto m = std::make_unique<LoadedModel>();
  m->config = read_model_config(options.model_dir);
  m->layout = {rank.rank(), rank.size(), options.dp_attention, options.overlap_min_tokens};
  m->dtype = parse_dtype(options.dtype,
                         m->config.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16);
  m->kv_dtype = parse_kv_cache_dtype(options.kv_cache_dtype, m->dtype);
  m->checkpoint = open_checkpoint_as(options.load_format, options.model_dir, options.quantization);
  rank.device().ledger().expect_no_more(SIZE_MAX);
  plan_memory(options, rank, *m);
  const uint64_t total = m->checkpoint->total_bytes() / rank.size();
  make_workspace(rank, m->plan.ranks.front().step);

  m->source = std::make_unique<CheckpointSource>(
      *m->checkpoint, rank.device(), m->dtype, [&](uint64_t bytes) {
        if (progress) progress(std::min(bytes, total), total);
      });
  ExecContext ctx = rank.exec(m->dtype);
  {
    const MemoryScope scope(rank.device(), MemoryUse::kWeights);
    if (m->plan.options.experts != ExpertHome::kDevice) {
      m->experts = std::make_unique<ExpertStore>(offload_config(*m, rank), *m->source, rank.device(),
                                                 rank.host_device(), rank.host_ops());
    }
    m->model = make_model(m->config, m->layout,
                          {m->dtype, m->max_model_len, options.load_mtp, m->experts.get(),
                           /*count_experts=*/rank.on_cpu()},
                          *m->source, ctx);
  }
  check_all_used(*m->source, m->config);
  if (const size_t kept = matrices_kept(*m->checkpoint); kept > 0 && rank.rank() == 0) {
    spdlog::info("--quantization {}: {} matrices are quantised already, to no more bits, and stay as they are",
                 options.quantization, kept);
  }
  m->runner = std::make_unique<ModelRunner>(rank, *m->model, m->layout, m->dtype, m->kv_dtype,
                                            options.page_size, m->num_pages);
  m->runner->set_offload(m->experts.get());
  if (options.warm_up && options.max_num_batched_tokens > 0 && !rank.on_cpu()) {
    m->runner->warm_up(options.max_num_batched_tokens, options.max_num_seqs, m->max_model_len);
  }
  if (!options.enforce_eager && !m->experts) record_graphs(options, rank, *m);
  if (m->experts) m->experts->restart();
  rank.device().ledger().expect_no_more(kLateBytes);
  rank.ops().end_warm_up();
  rank.group().barrier();
  m->source->end_progress();
  if (progress) progress(total, total);
  m->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return m;
}

std::vector<std::string> memory_lines(const MemoryPlan& plan, Device& device) {
  const RankPlan& rank = plan.ranks.front();
  const MemoryLedger& ledger = device.ledger();
  std::vector<std::string> lines;
  for (int i = 0; i < kNumMemoryUses; ++i) {
    const auto use = static_cast<MemoryUse>(i);
    if (rank.of(use) == 0 && ledger.peak(use) == 0) continue;
    lines.push_back(fmt::format("{}: {} planned, {} taken", memory_use_name(use), gib_text(rank.of(use)),
                                gib_text(ledger.peak(use))));
  }
  lines.push_back(fmt::format("all of it: {} planned, {} taken, {} is the budget", gib_text(rank.planned()),
                              gib_text(ledger.peak_total()), gib_text(plan.budget.bytes)));
  if (rank.swap > 0) {
    lines.push_back(fmt::format("host memory for KV pages: {} planned", gib_text(rank.swap)));
  }
  if (plan.options.experts != ExpertHome::kDevice) {
    lines.push_back(fmt::format(
        "routed experts: {} on the device, {} in host memory ({}), {} on disk ({}); steps are not recorded as "
        "graphs, nor run ahead of",
        rank.experts.device, rank.experts.host, gib_text(rank.experts_on_host), rank.experts.disk,
        gib_text(rank.experts_on_disk)));
  }
  return lines;
}

}  // namespace shoal

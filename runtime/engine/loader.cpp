#include "runtime/engine/loader.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include <spdlog/spdlog.h>

#include "runtime/model/gqa_attention.h"
#include "runtime/model/decoder.h"

namespace shoal {
namespace {

DType parse_dtype(const std::string& flag, const std::string& value, DType automatic) {
  if (value == "auto") return automatic;
  if (value == "float32") return DType::kF32;
  if (value == "bfloat16") return DType::kBF16;
  throw_invalid("{} {}: use auto, float32 or bfloat16", flag, value);
}

// What the KV cache gets when nobody says.
int64_t default_kv_bytes(const LoadOptions& options, const RankRuntime& rank, int64_t weight_bytes) {
  const auto [available, total] = rank.device().memory_info();
  if (rank.on_cpu()) {
    constexpr int64_t kMost = int64_t{4} << 30;
    return std::min(kMost, static_cast<int64_t>(available) / rank.size() / 4);
  }
  // Activations of a step of some thousand tokens, partial sums, cuBLASLt's and NCCL's buffers, graphs.
  constexpr int64_t kReserve = int64_t{2} << 30;
  const auto held_by_others = static_cast<int64_t>(total - available);
  const int64_t bytes = static_cast<int64_t>(options.gpu_memory_utilization * total) -
                        held_by_others - weight_bytes - kReserve;
  if (bytes <= 0) {
    throw_invalid("--gpu-memory-utilization {}: {} has {} bytes free of {}; this rank's weights ({}) and "
                  "workspace ({}) leave nothing for the KV cache; use more ranks, or a smaller model",
                  options.gpu_memory_utilization, rank.device().name(), available, total, weight_bytes,
                  kReserve);
  }
  return bytes;
}

// Sets max_model_len and num_pages.
void size_kv_cache(const LoadOptions& options, RankRuntime& rank, int64_t weight_bytes,
                   LoadedModel& m) {
  const int64_t page = options.page_size;
  if (page <= 0 || page > 1024) throw_invalid("--block-size {}: use 1 to 1024", page);
  const int64_t model_len = m.config.max_position_embeddings;
  if (options.max_model_len > model_len) {
    throw_invalid("--max-model-len {}: the model's max_position_embeddings is {}",
                  options.max_model_len, model_len);
  }
  const int64_t wanted_len = options.max_model_len > 0 ? options.max_model_len : model_len;
  const bool mtp = options.load_mtp && m.config.num_nextn_predict_layers > 0;
  const KvCacheLayout kv(m.config, local_kv_heads(m.config, m.layout),
                         m.config.num_hidden_layers + (mtp ? 1 : 0), m.kv_dtype, options.page_size);
  const int64_t per_token = kv.bytes_per_token();
  int64_t tokens = options.kv_cache_tokens;
  if (tokens <= 0) {
    const int64_t bytes = options.kv_cache_memory_bytes > 0
                              ? options.kv_cache_memory_bytes
                              : default_kv_bytes(options, rank, weight_bytes);
    // More than every sequence at its longest would never be used.
    const int64_t most = options.max_num_seqs * ((wanted_len + page - 1) / page * page);
    tokens = std::min(bytes / per_token, most);
  }
  const int64_t pages = rank.group().min(
      std::min<int64_t>((tokens + page - 1) / page, std::numeric_limits<int32_t>::max() / page));
  if (pages < 1) throw_invalid("--kv-cache-memory: too small for one page of {} tokens", page);
  m.num_pages = static_cast<int32_t>(pages);
  if (options.max_model_len > pages * page) {
    throw_invalid("--max-model-len {}: the KV cache holds {} tokens ({} bytes a token); give "
                  "--kv-cache-memory {} or more, or a smaller --max-model-len",
                  options.max_model_len, pages * page, per_token, per_token * options.max_model_len);
  }
  m.max_model_len = std::min(wanted_len, pages * page);
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
  m->dtype = parse_dtype("--dtype", options.dtype,
                         m->config.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16);
  m->kv_dtype = parse_dtype("--kv-cache-dtype", options.kv_cache_dtype, m->dtype);
  m->checkpoint = Checkpoint::open(options.model_dir);
  const uint64_t total = m->checkpoint->total_bytes() / rank.size();
  size_kv_cache(options, rank, static_cast<int64_t>(total), *m);

  m->source = std::make_unique<CheckpointSource>(
      *m->checkpoint, rank.device(), m->dtype, [&](uint64_t bytes) {
        if (progress) progress(std::min(bytes, total), total);
      });
  ExecContext ctx = rank.exec(m->dtype);
  m->model = make_model(m->config, m->layout, {m->dtype, m->max_model_len, options.load_mtp}, *m->source, ctx);
  check_all_used(*m->source, m->config);
  m->runner = std::make_unique<ModelRunner>(rank, *m->model, m->layout, m->dtype, m->kv_dtype,
                                            options.page_size, m->num_pages);
  if (options.max_num_batched_tokens > 0 && !rank.on_cpu()) {
    m->runner->warm_up(options.max_num_batched_tokens, options.max_num_seqs, m->max_model_len);
  }
  if (!options.enforce_eager) record_graphs(options, rank, *m);
  rank.ops().end_warm_up();
  rank.group().barrier();
  if (progress) progress(total, total);
  m->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return m;
}

}  // namespace shoal

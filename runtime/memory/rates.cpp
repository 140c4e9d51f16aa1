#include "runtime/memory/rates.h"

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

constexpr double kGiga = 1e9, kTera = 1e12, kMicro = 1e-6;

struct Step {
  int64_t tokens = 0;      // of all ranks
  int64_t sequences = 0;
  double context = 0;      // keys that a token attends to, on average
  double read_context = 0; // tokens of a sequence's cache that are read in a step
  bool decode = false;
};

// Experts of a layer that `tokens` tokens touch, as a share: 1 - (1 - k/E)^tokens for a balanced router.
double touched(const ModelConfig& c, int64_t tokens) {
  const double share = static_cast<double>(c.router.top_k) / static_cast<double>(c.n_routed_experts);
  return 1 - std::pow(1 - share, static_cast<double>(tokens));
}

}  // namespace

OffDeviceBytes off_device_bytes(const ModelConfig& config, const RankPlan& rank, int64_t tokens) {
  if (config.n_routed_experts == 0) return {};
  const double share = touched(config, tokens);
  return {share * static_cast<double>(rank.experts_on_host + rank.experts_on_disk),
          share * static_cast<double>(rank.experts_on_disk)};
}

namespace {

double matrix_rate(const DeviceSpec& device, const std::string& quantization, const ModelConfig& config) {
  const bool fp8 = quantization == "fp8" || (quantization == "none" &&
                     config.quantization.method == QuantizationMethod::kFp8);
  // Only FP8 weights meet FP8 activations (kernels/cuda, sm_90 on); INT8 and INT4 are multiplied in BF16.
  if (fp8 && device.gpu.arch >= 90 && device.fp8_tflops > 0) return device.fp8_tflops * kTera;
  return device.bf16_tflops * kTera;
}

StepTime step_time(Planner& planner, const MemoryPlan& plan, const RankPlan& rank, const Step& step,
                   const HostSpec& host) {
  const ModelConfig& c = planner.config();
  const PlanOptions& o = plan.options;
  const DeviceSpec& device = planner.device();
  const ModelWeights& weights = planner.weights(o.quantization, o.dtype);
  const ParallelLayout layout{rank.rank, o.ranks, o.dp_attention};
  const bool moe = c.n_routed_experts > 0;
  const auto N = static_cast<double>(o.ranks);
  const auto T = static_cast<double>(step.tokens);
  const double own_sequences = static_cast<double>(step.sequences) / (o.dp_attention ? N : 1);
  StepTime time;

  // Bytes: every weight once but the embedding, of which rows; of the experts those that are touched; of
  // kv_b_proj and its absorbed forms decode reads the latter.
  const ModelWeights::Held& held = rank.weights;
  const double experts = static_cast<double>(held.of(TensorKind::kRoutedExperts));
  const double off_device = static_cast<double>(rank.experts_on_host + rank.experts_on_disk);
  double bytes = static_cast<double>(held.total() - held.rounding - held.of(TensorKind::kEmbedding) -
                                     held.of(TensorKind::kMtp)) -
                 experts - static_cast<double>(held.absorbed);
  if (c.tie_word_embeddings) bytes += static_cast<double>(held.of(TensorKind::kEmbedding));
  if (c.is_mla() && step.decode) {
    bytes += static_cast<double>(held.absorbed) - static_cast<double>(weights.kv_b_bytes(layout));
  }
  const double share = moe ? touched(c, step.tokens) : 0;
  bytes += share * (experts - off_device);
  bytes += own_sequences * step.read_context * static_cast<double>(planner.kv_bytes_per_token(o, rank.rank));
  time.memory_s = bytes / (device.gigabytes_per_s * kGiga);
  const OffDeviceBytes off = off_device_bytes(c, rank, step.tokens);
  if (off.used > 0) {
    // The ranks of a node share its memory, its cores and its disk; a link is a rank's own.
    const double rows = T * static_cast<double>(c.router.top_k) * off_device / experts;
    const double flops = 2 * rows * static_cast<double>(weights.whole(TensorKind::kRoutedExperts).parameters) /
                         static_cast<double>(c.n_routed_experts);
    const double read_s = off.used * N / (host.gigabytes_per_s * kGiga);
    const double cpu_s = std::max(read_s, flops / (host.gigaflops * kGiga));
    const double link = device.on_gpu ? device.host_gigabytes_per_s : 0;
    const double stream_s = link > 0 ? std::max(read_s, off.used / (link * kGiga)) : cpu_s;
    time.host_s = o.offload_mode == OffloadMode::kCpu      ? cpu_s
                  : o.offload_mode == OffloadMode::kStream ? stream_s
                                                           : std::min(cpu_s, stream_s);
    time.host_s += off.from_disk * N / (host.disk_gigabytes_per_s * kGiga);
  }

  // FLOPs: two for each parameter that a token meets; attention's two products on top. Ranks share both.
  double pairs = 0;  // FLOPs of one token, head and key
  if (c.is_mla()) {
    const int64_t width = step.decode ? c.kv_lora_rank + c.qk_rope_head_dim + c.kv_lora_rank
                                      : c.qk_head_dim() + c.v_head_dim;
    pairs = 2.0 * static_cast<double>(width);
  } else {
    pairs = 4.0 * static_cast<double>(c.head_dim);
  }
  const double attention = T * step.context * pairs *
                           static_cast<double>(c.num_attention_heads * c.num_hidden_layers);
  const double products = 2 * T * static_cast<double>(weights.active_parameters());
  time.compute_s = (products / matrix_rate(device, o.quantization, c) +
                    attention / (device.bf16_tflops * kTera)) / N;

  // Links: all-reduces of T x hidden, one after attention, one after a dense MLP and two after a mixture
  // (docs/parallelism.md); DP attention saves the first.
  if (o.ranks > 1) {
    const double activation = device.on_gpu ? 2 : 4;
    const double one = 2 * T * static_cast<double>(c.hidden_size) * activation * (N - 1) / N;
    double rounds = 1;  // the embedding
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
      rounds += (o.dp_attention ? 0 : 1) + (c.is_moe_layer(i) ? 2 : 1);
    }
    // Beyond a node: one network port of 400 Gbit/s a GPU, and NCCL's latency over it.
    constexpr int kNode = 8;
    constexpr double kNetworkGigabytes = 50, kNetworkUs = 40;
    const bool far = o.ranks > kNode && device.on_gpu;
    const double link = far ? std::min(device.link_gigabytes_per_s, kNetworkGigabytes)
                            : device.link_gigabytes_per_s;
    const double latency = far ? std::max(device.all_reduce_us, kNetworkUs) : device.all_reduce_us;
    time.collectives_s = rounds * (one / (link * kGiga) + latency * kMicro);
  }
  return time;
}

Rate rate_of(Planner& planner, const MemoryPlan& plan, const Step& step, const HostSpec& host) {
  Rate rate;
  for (const RankPlan* rank : {&plan.ranks.front(), &plan.ranks.back()}) {
    const StepTime time = step_time(planner, plan, *rank, step, host);
    if (time.seconds() > rate.time.seconds()) rate.time = time;
  }
  rate.tokens_per_s = static_cast<double>(step.tokens) / std::max(rate.time.seconds(), 1e-12);
  return rate;
}

}  // namespace

std::string StepTime::limit() const {
  const std::pair<double, const char*> terms[] = {{memory_s, "memory bandwidth"},
                                                  {compute_s, "arithmetic"},
                                                  {collectives_s, "collectives"},
                                                  {host_s, "experts off the device"}};
  return std::max_element(std::begin(terms), std::end(terms))->second;
}

Rate decode_rate(Planner& planner, const MemoryPlan& plan, int64_t batch, int64_t context,
                 const HostSpec& host) {
  const auto keys = static_cast<double>(context);
  return rate_of(planner, plan,
                 {.tokens = batch, .sequences = batch, .context = keys, .read_context = keys, .decode = true},
                 host);
}

Rate prefill_rate(Planner& planner, const MemoryPlan& plan, int64_t context, const HostSpec& host) {
  const int64_t tokens = plan.options.max_num_batched_tokens;
  const auto keys = static_cast<double>(context);
  // A token sees half of the prompt on average; a step reads what is before its own tokens.
  return rate_of(planner, plan,
                 {.tokens = tokens,
                  .sequences = std::max<int64_t>(tokens / std::max<int64_t>(context, 1), 1),
                  .context = keys / 2,
                  .read_context = keys / 2},
                 host);
}

}  // namespace shoal

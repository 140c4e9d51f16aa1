// Sampling: one block of 1,024 threads per row, which passes over the row a few times: once for the
// largest logit, and for each of top-k, top-p, draw and logprobs that the row asks for one to three
// times (sampling_select.cuh). A row of 129,280 logits is 517 KB and stays in L2: the first pass is
// bound by memory, the others by the block's own rate of loads and exponentials, some microseconds
// each. More blocks per row would need a launch per pass; a step of one row is bound by its weights
// anyway.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_select.cuh"

namespace shoal {
namespace {

using namespace gpu;

struct Range {
  int32_t begin, end;
};

struct RowParams {
  int64_t logits_row, index;
  double random;
  float temperature, top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_k, num_logprobs;
  Range changes, masked;  // of the lists of all rows
  int32_t first_top;      // of the top logprobs of all rows
};

enum Status : int32_t { kDrawn, kBrokenLogit, kNoToken };

struct RowResult {
  int32_t token;  // kBrokenLogit: the one that is broken
  int32_t status;
  float logprob;
};

struct TopLogprob {
  int32_t id;
  float logprob;
};

struct SampleArgs {
  float* logits;
  int64_t stride;
  int32_t vocab;
  const RowParams* rows;
  const LogitChange* changes;
  const int32_t* masked_tokens;
  float* unmasked;  // what masked_tokens' logits were
  RowResult* results;
  TopLogprob* top;
  int32_t* ids;  // may be null
};

// As sampler.cpp: bias; repetition penalty; then for each occurrence in the output the frequency
// penalty, with the presence penalty after the first.
__device__ __forceinline__ float change_logit(float x, const LogitChange& c, const RowParams& p) {
  x += c.bias;
  if (p.repetition_penalty != 1.0f && c.in_context != 0) {
    x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
  }
  for (int32_t n = 0; n < c.output_count; ++n) {
    x -= p.frequency_penalty;
    if (n == 0) x -= p.presence_penalty;
  }
  return x;
}

// Finds the largest logit and the smallest finite one. Infinity and NaN alike rank above all, so
// that the first of them is the result.
__device__ __forceinline__ uint64_t best_of_row(const float* logits, int32_t vocab,
                                                SelectShared& shared, float& smallest) {
  uint64_t best = 0;
  float lowest = INFINITY;
  for_vocab(vocab, [&](int32_t id) {
    const float x = logits[id];
    const bool broken = !(x < INFINITY);
    const uint64_t rank = ranked(broken ? 0xffffffffu : ordered(x), id);
    best = rank > best ? rank : best;
    lowest = x < lowest && x > -INFINITY ? x : lowest;
  });
  best = block_max(best, reinterpret_cast<uint64_t*>(shared.scratch));
  smallest = -block_max(-lowest, reinterpret_cast<float*>(shared.scratch));
  return best;
}

__device__ __forceinline__ bool none_left(uint64_t best) {
  return static_cast<uint32_t>(best >> 32) <= ordered(-INFINITY);
}

// The first token in the order of ids at which the sum of masses exceeds random * total. Each round
// cuts the range by the number of warps: each warp adds up one part of it.
__device__ __forceinline__ int32_t draw_by_id(const SampleState& row, SelectShared& shared,
                                              double random) {
  constexpr int kWarps = kSampleThreads / kWarp;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int32_t begin = 0, end = row.vocab;
  Amount left = 0;  // how much of the mass from `begin` on is to be passed
  for (bool first = true; first || end - begin > 1; first = false) {
    const int32_t part = (end - begin + kWarps - 1) / kWarps;
    const int32_t part_begin = min(begin + warp * part, end),
                  part_end = min(part_begin + part, end);
    Amount sum = 0;
    for (int32_t id = part_begin + lane; id < part_end; id += kWarp) {
      if (row.rank(id) >= row.floor) sum += row.mass(row.logits[id]);
    }
    sum = warp_sum(sum);
    if (lane == 0) shared.scratch[warp] = sum;
    __syncthreads();
    if (first) {
      Amount total = 0;
      for (int w = 0; w < kWarps; ++w) total += shared.scratch[w];
      // The product may round up to the total.
      const auto target = static_cast<Amount>(random * static_cast<double>(total));
      left = target < total ? target : total - 1;
    }
    int w = 0;  // the same in all threads; the masses add up to more than `left`
    while (left >= shared.scratch[w]) left -= shared.scratch[w++];
    __syncthreads();  // scratch is written again
    const int32_t base = begin;
    begin = min(base + w * part, end);
    end = min(begin + part, end);
  }
  return begin;
}

__device__ __forceinline__ int32_t draw_token(SampleState row, SelectShared& shared,
                                              const RowParams& p) {
  const auto mass = [&](float logit) { return row.mass(logit); };
  // Weights of less than 2^-44 are no mass: exp(-31) is.
  const float span = fminf(row.spread, 32.0f * row.temperature);
  const bool by_rank = p.top_k > 0 && p.top_k < row.vocab;
  if (by_rank) {
    const auto one = [](float) { return Amount{1}; };
    const auto k = [&](Amount) { return static_cast<Amount>(p.top_k); };
    row.floor = select_prefix(row, shared, row.spread, one, k).last;
  }
  if (p.top_p < 1) {
    const auto share = [&](Amount total) {
      const auto wanted = static_cast<Amount>(ceil(p.top_p * static_cast<double>(total)));
      return wanted < 1 ? Amount{1} : wanted < total ? wanted : total;
    };
    row.floor = select_prefix(row, shared, span, mass, share).last;
  }
  if (!by_rank) return draw_by_id(row, shared, p.random);
  const auto drawn = [&](Amount total) {
    const auto target = static_cast<Amount>(p.random * static_cast<double>(total));
    return target < total ? target + 1 : total;
  };
  return index_of_rank(select_prefix(row, shared, span, mass, drawn).last);
}

__device__ __forceinline__ void write_logprobs(const SampleState& row, SelectShared& shared,
                                               int32_t count, int32_t token, RowResult& result,
                                               TopLogprob* top) {
  Amount sum = 0;
  for_vocab(row.vocab, [&](int32_t id) {
    sum += static_cast<Amount>(expf(row.logits[id] - row.max) * kMassUnit);
  });
  sum = block_sum(sum, shared.scratch);
  const double log_sum = row.max + log(static_cast<double>(sum) / static_cast<double>(kMassUnit));
  if (threadIdx.x == 0) result.logprob = static_cast<float>(row.logits[token] - log_sum);
  if (count == 0) return;
  const auto one = [](float) { return Amount{1}; };
  const auto n = [&](Amount) { return static_cast<Amount>(count); };
  const uint64_t last = select_prefix(row, shared, row.spread, one, n).last;
  collect_ranks(row, shared, [&](uint64_t rank) { return rank >= last; });
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i < count) {
    const uint64_t rank = shared.ranks[i];
    top[i] = {index_of_rank(rank), static_cast<float>(value_of_rank(rank) - log_sum)};
  }
}

__global__ void __launch_bounds__(kSampleThreads) sample_kernel(SampleArgs args) {
  __shared__ SelectShared shared;
  const RowParams& p = args.rows[blockIdx.x];
  float* logits = args.logits + p.logits_row * args.stride;
  RowResult& result = args.results[blockIdx.x];

  float smallest;
  uint64_t best = best_of_row(logits, args.vocab, shared, smallest);
  const auto broken = [&] { return best >> 32 == 0xffffffffu; };
  const bool raw_is_good = !broken() && !none_left(best);
  const bool changes = p.changes.begin < p.changes.end || p.masked.begin < p.masked.end;
  if (raw_is_good && changes) {
    const auto known = [&](int32_t id) { return id >= 0 && id < args.vocab; };
    for (int32_t i = p.changes.begin + threadIdx.x; i < p.changes.end; i += kSampleThreads) {
      const LogitChange& c = args.changes[i];
      if (known(c.id)) logits[c.id] = change_logit(logits[c.id], c, p);
    }
    __syncthreads();
    // Each thread keeps and gives back its own.
    for (int32_t i = p.masked.begin + threadIdx.x; i < p.masked.end; i += kSampleThreads) {
      const int32_t id = args.masked_tokens[i];
      if (!known(id)) continue;
      args.unmasked[i] = logits[id];
      logits[id] = -INFINITY;
    }
    __syncthreads();
    best = best_of_row(logits, args.vocab, shared, smallest);
    if (none_left(best)) {  // the same in all threads
      for (int32_t i = p.masked.begin + threadIdx.x; i < p.masked.end; i += kSampleThreads) {
        const int32_t id = args.masked_tokens[i];
        if (known(id)) logits[id] = args.unmasked[i];
      }
      __syncthreads();
      best = best_of_row(logits, args.vocab, shared, smallest);
    }
  }
  int32_t token = index_of_rank(best);
  const Status status = broken() ? kBrokenLogit : none_left(best) ? kNoToken : kDrawn;
  if (status == kDrawn) {
    const float max = value_of_rank(best);
    const SampleState row{logits, args.vocab, max, max - smallest, p.temperature, p.min_p};
    if (p.temperature > 0) token = draw_token(row, shared, p);
    if (p.num_logprobs >= 0) {
      write_logprobs(row, shared, p.num_logprobs, token, result, args.top + p.first_top);
    }
  }
  if (threadIdx.x == 0) {
    result.token = token;
    result.status = status;
    // A token of broken logits is one of the vocabulary all the same: it may be fed before the host
    // knows.
    if (args.ids != nullptr) args.ids[p.index] = token;
  }
}

__global__ void feed_kernel(const int32_t* __restrict__ ids, const int32_t* __restrict__ sources,
                            int32_t* __restrict__ token_ids, int64_t tokens) {
  const int64_t t = flat_thread();
  if (t < tokens && sources[t] >= 0) token_ids[t] = ids[sources[t]];
}

// Grows only; what a launch under way uses is not freed under it.
void ensure(CudaDevice& device, Buffer& buffer, size_t bytes) {
  if (buffer.bytes() >= bytes) return;
  device.synchronize();
  const MemoryScope scope(device, MemoryUse::kSampler);
  buffer = device.allocate(std::max(bytes, 2 * buffer.bytes()));
}

template <typename T>
size_t append(std::vector<std::byte>& to, std::span<const T> values) {
  const size_t at = to.size();
  to.resize(at + values.size_bytes());
  if (!values.empty()) std::memcpy(to.data() + at, values.data(), values.size_bytes());
  return at;
}

}  // namespace

void CudaSampler::launch(const Tensor& logits, std::span<const SampleRow> rows,
                         const Tensor& ids) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  SHOAL_CHECK(logits.dtype == DType::kF32 && logits.rank == 2 && logits.stride[1] == 1 &&
                  logits.dim(0) >= num_rows && logits.dim(1) > 0 && logits.dim(1) <= kMaxVocab,
              "logits {} for {} rows", logits.shape_string(), num_rows);
  SHOAL_CHECK(!ids.defined() || (ids.dtype == DType::kI32 && ids.contiguous()), "ids {}",
              ids.shape_string());
  const auto vocab = static_cast<int32_t>(logits.dim(1));
  num_logprobs_.clear();
  if (rows.empty()) return;

  std::vector<RowParams> params;
  std::vector<LogitChange> changes;
  std::vector<int32_t> masked;
  int32_t num_top = 0;
  for (const SampleRow& r : rows) {
    SHOAL_CHECK(r.num_logprobs <= kMaxTopLogprobs && r.random >= 0 && r.random < 1,
                "num_logprobs {}, random {}", r.num_logprobs, r.random);
    SHOAL_CHECK(r.logits_row >= 0 && r.logits_row < logits.dim(0), "row {} of {}", r.logits_row,
                logits.shape_string());
    SHOAL_CHECK(!ids.defined() || (r.index >= 0 && r.index < ids.num_elements()), "index {} of {}",
                r.index, ids.shape_string());
    const int32_t num_logprobs = std::min(r.num_logprobs, vocab);
    RowParams p{r.logits_row,
                r.index,
                r.random,
                r.temperature,
                r.top_p,
                r.min_p,
                r.repetition_penalty,
                r.presence_penalty,
                r.frequency_penalty,
                r.top_k,
                num_logprobs,
                {},
                {},
                num_top};
    p.changes.begin = static_cast<int32_t>(changes.size());
    changes.insert(changes.end(), r.changes.begin(), r.changes.end());
    p.changes.end = static_cast<int32_t>(changes.size());
    p.masked.begin = static_cast<int32_t>(masked.size());
    masked.insert(masked.end(), r.masked_tokens.begin(), r.masked_tokens.end());
    // An id that two threads mask would not get its logit back.
    std::sort(masked.begin() + p.masked.begin, masked.end());
    masked.erase(std::unique(masked.begin() + p.masked.begin, masked.end()), masked.end());
    p.masked.end = static_cast<int32_t>(masked.size());
    params.push_back(p);
    num_logprobs_.push_back(num_logprobs);
    num_top += std::max(num_logprobs, 0);
  }
  host_input_.clear();
  append<RowParams>(host_input_, params);
  const size_t changes_at = append<LogitChange>(host_input_, changes);
  const size_t masked_at = append<int32_t>(host_input_, masked);
  const size_t output_bytes =
      rows.size() * sizeof(RowResult) + static_cast<size_t>(num_top) * sizeof(TopLogprob);
  ensure(device_, input_, host_input_.size() + masked.size() * sizeof(float));
  ensure(device_, output_, output_bytes);
  if (host_output_.bytes() < output_bytes) {
    device_.synchronize();  // the launch before may still copy to it
    host_output_ = device_.allocate_host(output_.bytes());
  }
  auto* input = static_cast<std::byte*>(input_.data());
  auto* output = static_cast<std::byte*>(output_.data());
  device_.copy_to_device(input, host_input_.data(), host_input_.size());
  const SampleArgs args{
      .logits = logits.as<float>(),
      .stride = logits.stride[0],
      .vocab = vocab,
      .rows = reinterpret_cast<const RowParams*>(input),
      .changes = reinterpret_cast<const LogitChange*>(input + changes_at),
      .masked_tokens = reinterpret_cast<const int32_t*>(input + masked_at),
      .unmasked = reinterpret_cast<float*>(input + host_input_.size()),
      .results = reinterpret_cast<RowResult*>(output),
      .top = reinterpret_cast<TopLogprob*>(output + rows.size() * sizeof(RowResult)),
      .ids = ids.defined() ? ids.as<int32_t>() : nullptr};
  gpu::launch(sample_kernel, dim3(static_cast<unsigned>(num_rows)), dim3(kSampleThreads), 0,
              device_.stream(), args);
  device_.copy_to_host_async(host_output_, 0, output, output_bytes);
  sampled_ = device_.record();
}

std::vector<SampledToken> CudaSampler::collect() {
  std::vector<SampledToken> sampled(num_logprobs_.size());
  if (sampled.empty()) return sampled;
  sampled_->wait();
  const std::byte* top = host_output_.data() + sampled.size() * sizeof(RowResult);
  for (size_t r = 0; r < sampled.size(); ++r) {
    RowResult result;
    std::memcpy(&result, host_output_.data() + r * sizeof(RowResult), sizeof(RowResult));
    if (result.status == kBrokenLogit) {
      throw DeviceFault(fmt::format("row {}: the logit of token {} is infinite or not a number", r,
                                    result.token));
    }
    if (result.status == kNoToken) {
      throw DeviceFault(fmt::format("row {}: no token has a logit above -infinity", r));
    }
    sampled[r].token = result.token;
    if (num_logprobs_[r] < 0) continue;
    sampled[r].logprob = result.logprob;
    for (int32_t i = 0; i < num_logprobs_[r]; ++i, top += sizeof(TopLogprob)) {
      TopLogprob entry;
      std::memcpy(&entry, top, sizeof(TopLogprob));
      sampled[r].top.emplace_back(entry.id, entry.logprob);
    }
  }
  return sampled;
}

void CudaSampler::feed(const Tensor& ids, const Tensor& sources, const Tensor& token_ids) {
  for (const Tensor* t : {&ids, &sources, &token_ids}) {
    SHOAL_CHECK(t->dtype == DType::kI32 && t->contiguous(), "{}", t->shape_string());
  }
  const int64_t tokens = token_ids.num_elements();
  SHOAL_CHECK(sources.num_elements() == tokens, "sources {} of {}", sources.shape_string(),
              token_ids.shape_string());
  if (tokens == 0) return;
  gpu::launch(feed_kernel, grid_for(tokens), dim3(kRowThreads), 0, device_.stream(),
              ids.as<const int32_t>(), sources.as<const int32_t>(), token_ids.as<int32_t>(), tokens);
}

}  // namespace shoal

#include "tests/bench/verb_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

#ifdef SHOAL_WITH_CUDA
#include "tests/bench/gpu/sampling_rows.h"
#endif

namespace shoal::bench {
namespace {

// As the server has it by default.
constexpr int32_t kPageSize = 16;
// MLA of every DeepSeek model.
constexpr int64_t kLora = 512, kRope = 64, kNope = 128, kV = 128;
constexpr int64_t kHeadDim = 128;      // of every dense model
constexpr int64_t kExpandChunk = 512;  // keys expanded at a time: runtime/model/mla_attention.cpp
constexpr float kSoftmaxScale = 0.07f;

double bytes_of(std::initializer_list<Tensor> tensors) {
  int64_t sum = 0;
  for (const Tensor& t : tensors) sum += t.num_bytes();
  return static_cast<double>(sum);
}

// Pairs of query and key when `tokens` queries end a causal context.
double causal_pairs(int64_t tokens, int64_t context) {
  return static_cast<double>(tokens) *
         (static_cast<double>(context - tokens) + static_cast<double>(tokens + 1) / 2);
}

}  // namespace

int VerbCases::sets_of(int64_t bytes) const {
  // Sets beyond that would be of less than 2 MB of a cache of 50 to 60.
  constexpr int64_t kMost = 128;
  return static_cast<int>(std::clamp<int64_t>(
      (meter_.cold_bytes() + bytes - 1) / std::max<int64_t>(bytes, 1), 1, kMost));
}

void VerbCases::measure(const std::string& verb, const std::string& shape, DType type, double bytes,
                        double flops, int sets, const std::function<void(int)>& call) {
  int next = 0;
  const double seconds = meter_.seconds([&] { call(next++ % sets); }, sets);
  report_.add({verb, shape, std::string(dtype_name(type)), seconds, bytes, flops});
  data_.clear();
}

void VerbCases::linear(const std::string& name, DType type, int64_t m, int64_t n, int64_t k) {
  const std::string shape = fmt::format("{} M={} {}x{}", name, m, n, k);
  if (!wanted("linear", shape, type)) return;
  std::vector<Weight> weights{data_.weight(type, n, k)};
  const int sets = sets_of(weights[0].num_bytes());
  while (static_cast<int>(weights.size()) < sets) weights.push_back(data_.weight(type, n, k));
  const Tensor x = data_.values(act(), {m, k}), out = data_.uninitialised(act(), {m, n});
  measure("linear", shape, type, static_cast<double>(weights[0].num_bytes()) + bytes_of({x, out}),
          2.0 * m * n * k, sets, [&](int i) { ops_.linear(x, weights[i], {}, out); });
}

void VerbCases::head_linear(const std::string& name, int64_t tokens, int64_t heads, int64_t n,
                            int64_t k) {
  const std::string shape = fmt::format("{} T={} {} heads {}x{}", name, tokens, heads, n, k);
  if (!wanted("head_linear", shape, act())) return;
  std::vector<Tensor> weights{data_.values(act(), {heads, n, k}, 0.03f)};
  const int sets = sets_of(weights[0].num_bytes());
  while (static_cast<int>(weights.size()) < sets) {
    weights.push_back(data_.values(act(), {heads, n, k}, 0.03f));
  }
  const Tensor x = data_.values(act(), {tokens, heads, k});
  const Tensor out = data_.uninitialised(act(), {tokens, heads, n});
  measure("head_linear", shape, act(), bytes_of({weights[0], x, out}), 2.0 * tokens * heads * n * k,
          sets, [&](int i) { ops_.head_linear(x, weights[i], out); });
}

std::vector<int32_t> VerbCases::choices(const ModelShape& model, int64_t tokens) {
  std::vector<int32_t> all(model.experts), ids;
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    // top_k different ones, spread evenly and at random as a balanced router does.
    for (int32_t j = 0; j < model.router.top_k; ++j) {
      std::swap(all[j], all[j + data_.random()() % (all.size() - j)]);
      ids.push_back(all[j]);
    }
  }
  return ids;
}

void VerbCases::grouped_linear(const ModelShape& model, DType type, int64_t tokens, int64_t n,
                               int64_t k) {
  const int64_t top_k = model.router.top_k, local = model.local_experts;
  const std::string shape = fmt::format("{} T={} top {} of {}/{} {}x{}", model.name, tokens, top_k,
                                        local, model.experts, n, k);
  if (!wanted("grouped_linear", shape, type)) return;
  std::vector<Weight> experts;
  for (int64_t e = 0; e < local; ++e) experts.push_back(data_.weight(type, n, k));
  const int64_t expert_bytes = experts[0].num_bytes();
  const int sets = sets_of(
      expert_bytes * std::min(local, std::max<int64_t>(1, tokens * top_k * local / model.experts)));
  std::vector<Tensor> offsets;
  double touched = 0, rows = 0;  // of a set, on average
  for (int i = 0; i < sets; ++i) {
    std::vector<int32_t> ends(local + 1, 0);
    for (const int32_t id : choices(model, tokens)) {
      if (id < local) ++ends[id + 1];
    }
    touched += static_cast<double>(local - std::count(ends.begin() + 1, ends.end(), 0)) / sets;
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    rows += static_cast<double>(ends.back()) / sets;
    offsets.push_back(data_.indices(ends, {local + 1}));
  }
  // As many rows as the model gives: those of other ranks' experts lie unused behind the last
  // offset.
  const Tensor x = data_.values(act(), {tokens * top_k, k});
  const Tensor out = data_.uninitialised(act(), {tokens * top_k, n});
  const double row_bytes = static_cast<double>((n + k) * dtype_size(act()));
  measure("grouped_linear", shape, type,
          touched * static_cast<double>(expert_bytes) + rows * row_bytes +
              static_cast<double>(offsets[0].num_bytes()),
          2.0 * rows * n * k, sets,
          [&](int i) { ops_.grouped_linear(x, experts, offsets[i], out); });
}

void VerbCases::router(const ModelShape& model, int64_t tokens) {
  const int64_t top_k = model.router.top_k;
  const std::string shape =
      fmt::format("{} T={} top {} of {}", model.name, tokens, top_k, model.experts);
  if (wanted("route", shape, DType::kF32)) {
    const Tensor logits = data_.values(DType::kF32, {tokens, model.experts});
    Tensor bias;
    if (model.router.kind == RouterKind::kNoauxTcSigmoid) {
      bias = data_.values(DType::kF32, {model.experts}, 0.1f);
    }
    const Tensor ids = data_.uninitialised(DType::kI32, {tokens, top_k});
    const Tensor weights = data_.uninitialised(DType::kF32, {tokens, top_k});
    measure("route", shape, DType::kF32, bytes_of({logits, ids, weights}), 0, 1,
            [&](int) { ops_.route(logits, bias, model.router, ids, weights); });
  }
  if (wanted("sort_by_expert", shape, DType::kI32)) {
    const Tensor ids = data_.indices(choices(model, tokens), {tokens, top_k});
    const Tensor source_row = data_.uninitialised(DType::kI32, {tokens * top_k});
    const Tensor slot = data_.uninitialised(DType::kI32, {tokens, top_k});
    const Tensor offsets = data_.uninitialised(DType::kI32, {model.local_experts + 1});
    measure("sort_by_expert", shape, DType::kI32, bytes_of({ids, source_row, slot, offsets}), 0, 1,
            [&](int) { ops_.sort_by_expert(ids, 0, source_row, slot, offsets); });
  }
}

void VerbCases::expert_rows(const ModelShape& model, int64_t tokens) {
  const int64_t top_k = model.router.top_k, rows = tokens * top_k, inner = model.expert_inner;
  const std::string shape = fmt::format("{} T={} x {}", model.name, tokens, model.hidden);
  std::vector<int32_t> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), data_.random());
  if (wanted("gather_rows", shape, act())) {
    std::vector<int32_t> source(rows);
    for (int64_t i = 0; i < rows; ++i) source[i] = static_cast<int32_t>(order[i] / top_k);
    const Tensor x = data_.values(act(), {tokens, model.hidden});
    const Tensor from = data_.indices(source, {rows});
    const Tensor out = data_.uninitialised(act(), {rows, model.hidden});
    measure("gather_rows", shape, act(), bytes_of({x, from, out}), 0, 1,
            [&](int) { ops_.gather_rows(x, from, out); });
  }
  if (wanted("combine", shape, act())) {
    const Tensor x = data_.values(act(), {rows, model.hidden});
    const Tensor slot = data_.indices(order, {tokens, top_k});
    const Tensor weights = data_.values(DType::kF32, {tokens, top_k});
    const Tensor out = data_.uninitialised(act(), {tokens, model.hidden});
    measure("combine", shape, act(), bytes_of({x, slot, weights, out}),
            2.0 * static_cast<double>(x.num_elements()), 1,
            [&](int) { ops_.combine(x, slot, weights, out); });
  }
  const std::string inner_shape =
      fmt::format("{} T={} x {} x {}", model.name, tokens, top_k, inner);
  if (wanted("silu_mul", inner_shape, act())) {
    const Tensor gate = data_.values(act(), {rows, inner}), up = data_.values(act(), {rows, inner});
    const Tensor out = data_.uninitialised(act(), {rows, inner});
    measure("silu_mul", inner_shape, act(), bytes_of({gate, up, out}), 0, 1,
            [&](int) { ops_.silu_mul(gate, up, out); });
  }
}

void VerbCases::rows(const ModelShape& model, int64_t tokens) {
  const int64_t hidden = model.hidden;
  const std::string shape = fmt::format("{} T={} x {}", model.name, tokens, hidden);
  const auto x = [&] { return data_.values(act(), {tokens, hidden}); };
  const auto wants = [&](const char* verb) { return wanted(verb, shape, act()); };
  if (wants("rms_norm")) {
    const Tensor in = x(), out = x(), weight = data_.values(DType::kF32, {hidden}, 0.5f, 1.0f);
    measure("rms_norm", shape, act(), bytes_of({in, out, weight}), 0, 1,
            [&](int) { ops_.rms_norm(in, weight, 1e-6f, out); });
  }
  if (wants("add_rms_norm")) {
    // Zero is added, so that the residual stays finite over any number of calls.
    const Tensor in = data_.values(act(), {tokens, hidden}, 0), residual = x(), out = x();
    const Tensor weight = data_.values(DType::kF32, {hidden}, 0.5f, 1.0f);
    measure("add_rms_norm", shape, act(), bytes_of({in, residual, residual, out, weight}), 0, 1,
            [&](int) { ops_.add_rms_norm(in, residual, weight, 1e-6f, out); });
  }
  if (wants("add")) {
    const Tensor in = data_.values(act(), {tokens, hidden}, 0), y = x();
    measure("add", shape, act(), bytes_of({in, y, y}), 0, 1, [&](int) { ops_.add(in, y); });
  }
  if (wants("embedding")) {
    std::vector<int32_t> ids(tokens);
    for (int32_t& id : ids) id = static_cast<int32_t>(data_.random()() % model.vocab);
    const Tensor table = data_.values(DType::kBF16, {model.vocab, hidden}), out = x();
    const Tensor tokens_in = data_.indices(ids, {tokens});
    measure("embedding", shape, act(), bytes_of({out, tokens_in}) * 2, 0, 1,
            [&](int) { ops_.embedding(tokens_in, {.data = table}, 0, out); });
  }
  std::vector<int32_t> order(tokens);
  std::iota(order.begin(), order.end(), 0);
  const bool mla = model.kv_heads == 0;
  const int64_t dim = mla ? kRope : kHeadDim;
  const std::string rope_shape =
      fmt::format("{} T={} x {} heads x {}", model.name, tokens, model.heads, dim);
  if (wanted("rope", rope_shape, act())) {
    // MLA rotates the end of each head's row.
    const Tensor q = data_.values(act(), {tokens, model.heads, mla ? kNope + kRope : kHeadDim});
    const Tensor part = mla ? q.slice(2, kNope, kNope + kRope) : q;
    const Tensor positions = data_.indices(order, {tokens});
    const Tensor table = data_.values(DType::kF32, {tokens, dim}, 0.7f);
    measure("rope", rope_shape, act(), bytes_of({part, part, table}), 0, 1,
            [&](int) { ops_.rope(part, positions, table, mla); });
  }
  const int64_t cache_row = mla ? kLora + kRope : model.kv_heads * kHeadDim;
  const std::string cache_shape = fmt::format("{} T={} x {}", model.name, tokens, cache_row);
  if (wanted("write_cache", cache_shape, DType::kBF16)) {
    const Tensor in = data_.values(act(), {tokens, cache_row}),
                 slots = data_.indices(order, {tokens});
    const Tensor cache = data_.uninitialised(DType::kBF16, {tokens, cache_row});
    measure("write_cache", cache_shape, DType::kBF16, bytes_of({in, slots, cache}), 0, 1,
            [&](int) { ops_.write_cache(in, slots, {cache}); });
  }
  if (!mla) return;
  const std::string copy_shape =
      fmt::format("{} T={} x {} heads x {}", model.name, tokens, model.heads, kRope);
  if (wanted("copy", copy_shape, act())) {
    const Tensor q = data_.values(act(), {tokens, model.heads, kNope + kRope});
    const Tensor q_latent = data_.uninitialised(act(), {tokens, model.heads, kLora + kRope});
    const Tensor from = q.slice(2, kNope, kNope + kRope),
                 to = q_latent.slice(2, kLora, kLora + kRope);
    measure("copy", copy_shape, act(), bytes_of({from, to}), 0, 1,
            [&](int) { ops_.copy(from, to); });
  }
}

VerbCases::Paged VerbCases::paged(int64_t sequences, int64_t tokens, int64_t context, int sets) {
  const int64_t pages = (context + kPageSize - 1) / kPageSize;
  std::vector<int32_t> order(sets * sequences * pages), starts(sequences + 1);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), data_.random());
  for (int64_t s = 0; s <= sequences; ++s) starts[s] = static_cast<int32_t>(s * tokens);
  Paged result;
  result.slots = static_cast<int64_t>(order.size()) * kPageSize;
  const Tensor query_start = data_.indices(starts, {sequences + 1});
  const Tensor context_len =
      data_.indices(std::vector<int32_t>(sequences, static_cast<int32_t>(context)), {sequences});
  for (auto next = order.begin(); next != order.end(); next += sequences * pages) {
    result.batches.push_back({kPageSize, query_start, context_len,
                              data_.indices({next, next + sequences * pages}, {sequences, pages})});
  }
  return result;
}

void VerbCases::mla_decode(int64_t sequences, int64_t context, int64_t heads) {
  const std::string shape = fmt::format("S={} context {} heads {}", sequences, context, heads);
  if (!wanted("mla_decode", shape, DType::kBF16)) return;
  const double keys = static_cast<double>(sequences) * static_cast<double>(context);
  const double cache_bytes = keys * (kLora + kRope) * 2;
  const int sets = sets_of(static_cast<int64_t>(cache_bytes));
  const Paged batch = paged(sequences, 1, context, sets);
  const Tensor cache = data_.values(DType::kBF16, {batch.slots, kLora + kRope});
  const Tensor q = data_.values(act(), {sequences, heads, kLora + kRope});
  const Tensor out = data_.uninitialised(act(), {sequences, heads, kLora});
  measure("mla_decode", shape, DType::kBF16, cache_bytes + bytes_of({q, out}),
          keys * heads * 2 * (2 * kLora + kRope), sets,
          [&](int i) { ops_.mla_decode(q, {cache}, batch.batches[i], kSoftmaxScale, out); });
}

void VerbCases::mla_prefill(int64_t tokens, int64_t context, int64_t heads) {
  const std::string shape = fmt::format("T={} context {} heads {}", tokens, context, heads);
  if (wanted("mla_prefill", shape, act())) {
    const Tensor kv = data_.values(act(), {context, heads, kNope + kV});
    const Tensor latent = data_.values(act(), {context, kLora + kRope});
    const Tensor k_pe = latent.slice(1, kLora, kLora + kRope);
    const Tensor q = data_.values(act(), {tokens, heads, kNope + kRope});
    std::vector<int32_t> at(tokens);
    std::iota(at.begin(), at.end(), static_cast<int32_t>(context - tokens));
    const Tensor positions = data_.indices(at, {tokens});
    const AttentionState state{data_.uninitialised(DType::kF32, {tokens, heads, kV}),
                               data_.uninitialised(DType::kF32, {tokens, heads}),
                               data_.uninitialised(DType::kF32, {tokens, heads})};
    const Tensor out = data_.uninitialised(act(), {tokens, heads, kV});
    measure("mla_prefill", shape, act(), bytes_of({kv, k_pe, q, out}),
            causal_pairs(tokens, context) * heads * 2 * (kNope + kRope + kV), 1, [&](int) {
              ops_.begin_state(state);
              for (int64_t begin = 0; begin < context; begin += kExpandChunk) {
                const int64_t end = std::min(begin + kExpandChunk, context);
                ops_.mla_prefill(q, kv.slice(0, begin, end), k_pe.slice(0, begin, end), positions,
                                 begin, kSoftmaxScale, state);
              }
              ops_.finish_state(state, out);
            });
  }
  const std::string gather_shape = fmt::format("{} positions x {}", context, kLora + kRope);
  if (!wanted("gather_cache", gather_shape, DType::kBF16)) return;
  const Paged batch = paged(1, 1, context, 1);
  const Tensor cache = data_.values(DType::kBF16, {batch.slots, kLora + kRope});
  const Tensor& table = batch.batches[0].block_tables;
  const Tensor out = data_.uninitialised(act(), {context, kLora + kRope});
  measure("gather_cache", gather_shape, DType::kBF16,
          static_cast<double>(context * (kLora + kRope) * 2) + bytes_of({out}), 0, 1, [&](int) {
            ops_.gather_cache({cache}, table.reshape({table.dim(1)}), kPageSize, 0, context, out);
          });
}

void VerbCases::gqa_attention(int64_t sequences, int64_t tokens, int64_t context, int64_t heads,
                              int64_t kv_heads) {
  const std::string shape =
      fmt::format("S={} T={} context {} heads {}/{}", sequences, tokens, context, heads, kv_heads);
  if (!wanted("gqa_attention", shape, DType::kBF16)) return;
  const double cache_bytes = static_cast<double>(2 * sequences * context * kv_heads * kHeadDim * 2);
  const int sets = sets_of(static_cast<int64_t>(cache_bytes));
  const Paged batch = paged(sequences, tokens, context, sets);
  const Tensor k = data_.values(DType::kBF16, {batch.slots, kv_heads * kHeadDim});
  const Tensor v = data_.values(DType::kBF16, {batch.slots, kv_heads * kHeadDim});
  const Tensor q = data_.values(act(), {sequences * tokens, heads, kHeadDim});
  const Tensor out = data_.uninitialised(act(), {sequences * tokens, heads, kHeadDim});
  const Ops::HeadMap map{static_cast<int32_t>(heads / kv_heads), 0, 0};
  measure("gqa_attention", shape, DType::kBF16, cache_bytes + bytes_of({q, out}),
          static_cast<double>(sequences) * causal_pairs(tokens, context) * heads * 4 * kHeadDim,
          sets,
          [&](int i) { ops_.gqa_attention(q, {k}, {v}, batch.batches[i], map, kSoftmaxScale, out); });
}

void run_kernels(Meter& meter, Report& report, const KernelPlan& plan) {
  VerbCases cases(meter, report);
  for (const ModelShape& model : plan.models) {
    for (const DType type : model.weights) {
      for (const LinearShape& linear : model.linears) {
        for (const int64_t m : plan.linear_rows) {
          cases.linear(model.name + " " + linear.name, type, m, linear.n, linear.k);
        }
      }
    }
    // Rows whose logits nobody wants are left out: never more than a batch.
    for (const int64_t m : plan.batches) {
      cases.linear(model.name + " lm_head", DType::kBF16, m, model.vocab, model.hidden);
    }
    for (const int64_t tokens : plan.tokens) cases.rows(model, tokens);
    if (model.experts == 0) continue;
    for (const int64_t tokens : plan.tokens) {
      cases.router(model, tokens);
      cases.expert_rows(model, tokens);
      for (const DType type : model.weights) {
        cases.grouped_linear(model, type, tokens, model.expert_inner, model.hidden);
        cases.grouped_linear(model, type, tokens, model.hidden, model.expert_inner);
      }
    }
    // Dense products of the same work as the experts' at the most tokens: what a library makes of
    // it.
    const int64_t rows =
        plan.tokens.back() * model.router.top_k * model.local_experts / model.experts;
    for (const DType type : model.weights) {
      cases.linear(model.name + " as experts", type, rows, model.expert_inner, model.hidden);
      cases.linear(model.name + " as experts", type, rows, model.hidden, model.expert_inner);
    }
  }
  // Both MLA models have the same heads on a rank.
  std::set<int64_t> mla_heads;
  for (const ModelShape& model : plan.models) {
    if (model.kv_heads == 0) mla_heads.insert(model.heads);
  }
  for (const int64_t heads : mla_heads) {
    for (const int64_t tokens : plan.batches) {
      cases.head_linear("absorb", tokens, heads, kLora, kNope);
      cases.head_linear("expand", tokens, heads, kV, kLora);
    }
    for (const int64_t sequences : plan.batches) {
      for (const int64_t context : plan.contexts) cases.mla_decode(sequences, context, heads);
    }
    for (const auto& [tokens, context] : plan.prefills) cases.mla_prefill(tokens, context, heads);
  }
  for (const ModelShape& model : plan.models) {
    if (model.kv_heads == 0) continue;
    for (const int64_t sequences : plan.batches) {
      for (const int64_t context : plan.contexts) {
        cases.gqa_attention(sequences, 1, context, model.heads, model.kv_heads);
      }
    }
    for (const auto& [tokens, context] : plan.prefills) {
      cases.gqa_attention(1, tokens, context, model.heads, model.kv_heads);
    }
  }
#ifdef SHOAL_WITH_CUDA
  sampling_rows(meter, report, plan);
#endif
}

}  // namespace shoal::bench

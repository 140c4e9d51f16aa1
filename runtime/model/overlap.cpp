#include "runtime/model/overlap.h"

#include <algorithm>
#include <numeric>

namespace shoal {
namespace {

// Rows of the largest tiles of products and attention: a half that ends inside one wastes the rest.
constexpr int64_t kRowTile = 128;

// Tokens of the first half.
int64_t cut_of(int64_t tokens) {
  const int64_t half = (tokens + 1) / 2;
  return tokens < 4 * kRowTile ? half : (half + kRowTile - 1) / kRowTile * kRowTile;
}

// The rows [begin, end) of a batch as a batch.
ModelBatch part_of(ExecContext& ctx, const ModelBatch& batch, int64_t begin, int64_t end) {
  const auto sequences = static_cast<int64_t>(batch.context_len.size());
  ModelBatch part;
  part.num_tokens = end - begin;
  part.num_decode_tokens = std::clamp<int64_t>(batch.num_decode_tokens - begin, 0, end - begin);
  part.exchange = batch.exchange;
  part.token_ids = batch.token_ids.slice(0, begin, end);
  part.positions = batch.positions.slice(0, begin, end);
  part.slots = batch.slots.slice(0, begin, end);

  int64_t first = 0, last = 0, decodes = 0;  // the sequences that have rows here
  part.query_start.push_back(0);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t from = std::max<int64_t>(batch.query_start[s], begin);
    const int64_t to = std::min<int64_t>(batch.query_start[s + 1], end);
    if (from >= to) continue;
    if (part.context_len.empty()) first = s;
    last = s + 1;
    part.query_start.push_back(static_cast<int32_t>(to - begin));
    // Rows behind the cut are not in the cache yet, or not to be seen.
    part.context_len.push_back(
        static_cast<int32_t>(batch.context_len[s] - (batch.query_start[s + 1] - to)));
    if (from < batch.num_decode_tokens) ++decodes;
  }
  for (const ModelBatch::Prefill& p : batch.prefills) {
    const int64_t from = std::max(p.row_begin, begin), to = std::min(p.row_end, end);
    if (from >= to) continue;
    part.prefills.push_back(
        {from - begin, to - begin, p.context_len - (p.row_end - to), p.sequence - first});
  }
  const int64_t own = last - first;
  part.all.page_size = part.decode.page_size = batch.all.page_size;
  part.all.query_start = ctx.workspace.from_host(DType::kI32, part.query_start.data(), {own + 1});
  part.all.context_len = ctx.workspace.from_host(DType::kI32, part.context_len.data(), {own});
  part.all.block_tables = batch.all.block_tables.slice(0, first, last);
  part.decode.query_start = part.all.query_start.slice(0, 0, decodes + 1);
  part.decode.context_len = part.all.context_len.slice(0, 0, decodes);
  part.decode.block_tables = part.all.block_tables.slice(0, 0, decodes);
  return part;
}

struct Half {
  ModelBatch batch;
  Tensor residual, h;  // [T, hidden], its rows of the whole step's
  std::unique_ptr<FeedForwardPass> pass;
  Tensor sums;  // [T, hidden], of its feed-forward
  std::unique_ptr<DeviceEvent> begun, arrived, computed, combined;
};

}  // namespace

bool can_overlap(const ParallelLayout& layout, const ModelBatch& batch) {
  if (batch.exchange != ExpertExchange::kAllToAll || batch.query_start.empty()) return false;
  const int64_t tokens =
      std::accumulate(batch.tokens_per_rank.begin(), batch.tokens_per_rank.end(), int64_t{0});
  return tokens >= layout.overlap_min_tokens * layout.size;
}

std::array<ModelBatch, 2> split_batch(ExecContext& ctx, const ParallelLayout& layout,
                                      const ModelBatch& batch) {
  const int64_t cut = cut_of(batch.num_tokens);
  std::array<ModelBatch, 2> halves{part_of(ctx, batch, 0, cut),
                                   part_of(ctx, batch, cut, batch.num_tokens)};
  for (int64_t tokens : batch.tokens_per_rank) {
    halves[0].tokens_per_rank.push_back(cut_of(tokens));
    halves[1].tokens_per_rank.push_back(tokens - cut_of(tokens));
  }
  return halves;
}

void run_layers_overlapped(ExecContext& ctx, const ParallelLayout& layout,
                           std::span<const DecoderLayer> layers, const Tensor& norm, float eps,
                           const ModelBatch& batch, const KvCache& cache, const Tensor& residual,
                           const Tensor& h) {
  Device& device = ctx.workspace.device();
  std::array<ModelBatch, 2> batches = split_batch(ctx, layout, batch);
  Half a, b;
  int64_t begin = 0;
  for (auto [half, part] : {std::pair{&a, &batches[0]}, std::pair{&b, &batches[1]}}) {
    half->batch = std::move(*part);
    const int64_t end = begin + half->batch.num_tokens;
    half->residual = residual.slice(0, begin, end);
    half->h = h.slice(0, begin, end);
    begin = end;
  }

  // What both queues use is apart from the scopes of what the device computes: such a scope ends
  // when its work is issued, and what follows on the device may have its memory, what runs beside
  // may not.
  Workspace& kept = ctx.workspace.aside();
  ExecContext apart{ctx.ops, kept, ctx.comm, ctx.activation_dtype};

  const auto finish_layer = [&](Half& half, const Tensor& next_norm) {
    if (half.combined == nullptr) return;  // before the first layer
    device.order_after(*half.combined);
    ctx.ops.add_rms_norm(half.sums, half.residual, next_norm, eps, half.h);
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    ctx.comm.at_layer(static_cast<int32_t>(i));
    const auto attend_half = [&](Half& half) {
      Workspace::Scope scope(ctx.workspace);
      attend(ctx, layout, layer, eps, half.batch, cache.layers[i], half.residual, half.h);
    };
    const auto begin_half = [&](Half& half) {
      half.pass = layer.mlp->begin(apart, half.h, half.batch);
      half.begun = device.record();
    };
    const auto dispatch = [&](Half& half) {
      half.arrived = device.beside(*half.begun, [&] { half.pass->dispatch(apart); });
    };
    const auto compute = [&](Half& half) {
      device.order_after(*half.arrived);
      Workspace::Scope scope(ctx.workspace);
      half.pass->compute(ctx);
      half.computed = device.record();
    };
    const auto combine = [&](Half& half) {
      half.combined = device.beside(*half.computed, [&] { half.sums = half.pass->combine(apart); });
    };

    finish_layer(a, layer.input_layernorm);
    attend_half(a);
    finish_layer(b, layer.input_layernorm);
    kept.reset();  // the last layer's sums have been added: nothing of it is in use behind this
    begin_half(a);
    attend_half(b);
    begin_half(b);
    dispatch(a);
    compute(a);
    dispatch(b);
    combine(a);  // behind dispatch(b) on the second queue: that must not wait for a's experts
    compute(b);
    combine(b);
  }
  finish_layer(a, norm);
  finish_layer(b, norm);
  ctx.comm.at_layer(-1);
}

}  // namespace shoal

// Ops: the verbs. Everything that a model computes on a device goes through one of these; a back end
// implements all of them (kernels/cpu, kernels/cuda) and is chosen at run time. Contract of each verb,
// its tolerance, bytes and FLOPs: docs/kernels.md.
//
// Common rules:
//  - Outputs never alias inputs unless a verb says "in place". Tensors with zero rows are valid.
//  - Activations are F32 on the CPU, F32 or BF16 on CUDA; weights F32 | F16 | BF16 | F8E4M3 blocks |
//    I8 and I4x2 groups; KV caches F32 | BF16, or F8E4M3 | I8 with scales; index tensors I32.
//  - A row of an output depends only on its own row of the inputs, in bits: the same order of
//    additions whatever the number of rows, threads or neighbours (on the CPU; on CUDA the same call
//    gives the same bits again, but a kernel for few rows may round differently from one for many).
//  - Shapes that do not fit trip SHOAL_CHECK. Indices (token ids, slots, pages) are trusted: the
//    scheduler and the request validation have checked them.
//  - One thread calls; a verb may use the back end's own threads inside. On CUDA a verb only issues
//    work: what it does depends on the shapes, never on values in device memory (graphs).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/cache_tensor.h"

namespace shoal {

// What a router does with the logits of a token.
//   kGreedySoftmax       V2-Lite "greedy": softmax, then the top_k largest.
//   kGroupLimitedSoftmax V2 "group_limited_greedy": softmax; a group's score is its largest member;
//                        only the topk_group best groups stay; then top_k of what is left.
//   kNoauxTcSigmoid      V3 "noaux_tc": sigmoid; choice by score + correction_bias; a group's score is
//                        the sum of its two largest; weights are the scores without the bias.
// Ties: the lower expert index wins. Weights: normalised to sum 1 if norm_topk_prob (the sum gets
// +1e-20 as in DeepSeek's code), then times routed_scaling_factor (V2 with norm_topk_prob: not scaled,
// as in DeepSeek's code; the model sets the factor to 1 then).
enum class RouterKind { kGreedySoftmax, kGroupLimitedSoftmax, kNoauxTcSigmoid };

struct RouterSpec {
  RouterKind kind = RouterKind::kGreedySoftmax;
  int32_t top_k = 1;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1.0f;
};

// Where the tokens of a step sit in the paged KV cache. The same for all layers.
struct PagedBatch {
  int32_t page_size = 0;    // tokens per page
  Tensor query_start;       // [S + 1] I32: rows [query_start[s], query_start[s+1]) belong to sequence s
  Tensor context_len;       // [S] I32: tokens in the cache after this step's are written
  Tensor block_tables;      // [S, max_pages] I32: page numbers
  // Row r of sequence s attends to positions 0 .. context_len[s] - (query_start[s+1] - r), inclusive.
};

// Running softmax state of attention over KV chunks (mla_prefill).
struct AttentionState {
  Tensor acc;      // [T, H, v_head_dim] F32, not yet divided
  Tensor row_max;  // [T, H] F32
  Tensor row_sum;  // [T, H] F32
};

class Ops {
 public:
  virtual ~Ops() = default;

  // A back end may time its choices of kernels on the first calls of each shape. From here on it keeps
  // what it has: the steps before were like those that come.
  virtual void end_warm_up() {}

  // From begin_step() to end_step() the tensors of a PagedBatch keep their contents: what follows from
  // them a back end may work out at the first layer and keep for the others. Outside, every call stands
  // for itself.
  virtual void begin_step() {}
  virtual void end_step() {}

  // out[t] = table[ids[t] - first_row], or zeros when that row is not held here (vocabulary sharding).
  virtual void embedding(const Tensor& ids,    // [T] I32
                         const Weight& table,  // [vocab, hidden]
                         int64_t first_row,
                         const Tensor& out) = 0;  // [T, hidden]

  // out = x / sqrt(mean(x^2) + eps) * weight. x and out may be strided in rows, and may be the same.
  virtual void rms_norm(const Tensor& x,       // [T, dim]
                        const Tensor& weight,  // [dim] F32
                        float eps,
                        const Tensor& out) = 0;  // [T, dim]

  // residual += x, then out = rms_norm(residual).
  virtual void add_rms_norm(const Tensor& x,         // [T, hidden]
                            const Tensor& residual,  // [T, hidden] in place
                            const Tensor& weight, float eps,
                            const Tensor& out) = 0;  // [T, hidden]

  // out = x, the same shape; both may be strided in every dimension but the last.
  virtual void copy(const Tensor& x,         // up to [a, b, c]
                    const Tensor& out) = 0;

  // y += x, in place.
  virtual void add(const Tensor& x,        // [T, dim]
                   const Tensor& y) = 0;   // [T, dim]

  // out = x W^T (+ bias). x may be strided in rows.
  virtual void linear(const Tensor& x,     // [T, k]
                      const Weight& w,     // [n, k]
                      const Tensor& bias,  // [n] F32, or undefined
                      const Tensor& out) = 0;  // [T, n]

  // One product per head: out[t, h] = x[t, h] W[h]^T. x and out may be strided in t and h.
  virtual void head_linear(const Tensor& x,        // [T, H, k]
                           const Tensor& w,        // [H, n, k] F32 | BF16
                           const Tensor& out) = 0;  // [T, H, n]

  // Rows sorted by expert: rows [offsets[e], offsets[e+1]) are multiplied by experts[e].
  virtual void grouped_linear(const Tensor& x,                 // [rows, k]
                              std::span<const Weight> experts,  // local_experts of [n, k]
                              const Tensor& offsets,           // [local_experts + 1] I32
                              const Tensor& out) = 0;          // [rows, n]

  // out = silu(gate) * up.
  virtual void silu_mul(const Tensor& gate,  // [T, n]
                        const Tensor& up,    // [T, n]
                        const Tensor& out) = 0;  // [T, n], may be gate

  // Rotates in place the last qk_rope elements given: x[t, h, :] by the angle of positions[t].
  // table row p holds cos then sin: [cos_0 .. cos_{d/2-1}, sin_0 .. sin_{d/2-1}], already scaled.
  // interleaved: pairs are (2i, 2i+1) (DeepSeek); else (i, i + d/2) (Llama, Qwen). The result keeps
  // the order of the input: a pair stays where it was.
  virtual void rope(const Tensor& x,          // [T, H, d] in place, strided
                    const Tensor& positions,  // [T] I32
                    const Tensor& table,      // [max_position, d] F32
                    bool interleaved) = 0;

  // cache[slots[t]] = row t, converted to the cache's type: its scales are found on the way.
  // slot = page * page_size + offset.
  virtual void write_cache(const Tensor& x,      // [T, dim] strided in rows
                           const Tensor& slots,  // [T] I32
                           const CacheTensor& cache) = 0;  // of dim

  // out = the cache rows of positions [begin, end) of one sequence, in order.
  virtual void gather_cache(const CacheTensor& cache,   // of dim
                            const Tensor& block_table,  // [max_pages] I32
                            int32_t page_size, int64_t begin, int64_t end,
                            const Tensor& out) = 0;  // [end - begin, dim]

  // MLA, absorbed form (Multi-head Latent Attention, DeepSeek-V2 paper, 2.1): every head attends to
  // the same latent row; K is the whole row, V its first kv_lora elements. A quantised cache has one
  // scale a row, over exactly those.
  virtual void mla_decode(const Tensor& q,           // [T, H, kv_lora + qk_rope]
                          const CacheTensor& cache,  // of kv_lora + qk_rope
                          const PagedBatch& batch, float softmax_scale,
                          const Tensor& out) = 0;  // [T, H, kv_lora]

  // MLA, expanded form, one chunk of keys of one sequence: folds keys [first_position,
  // first_position + kv rows) into `state`. Query t attends to positions <= positions[t].
  // begin_state prepares; finish_state divides.
  virtual void mla_prefill(const Tensor& q,     // [T, H, qk_nope + qk_rope]
                           const Tensor& kv,    // [chunk, H, qk_nope + v_head_dim]
                           const Tensor& k_pe,  // [chunk, qk_rope] strided in rows
                           const Tensor& positions,  // [T] I32
                           int64_t first_position, float softmax_scale,
                           const AttentionState& state) = 0;
  virtual void begin_state(const AttentionState& state) = 0;
  virtual void finish_state(const AttentionState& state,
                            const Tensor& out) = 0;  // [T, H, v_head_dim] strided

  // Grouped-query attention over paged K and V, prefill and decode alike. Local query head h reads
  // KV head (first_q_head + h) / group - first_kv_head, so that any split of heads works. Quantised
  // caches have one scale per KV head and row; both are of one type.
  struct HeadMap {
    int32_t group = 1;  // query heads per KV head in the whole model
    int32_t first_q_head = 0;
    int32_t first_kv_head = 0;
  };
  virtual void gqa_attention(const Tensor& q,             // [T, H, head_dim]
                             const CacheTensor& k_cache,  // of kv_heads * head_dim
                             const CacheTensor& v_cache,  // of kv_heads * head_dim
                             const PagedBatch& batch, const HeadMap& heads, float softmax_scale,
                             const Tensor& out) = 0;  // [T, H, head_dim]

  // See RouterSpec.
  virtual void route(const Tensor& logits,           // [T, E] F32
                     const Tensor& correction_bias,  // [E] F32, or undefined
                     const RouterSpec& spec,
                     const Tensor& expert_ids,      // [T, top_k] I32, best first
                     const Tensor& weights) = 0;    // [T, top_k] F32

  // Stable sort of the (token, choice) pairs whose expert is in [first_expert, first_expert + E_local)
  // by expert, then token, then choice. Ids outside the range (or negative) get slot -1.
  // Returns how many rows hold all of them: exact on the CPU; on a device that keeps the count to
  // itself T * top_k (rows past offsets[E_local] are then garbage, and source_row names row 0).
  virtual int64_t sort_by_expert(const Tensor& expert_ids,  // [T, top_k] I32
                                 int32_t first_expert,
                                 const Tensor& source_row,  // [T * top_k] I32: token of a sorted row
                                 const Tensor& slot,        // [T, top_k] I32: sorted row of a pair
                                 const Tensor& offsets) = 0;  // [local_experts + 1] I32

  // out[i] = x[rows[i]].
  virtual void gather_rows(const Tensor& x,       // [T, dim]
                           const Tensor& rows,    // [n] I32
                           const Tensor& out) = 0;  // [n, dim]

  // out[t] = sum over choices j, in order, of weights[t, j] * rows[slot[t, j]], skipping slot -1.
  virtual void combine(const Tensor& rows,     // [sorted rows, dim]
                       const Tensor& slot,     // [T, top_k] I32
                       const Tensor& weights,  // [T, top_k] F32
                       const Tensor& out) = 0;  // [T, dim]

  // Exact decoding of a weight (or of rows of it) to F32 or, rounded, BF16: for derived weights
  // made at load, never in a step.
  virtual void dequantize(const Weight& w, const Tensor& out) = 0;  // [n, k] F32 | BF16
};

}  // namespace shoal

// Two halves of a step through the layers, one computing while the other's rows are between ranks:
//
//   device      attend A | attend B | experts A | experts B | attend A | attend B | ...
//   beside it            | dispatch A | dispatch B | combine A | combine B | dispatch A | ...
//
// The host issues it in that order and waits, for half A's expert ids, while the device attends for
// B. Rows and sequences are cut where the half ends, wherever that is: the later half of a sequence
// finds the earlier one's keys in the cache, since they are written first in each layer. A token's
// result depends on its own row only, so it does not show how a step was cut.
#pragma once

#include <array>
#include <span>

#include "runtime/model/decoder.h"

namespace shoal {

// Whether the step exchanges tokens, enough of them that halves pay. The same on all ranks.
bool can_overlap(const ParallelLayout& layout, const ModelBatch& batch);

// The rows before the cut and those behind it, on all ranks: of T tokens the first half, to whole
// tiles of rows where there are many. Without logits_rows, which are the whole batch's. New index
// tensors are taken from the workspace.
std::array<ModelBatch, 2> split_batch(ExecContext& ctx, const ParallelLayout& layout,
                                      const ModelBatch& batch);

// As run_layer() for all layers in turn, `norm` being the final one.
void run_layers_overlapped(ExecContext& ctx, const ParallelLayout& layout,
                           std::span<const DecoderLayer> layers, const Tensor& norm, float eps,
                           const ModelBatch& batch, const KvCache& cache,
                           const Tensor& residual,  // [T, hidden]
                           const Tensor& h);        // [T, hidden]

}  // namespace shoal

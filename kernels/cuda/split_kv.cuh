// Flash-decoding's cut: long contexts are shared out over blocks, and the parts combined
// afterwards. The host fixes the grids from shapes alone; where the cuts lie the device works out
// from the context lengths, so that a captured graph serves any contexts.
#pragma once

#include "kernels/base/workspace.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/step_cuts.h"
#include "kernels/ops.h"

namespace shoal::gpu {

// Shapes of a paged attention call, and bounds that follow from them.
struct SplitPlan {
  int32_t heads = 0;   // query heads that a KV head has at most
  int32_t target = 0;  // items that the GPU runs at once for one KV head; 0: nothing is ever cut
  int32_t min_blocks = 1;  // key blocks that a part has at least
  int64_t max_items = 0;
  int64_t max_slots = 0;
  int64_t max_combines = 0;
  int64_t max_parts = 0;  // of a tile
};

// A batch of sequences as both verbs take it. Device values are trusted, as ops.h says.
void check_batch(const PagedBatch& batch);
PageTable page_table(const PagedBatch& batch);

// REQUIRES: call.tile_rows, key_block, kv_heads and num_heads are set. blocks_at_once: thread
// blocks of the attention kernel that the whole GPU holds.
SplitPlan plan_split(const PagedCall& call, const PagedBatch& batch, int64_t num_tokens,
                     int64_t blocks_at_once);

// Fills call.work: takes its memory from scratch and launches the scheduler, unless the step has the cut.
void schedule(PagedCall& call, const SplitPlan& plan, const PagedBatch& batch, StepCuts& cuts,
              Workspace& scratch, cudaStream_t stream);

// Adds up the parts of the tiles that were cut, into call.out of the given type.
void combine_parts(const PagedCall& call, const SplitPlan& plan, DType out_type,
                   cudaStream_t stream);

}  // namespace shoal::gpu

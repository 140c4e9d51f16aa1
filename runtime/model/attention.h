// Attention: what a decoder layer needs of its attention block.
#pragma once

#include "parallel/exec_context.h"
#include "runtime/model/model.h"

namespace shoal {

class Attention {
 public:
  virtual ~Attention() = default;
  // Writes this step's keys (and values) to the cache and attends. Returns this rank's heads' share
  // of the output, [T, hidden]: a partial sum over ranks, or the whole under DP attention.
  virtual Tensor forward(ExecContext& ctx, const Tensor& x,  // [T, hidden]
                         const ModelBatch& batch, const KvCache::Layer& cache) const = 0;
};

}  // namespace shoal

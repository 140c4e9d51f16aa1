// Linear layers cut over ranks (Megatron-LM's column and row parallel forms): the slice arithmetic
// stands beside the forward. x W^T with W [n, k]:
//   ReplicatedLinear      every rank holds [n, k].
//   ColumnParallelLinear  a rank holds rows of W: its own columns of the output.
//   RowParallelLinear     a rank holds columns of W and takes its own columns of the input; the output
//                         is a partial sum: the caller reduces it (all_reduce_sum, or
//                         reduce_scatter_rows), together with other partial sums where it can.
#pragma once

#include <string>

#include "parallel/exec_context.h"
#include "parallel/shard.h"
#include "parallel/weight_source.h"

namespace shoal {

class Linear {
 public:
  // [T, k held] -> [T, n held], of ctx.activation_dtype.
  Tensor forward(ExecContext& ctx, const Tensor& x) const { return forward(ctx, x, ctx.activation_dtype); }
  // The same, of another type (routers: F32).
  Tensor forward(ExecContext& ctx, const Tensor& x, DType out_dtype) const;
  // The same, to where the caller wants it.
  void forward_to(ExecContext& ctx, const Tensor& x, const Tensor& out) const;
  const Weight& weight() const { return weight_; }

 protected:
  Weight weight_;
  Tensor bias_;  // [n held], or undefined
};

class ReplicatedLinear : public Linear {
 public:
  // keep_f32: a weight stored as F32 stays so in a bfloat16 model (routers).
  void load(WeightSource& source, const std::string& name, int64_t n, int64_t k, bool bias = false,
            bool keep_f32 = false);
};

class ColumnParallelLinear : public Linear {
 public:
  // `rows`: the output features of this rank.
  void load(WeightSource& source, const std::string& name, int64_t n, int64_t k, Range rows,
            bool bias = false);
};

class RowParallelLinear : public Linear {
 public:
  // `cols`: the input features of this rank.
  void load(WeightSource& source, const std::string& name, int64_t n, int64_t k, Range cols);
};

}  // namespace shoal

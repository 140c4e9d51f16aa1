#include "parallel/linear.h"

namespace shoal {

Tensor Linear::forward(ExecContext& ctx, const Tensor& x, DType out_dtype) const {
  const Tensor out = ctx.workspace.tensor(out_dtype, {x.dim(0), weight_.n()});
  forward_to(ctx, x, out);
  return out;
}

void Linear::forward_to(ExecContext& ctx, const Tensor& x, const Tensor& out) const {
  SHOAL_CHECK(x.rank == 2 && x.dim(1) == weight_.k(), "{} times the transpose of {}",
              x.shape_string(), weight_.data.shape_string());
  if (weight_.k() == 0) {
    // A rank without input features (more ranks than units of the dimension) adds nothing to the
    // sum.
    SHOAL_CHECK(!bias_.defined());
    ctx.workspace.device().zero(out.data, out.num_bytes());
    return;
  }
  if (x.dim(0) > 0 && weight_.n() > 0) ctx.ops.linear(x, weight_, bias_, out);
}

void ReplicatedLinear::load(WeightSource& source, const std::string& name, int64_t n, int64_t k,
                            bool bias, bool keep_f32) {
  weight_ = source.matrix(name, n, k, {0, n}, {0, k}, keep_f32);
  if (bias) bias_ = source.vector(name + ".bias", n, {0, n});
}

void ColumnParallelLinear::load(WeightSource& source, const std::string& name, int64_t n, int64_t k,
                                Range rows, bool bias) {
  weight_ = source.matrix(name, n, k, rows, {0, k});
  if (bias) bias_ = source.vector(name + ".bias", n, rows);
}

void RowParallelLinear::load(WeightSource& source, const std::string& name, int64_t n, int64_t k,
                             Range cols) {
  weight_ = source.matrix(name, n, k, {0, n}, cols);
}

}  // namespace shoal

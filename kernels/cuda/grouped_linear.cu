// grouped_linear: one launch for all experts of a rank, in matmul.h's forms. The grid is fixed, the
// offsets are read on the device (matmul_tiles.cuh), so that a graph replays it with any routing:
// blocks take the tiles that the offsets say exist, experts without rows cost nothing, rows past
// offsets[E] stay as they were. Decode streams the weights of each touched expert once per 8 or 16
// of its rows; prefill takes tiles of 32 to 128 rows by the average expert's share.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/expert_tables.h"
#include "kernels/cuda/matmul.h"

namespace shoal {

void CudaOps::grouped_linear(const Tensor& x, std::span<const Weight> experts,
                             const Tensor& offsets, const Tensor& out) {
  check_activation(x, 2, "x");
  check_activation(out, 2, "out");
  check_i32_on_device(offsets, static_cast<int64_t>(experts.size()) + 1, "offsets");
  SHOAL_CHECK(out.dim(0) == x.dim(0), "x {}, out {}", x.shape_string(), out.shape_string());
  if (x.dim(0) == 0 || experts.empty()) return;
  const ExpertTables::Table& table = expert_tables_->get(experts);
  SHOAL_CHECK(x.dim(1) == table.k && out.dim(1) == table.n, "x {}, experts of [{}, {}], out {}",
              x.shape_string(), table.n, table.k, out.shape_string());
  const MatmulTask task{.x = x.data,
                        .out = out.data,
                        .x_stride = x.stride[0],
                        .out_stride = out.stride[0],
                        .w_type = table.type,
                        .has_min = table.has_min,
                        .x_bf16 = x.dtype == DType::kBF16,
                        .out_bf16 = out.dtype == DType::kBF16,
                        .m = static_cast<int32_t>(x.dim(0)),
                        .n = static_cast<int32_t>(table.n),
                        .k = static_cast<int32_t>(table.k),
                        .groups = static_cast<int32_t>(experts.size()),
                        .table = table.device(),
                        .offsets = offsets.as<int32_t>()};
  run_matmul(device_, scratch_, task, table.layout);
}

}  // namespace shoal

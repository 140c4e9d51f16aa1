// ExecContext: what a layer needs to run on one rank. Passed down, never global.
#pragma once

#include "kernels/base/workspace.h"
#include "kernels/ops.h"
#include "parallel/collectives.h"

namespace shoal {

struct ExecContext {
  Ops& ops;
  Workspace& workspace;
  Collectives& comm;
  DType activation_dtype = DType::kF32;  // F32 on the CPU; BF16 where the device multiplies in it
};

}  // namespace shoal

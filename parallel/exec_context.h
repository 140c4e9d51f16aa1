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
};

}  // namespace shoal

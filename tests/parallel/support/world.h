// The group that a test of several ranks runs in: MPI under mpirun, else one rank. The same test
// source runs in 1 to 4 processes; every rank runs every test case, in the same order.
#pragma once

#include <memory>

#include "kernels/base/workspace.h"
#include "kernels/ops.h"
#include "parallel/collectives.h"
#include "parallel/exec_context.h"
#include "parallel/process_group.h"

namespace shoal::test {

struct World {
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<ProcessGroup> group;
  std::unique_ptr<Collectives> comm;

  int rank() const { return group->rank(); }
  int size() const { return group->size(); }
  ExecContext context() { return {*ops, *workspace, *comm}; }
};

// Set by main (ranks_main.cpp) for as long as the tests run.
World& world();

}  // namespace shoal::test

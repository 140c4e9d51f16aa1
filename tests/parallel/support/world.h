// The group that a test of several ranks runs in: MPI under mpirun, else one rank. The same test
// source runs in 1 to 4 processes, on CPUs or with one GPU each; every rank runs every test case, in the
// same order.
#pragma once

#include <chrono>
#include <functional>
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
  // Another one over the same ranks, all of which must ask for it. Null in a world of one rank.
  std::function<std::unique_ptr<Collectives>(std::chrono::milliseconds time_limit)> make_comm;
  // Whether sums are those of rank order in every bit, and up to which size an all-reduce is one round.
  bool sums_in_rank_order = true;
  int64_t one_round_bytes = 0;

  int rank() const { return group->rank(); }
  int size() const { return group->size(); }
  ExecContext context() { return {*ops, *workspace, *comm}; }
};

// Set by main (ranks_main.cpp) for as long as the tests run.
World& world();

}  // namespace shoal::test

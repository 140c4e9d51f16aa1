#include "runtime/backend.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/self/self_group.h"
#ifdef SHOAL_WITH_MPI
#include "parallel/mpi/mpi_collectives.h"
#include "parallel/mpi/mpi_group.h"
#endif

namespace shoal {
namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(CPU_COUNT(&set), 1);
}

// What mpirun says of this node; 1 outside mpirun.
int ranks_on_this_node() {
  const char* text = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  return text == nullptr ? 1 : std::max(std::atoi(text), 1);
}

}  // namespace

#ifdef SHOAL_WITH_MPI
class RankRuntime::World {
 public:
  MpiRuntime mpi;
};
#else
class RankRuntime::World {};
#endif

RankRuntime::RankRuntime(const BackendOptions& options) {
  if (options.device != "cpu") {
    throw_invalid("--device {}: this build has cpu only", options.device);
  }
  num_threads_ = options.num_threads > 0 ? options.num_threads
                                         : std::max(usable_cores() / ranks_on_this_node(), 1);
  device_ = make_cpu_device();
  ops_ = make_cpu_ops(num_threads_);
#ifdef SHOAL_WITH_MPI
  if (MpiRuntime::launched_ranks() > 1) {
    world_ = std::make_unique<World>();
    group_ = std::make_unique<MpiProcessGroup>();
    collectives_ = std::make_unique<MpiCollectives>(*device_);
  }
#endif
  if (!group_) {
    group_ = std::make_unique<SelfProcessGroup>();
    collectives_ = std::make_unique<SelfCollectives>(*device_);
  }
  workspace_ = std::make_unique<Workspace>(*device_);
}

RankRuntime::~RankRuntime() = default;

std::string RankRuntime::description() const {
  return fmt::format("{}: {} thread{}, {}, rank {} of {}", device_->name(), num_threads_,
                     num_threads_ == 1 ? "" : "s", cpu_target_name(), rank(), size());
}

bool multi_rank_supported() {
#ifdef SHOAL_WITH_MPI
  return true;
#else
  return false;
#endif
}

std::string backend_summary() {
  return fmt::format("cpu: {}, {} cores usable; MPI: {}; CUDA: not built in", cpu_target_name(),
                     usable_cores(), multi_rank_supported() ? "yes" : "no");
}

}  // namespace shoal

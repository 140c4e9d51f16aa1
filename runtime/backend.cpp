#include "runtime/backend.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/self/self_group.h"
#ifdef SHOAL_WITH_CUDA
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#include "parallel/nccl/nccl_collectives.h"
#endif
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

// What mpirun says of this node; `alone` outside mpirun.
int from_launcher(const char* variable, int alone) {
  const char* text = std::getenv(variable);
  return text == nullptr ? alone : std::atoi(text);
}
int ranks_on_this_node() { return std::max(from_launcher("OMPI_COMM_WORLD_LOCAL_SIZE", 1), 1); }

#ifdef SHOAL_WITH_CUDA
// A rank's GPU is that of its number on its node; launchers that show each rank one GPU of its own (Slurm's
// --gpus-per-task) make that number 0. Two ranks on one GPU are found out when they join NCCL.
int gpu_of_this_rank() {
  const int local = from_launcher("OMPI_COMM_WORLD_LOCAL_RANK", 0);
  const bool own = std::getenv("CUDA_VISIBLE_DEVICES") != nullptr && cuda_device_count() == 1;
  return own ? 0 : local;
}
#endif

#ifdef SHOAL_CUDA_EMULATED
bool gpu_by_default() { return false; }  // it is for tests: only who names it gets it
#else
bool gpu_by_default() { return gpu_count() > 0; }
#endif

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
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda") {
    throw_invalid("--device {}: use auto, cpu or cuda", options.device);
  }
  on_cpu_ = options.device == "cpu" || (options.device == "auto" && !gpu_by_default());
  num_threads_ = options.num_threads > 0 ? options.num_threads
                                         : std::max(usable_cores() / ranks_on_this_node(), 1);
#ifdef SHOAL_WITH_MPI
  if (MpiRuntime::launched_ranks() > 1) {
    world_ = std::make_unique<World>();
    group_ = std::make_unique<MpiProcessGroup>();
  }
#endif
  if (!group_) group_ = std::make_unique<SelfProcessGroup>();
  if (on_cpu_) {
    join_cpu();
  } else {
    join_cuda(options);
  }
  if (!collectives_) collectives_ = std::make_unique<SelfCollectives>(*device_);
  workspace_ = std::make_unique<Workspace>(*device_);
}

void RankRuntime::join_cpu() {
  device_ = make_cpu_device();
  ops_ = make_cpu_ops(num_threads_);
#ifdef SHOAL_WITH_MPI
  if (size() > 1) collectives_ = std::make_unique<MpiCollectives>(*device_);
#endif
}

void RankRuntime::join_cuda(const BackendOptions& options) {
#ifdef SHOAL_WITH_CUDA
  auto made = make_cuda_device(gpu_of_this_rank());
  CudaDevice& device = *made;
  device_ = std::move(made);  // before what uses it: should joining throw, it must end last
  gpu_traits_ = {device.arch(), device.num_sms()};
  const std::string suffix = size() > 1 ? fmt::format(".rank{}", rank()) : "";
  {
    const MemoryScope scope(device, MemoryUse::kScratch);
    ops_ = make_cuda_ops(device, options.gemm_cache.empty() ? "" : options.gemm_cache + suffix);
  }
  if (size() > 1) {
    const MemoryScope scope(device, MemoryUse::kCommunication);
    collectives_ = std::make_unique<NcclCollectives>(device, *group_);
  }
  const MemoryScope scope(device, MemoryUse::kSampler);
  sampler_ = make_cuda_sampler(device);
#else
  throw_invalid("--device cuda: this build has cpu only; build with -DSHOAL_CUDA=ON");
#endif
}

RankRuntime::~RankRuntime() = default;

Device& RankRuntime::host_device() {
  if (on_cpu_) return *device_;
  if (!host_device_) host_device_ = make_cpu_device();
  return *host_device_;
}

Ops& RankRuntime::host_ops() {
  if (on_cpu_) return *ops_;
  if (!host_ops_) host_ops_ = make_cpu_ops(num_threads_);
  return *host_ops_;
}

std::string RankRuntime::description() const {
  if (!on_cpu_) return fmt::format("{}, rank {} of {}", device_->name(), rank(), size());
  return fmt::format("{}: {} thread{}, {}, rank {} of {}", device_->name(), num_threads_,
                     num_threads_ == 1 ? "" : "s", cpu_target_name(), rank(), size());
}

MachineInfo machine_info() {
  return {usable_cores(), make_cpu_device()->memory_info().first};
}

int gpu_count() {
#ifdef SHOAL_WITH_CUDA
  return cuda_device_count();
#else
  return 0;
#endif
}

bool multi_rank_supported() {
#ifdef SHOAL_WITH_MPI
  return true;
#else
  return false;
#endif
}

std::string backend_summary() {
#ifdef SHOAL_WITH_CUDA
  const std::string cuda = cuda_summary();
#else
  const std::string cuda = "not built in";
#endif
  return fmt::format("cpu: {}, {} cores usable; MPI: {}; CUDA: {}", cpu_target_name(),
                     usable_cores(), multi_rank_supported() ? "yes" : "no", cuda);
}

}  // namespace shoal

// The only file (with backend.cpp) that names the back ends: makes a rank's device, verbs and
// communicators from plain settings. Everything else sees interfaces.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/device.h"
#include "kernels/base/gpu_traits.h"
#include "kernels/base/workspace.h"
#include "kernels/device_sampler.h"
#include "kernels/ops.h"
#include "parallel/collectives.h"
#include "parallel/exec_context.h"
#include "parallel/process_group.h"

namespace shoal {

struct BackendOptions {
  std::string device = "auto";  // auto (a GPU where this build and machine have one) | cpu | cuda
  std::string gemm_cache;  // GPUs: see make_cuda_ops(); every rank adds its number
  int num_threads = 0;  // 0: the cores this process may use, divided by the ranks on this node
};

// What one rank is made of. Not movable: layers hold references into it.
class RankRuntime {
 public:
  // Joins the world that the process was started in (mpirun, or alone). Throws InvalidInput for a
  // device that this build or machine does not have. Of several GPUs a rank takes the one of its number
  // on its node.
  explicit RankRuntime(const BackendOptions& options);
  ~RankRuntime();
  RankRuntime(const RankRuntime&) = delete;

  int rank() const { return group().rank(); }
  int size() const { return group().size(); }
  int num_threads() const { return num_threads_; }
  Device& device() const { return *device_; }
  Ops& ops() const { return *ops_; }
  ProcessGroup& group() const { return *group_; }
  Collectives& collectives() const { return *collectives_; }
  Workspace& workspace() const { return *workspace_; }
  // Memory and verbs of the host: on the CPU the device's own. Made when first asked for.
  Device& host_device();
  Ops& host_ops();
  DeviceSampler* sampler() const { return sampler_.get(); }  // null on the CPU
  // Activations are F32 on the CPU, and of the model's type (F32 | BF16) on a GPU.
  ExecContext exec(DType model_dtype) const {
    return {*ops_, *workspace_, *collectives_, on_cpu_ ? DType::kF32 : model_dtype};
  }
  bool on_cpu() const { return on_cpu_; }
  const GpuTraits& gpu_traits() const { return gpu_traits_; }  // REQUIRES: !on_cpu()
  std::string description() const;  // "cpu: 2 threads, AVX3_DL, rank 0 of 2"

 private:
  class World;  // keeps MPI initialised while there is one
  std::unique_ptr<World> world_;
  void join_cpu();
  void join_cuda(const BackendOptions& options);

  bool on_cpu_ = true;
  int num_threads_ = 1;
  GpuTraits gpu_traits_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<ProcessGroup> group_;
  std::unique_ptr<Collectives> collectives_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<DeviceSampler> sampler_;
  std::unique_ptr<Device> host_device_;
  std::unique_ptr<Ops> host_ops_;
};

// Of the machine that this process runs on.
struct MachineInfo {
  int cores = 1;              // that this process may use
  uint64_t memory_bytes = 0;  // that are free
};
MachineInfo machine_info();

// GPUs that this build can use here; 0 without CUDA.
int gpu_count();

// Whether this build can run more than one rank.
bool multi_rank_supported();

// One line for start-up logs and `shoal version`: the back ends of this build and machine.
std::string backend_summary();

}  // namespace shoal

// main() of the tests that run in several ranks.
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include <cstdio>
#include <optional>

#include "kernels/cpu/cpu_backend.h"
#include "parallel/self/self_group.h"
#include "tests/parallel/support/world.h"
#include "tests/support/lsan.h"

#ifdef SHOAL_WITH_MPI
#include "parallel/mpi/mpi_collectives.h"
#include "parallel/mpi/mpi_group.h"
#endif
#ifdef SHOAL_WITH_NCCL
#include "kernels/cuda/cuda_backend.h"
#include "parallel/nccl/nccl_collectives.h"
#endif

namespace shoal::test {
namespace {

World* current = nullptr;

// A rank that failed a REQUIRE is no longer in step: its peers must not wait for it for long.
constexpr std::chrono::seconds kTimeLimit{30};

std::unique_ptr<ProcessGroup> make_group() {
#ifdef SHOAL_WITH_MPI
  if (MpiRuntime::launched_ranks() > 1) return std::make_unique<MpiProcessGroup>();
#endif
  return std::make_unique<SelfProcessGroup>();
}

#ifdef SHOAL_WITH_NCCL

World make_world() {
  World world;
  world.group = make_group();
  auto device = make_cuda_device(world.group->rank());
  world.ops = make_cuda_ops(*device);
  // Sums of PeerAllReduce are examined in a test of its own.
  const auto make_comm = [&device = *device, &group = *world.group](std::chrono::milliseconds limit) {
    return std::make_unique<NcclCollectives>(
        device, group, NcclOptions{.time_limit = limit, .peer_memory = false});
  };
  world.comm = make_comm(kTimeLimit);
  world.make_comm = make_comm;
  world.device = std::move(device);
  world.workspace = std::make_unique<Workspace>(*world.device, size_t{1} << 20);
  world.sums_in_rank_order = world.size() == 1;
  return world;
}

#else

World make_world() {
  World world;
  world.group = make_group();
  world.device = make_cpu_device();
  world.ops = make_cpu_ops(1);
  world.workspace = std::make_unique<Workspace>(*world.device, size_t{1} << 20);
#ifdef SHOAL_WITH_MPI
  if (world.size() > 1) {
    world.make_comm = [&device = *world.device](std::chrono::milliseconds limit) {
      return std::make_unique<MpiCollectives>(device, limit);
    };
    world.comm = world.make_comm(kTimeLimit);
    world.one_round_bytes = MpiCollectives::kOneShotBytes;
    return world;
  }
#endif
  world.comm = std::make_unique<SelfCollectives>(*world.device);
  return world;
}

#endif

}  // namespace

World& world() { return *current; }

}  // namespace shoal::test

int main(int argc, char** argv) {
#ifdef SHOAL_WITH_NCCL
  int ranks = 1;
#ifdef SHOAL_WITH_MPI
  ranks = shoal::MpiRuntime::launched_ranks();
#endif
  if (shoal::cuda_device_count() < ranks) {
    std::printf("SKIPPED: %d GPUs for %d ranks\n", shoal::cuda_device_count(), ranks);
    return 0;
  }
#endif
#ifdef SHOAL_WITH_MPI
  std::optional<shoal::MpiRuntime> runtime;
  if (shoal::MpiRuntime::launched_ranks() > 1) runtime.emplace();
#endif
  shoal::test::World world = shoal::test::make_world();
  shoal::test::current = &world;
  return Catch::Session().run(argc, argv);
}

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

namespace shoal::test {
namespace {

World* current = nullptr;

World make_world() {
  World world;
  world.device = make_cpu_device();
  world.ops = make_cpu_ops(1);
  world.workspace = std::make_unique<Workspace>(*world.device, size_t{1} << 20);
#ifdef SHOAL_WITH_MPI
  if (MpiRuntime::launched_ranks() > 1) {
    world.group = std::make_unique<MpiProcessGroup>();
    // A rank that failed a REQUIRE is no longer in step: its peers must not wait for it for long.
    world.comm = std::make_unique<MpiCollectives>(*world.device, std::chrono::seconds(30));
    return world;
  }
#endif
  world.group = std::make_unique<SelfProcessGroup>();
  world.comm = std::make_unique<SelfCollectives>(*world.device);
  return world;
}

}  // namespace

World& world() { return *current; }

}  // namespace shoal::test

int main(int argc, char** argv) {
#ifdef SHOAL_WITH_MPI
  std::optional<shoal::MpiRuntime> runtime;
  if (shoal::MpiRuntime::launched_ranks() > 1) runtime.emplace();
#endif
  shoal::test::World world = shoal::test::make_world();
  shoal::test::current = &world;
  return Catch::Session().run(argc, argv);
}

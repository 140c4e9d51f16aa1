// Ends a program of ranks as skipped when the node has fewer GPUs than ranks. Before MPI begins: all ranks
// see the same and end alike.
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include <catch2/catch.hpp>
#include <cstdio>
#include <cstdlib>

#include "tests/support/ranks.h"

namespace shoal {
namespace {

struct SkipWithoutGpus : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;
  void testRunStarting(const Catch::TestRunInfo&) override {
    const char* local = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    const int ranks = local == nullptr ? 1 : std::atoi(local);
    if (test_device() != "cuda" || gpu_count() >= ranks) return;
    std::printf("SKIPPED: %d GPUs for %d ranks\n", gpu_count(), ranks);
    std::fflush(stdout);
    std::_Exit(0);
  }
};
CATCH_REGISTER_LISTENER(SkipWithoutGpus)

}  // namespace
}  // namespace shoal

// The ledger of a device: every Buffer by its use, and workspaces of a planned size.
#include "kernels/base/memory_ledger.h"

#include <catch2/catch.hpp>

#include "kernels/base/workspace.h"
#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

TEST_CASE("buffers enter and strike themselves out, under the use of their scope") {
  const std::unique_ptr<Device> device = make_cpu_device();
  MemoryLedger& ledger = device->ledger();
  Buffer other = device->allocate(100);
  {
    const MemoryScope weights(*device, MemoryUse::kWeights);
    Buffer a = device->allocate(1000);
    {
      const MemoryScope cache(*device, MemoryUse::kKvCache);
      other = device->allocate(50);  // the 100 go, with what `a` was assigned from
    }
    Buffer moved = std::move(a);
    CHECK(ledger.current(MemoryUse::kWeights) == 1000);
    CHECK(ledger.current(MemoryUse::kKvCache) == 50);
    CHECK(ledger.current(MemoryUse::kOther) == 0);
    CHECK(ledger.current_total() == 1050);
  }
  CHECK(ledger.current_total() == 50);
  CHECK(ledger.peak(MemoryUse::kWeights) == 1000);
  CHECK(ledger.peak_total() == 1150);  // the old buffer went after the new one had come
  other = Buffer();
  CHECK(ledger.current_total() == 0);
}

TEST_CASE("a workspace that was reserved takes its memory once, in one piece") {
  const std::unique_ptr<Device> device = make_cpu_device();
  MemoryLedger& ledger = device->ledger();
  Workspace workspace(*device, 4096);
  workspace.tensor(DType::kF32, {1000});
  workspace.reset();
  workspace.reserve(1 << 20);
  CHECK(ledger.current(MemoryUse::kWorkspace) == 1 << 20);
  ledger.expect_no_more(1);
  workspace.tensor(DType::kF32, {100000});
  workspace.tensor(DType::kF32, {100000});
  CHECK(ledger.late().empty());
  CHECK(workspace.high_water_bytes() == 2 * 400128);  // in units of 256 bytes
  workspace.tensor(DType::kF32, {100000});  // more than was planned
  REQUIRE(ledger.late().size() == 1);
  CHECK(ledger.late()[0].use == MemoryUse::kWorkspace);
  CHECK(ledger.late()[0].bytes == 400128);
  CHECK_THROWS_AS(workspace.reserve(1), Bug);
  ledger.expect_no_more(SIZE_MAX);
  CHECK(ledger.late().empty());
}

}  // namespace
}  // namespace shoal

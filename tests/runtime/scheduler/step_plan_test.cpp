#include "runtime/scheduler/step_plan.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "kernels/base/error.h"
#include "runtime/scheduler/plan_bounds.h"

namespace shoal {
namespace {

StepPlan example() {
  StepPlan plan;
  plan.number = 0x1122334455667788;
  plan.exchange = ExpertExchange::kAllToAll;
  plan.ahead = true;
  plan.ask = 77;
  plan.copies = {{0, 5, 6, true}, {3, 1 << 30, 0, false}};
  plan.files.push_back({.kind = PageFile::Kind::kLoad, .dp_rank = 1, .slot = 9, .ticket = 77});
  plan.files.back().key.fill(0xAB);
  plan.files.push_back({.kind = PageFile::Kind::kDrop});
  plan.slices.push_back({.request = 7, .first_position = 40, .tokens = {5}, .pages = {1, 2, 9},
                         .absorbed = true, .sample = true, .from_sample = 3});
  plan.slices.push_back({.request = ~RequestId{0}, .dp_rank = 3, .first_position = 0,
                         .tokens = {1, 2, 3, -1}, .pages = {4}, .all_logits = true});
  return plan;
}

void require_equal(const StepPlan& a, const StepPlan& b) {
  REQUIRE(a.number == b.number);
  REQUIRE(a.kind == b.kind);
  REQUIRE(a.exchange == b.exchange);
  REQUIRE(a.ahead == b.ahead);
  REQUIRE(a.ask == b.ask);
  REQUIRE(a.copies.size() == b.copies.size());
  for (size_t i = 0; i < a.copies.size(); ++i) {
    const PageCopy &x = a.copies[i], &y = b.copies[i];
    REQUIRE(x.dp_rank == y.dp_rank);
    REQUIRE(x.page == y.page);
    REQUIRE(x.slot == y.slot);
    REQUIRE(x.to_host == y.to_host);
  }
  REQUIRE(a.files.size() == b.files.size());
  for (size_t i = 0; i < a.files.size(); ++i) {
    const PageFile &x = a.files[i], &y = b.files[i];
    REQUIRE(x.kind == y.kind);
    REQUIRE(x.dp_rank == y.dp_rank);
    REQUIRE(x.slot == y.slot);
    REQUIRE(x.ticket == y.ticket);
    REQUIRE(x.key == y.key);
  }
  REQUIRE(a.slices.size() == b.slices.size());
  for (size_t i = 0; i < a.slices.size(); ++i) {
    const SequenceSlice &x = a.slices[i], &y = b.slices[i];
    REQUIRE(x.request == y.request);
    REQUIRE(x.dp_rank == y.dp_rank);
    REQUIRE(x.first_position == y.first_position);
    REQUIRE(x.tokens == y.tokens);
    REQUIRE(x.pages == y.pages);
    REQUIRE(x.absorbed == y.absorbed);
    REQUIRE(x.sample == y.sample);
    REQUIRE(x.all_logits == y.all_logits);
    REQUIRE(x.from_sample == y.from_sample);
  }
}

TEST_CASE("a plan survives its bytes") {
  require_equal(StepPlan::deserialize(example().serialize()), example());
  StepPlan shutdown;
  shutdown.kind = StepKind::kShutdown;
  require_equal(StepPlan::deserialize(shutdown.serialize()), shutdown);
}

TEST_CASE("a plan cut at any byte, or with bytes after it, is refused") {
  std::vector<std::byte> bytes = example().serialize();
  for (size_t n = 0; n < bytes.size(); ++n) {
    REQUIRE_THROWS_AS(StepPlan::deserialize(std::span(bytes).first(n)), Bug);
  }
  bytes.push_back(std::byte{0});
  REQUIRE_THROWS_AS(StepPlan::deserialize(bytes), Bug);
}

TEST_CASE("counts beyond the bytes are refused before memory is taken") {
  const std::vector<std::byte> bytes = example().serialize();
  // Offsets of the numbers of copies, files and slices, and of the first slice's tokens and pages.
  constexpr size_t kCopies = 15 + 8, kFiles = kCopies + 4 + 2 * 13, kSlices = kFiles + 4 + 2 * 49;
  for (size_t offset : {kCopies, kFiles, kSlices, kSlices + 4 + 21, kSlices + 4 + 25}) {
    for (uint32_t count : {0x7FFFFFFFu, 0xFFFFFFFFu, 0x40000001u}) {
      std::vector<std::byte> changed = bytes;
      std::memcpy(changed.data() + offset, &count, sizeof count);
      REQUIRE_THROWS_AS(StepPlan::deserialize(changed), Bug);
    }
  }
}

TEST_CASE("hostile bytes give a plan or a Bug, nothing else") {
  std::mt19937_64 random(1);
  const std::vector<std::byte> good = example().serialize();
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = good;
    for (uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
    try {
      const StepPlan plan = StepPlan::deserialize(bytes);
      REQUIRE(plan.serialize() == bytes);
    } catch (const Bug&) {
      ++refused;
    }
  }
  REQUIRE(refused > 1000);
}

TEST_CASE("numbers that would become places outside a rank's memory are refused") {
  const PlanBounds bounds{.num_pages = 10, .vocab_size = 100, .previous_samples = 3};
  StepPlan plan;
  plan.slices.resize(2);
  plan.slices[0].tokens = {0, 99};
  plan.slices[0].pages = {0, 9};
  plan.slices[1].tokens = {-7};  // keeps the place
  plan.slices[1].pages = {5};
  plan.slices[1].from_sample = 2;
  check_plan(plan, bounds);
  const auto refused = [&](auto change) {
    StepPlan changed = plan;
    change(changed);
    REQUIRE_THROWS_AS(check_plan(changed, bounds), Bug);
  };
  for (const int32_t page : {-1, 10, INT32_MAX, INT32_MIN}) {
    refused([&](StepPlan& p) { p.slices[0].pages[1] = page; });
    refused([&](StepPlan& p) { p.slices[1].pages[0] = page; });
  }
  for (const int32_t token : {-1, 100, INT32_MAX}) {
    refused([&](StepPlan& p) { p.slices[0].tokens[1] = token; });
  }
  refused([](StepPlan& p) { p.slices[1].from_sample = 3; });
}

}  // namespace
}  // namespace shoal

// What a step uploads, and how decode steps are bucketed for graphs.
#include "runtime/engine/step_batch.h"

#include <catch2/catch.hpp>

#include "kernels/base/error.h"
#include "runtime/engine/decode_graphs.h"

namespace shoal {
namespace {

SequenceSlice slice_of(int32_t dp_rank, int32_t first, std::vector<int32_t> tokens,
                       std::vector<int32_t> pages, bool absorbed) {
  SequenceSlice slice;
  slice.dp_rank = dp_rank;
  slice.first_position = first;
  slice.tokens = std::move(tokens);
  slice.pages = std::move(pages);
  slice.absorbed = absorbed;
  slice.sample = true;
  return slice;
}

std::vector<int32_t> ints(const Tensor& t) {
  return {t.as<int32_t>(), t.as<int32_t>() + t.num_elements()};
}

// The batch with its tensors in `memory`, which stands for the device's.
ModelBatch place(const StepBatch& batch, std::vector<int32_t>& memory) {
  memory = batch.numbers();
  return batch.on_device(
      Tensor(memory.data(), DType::kI32, {static_cast<int64_t>(memory.size())}));
}

TEST_CASE("a step's numbers: positions, slots, rows of logits and block tables") {
  StepPlan plan;
  plan.slices = {slice_of(0, 5, {50}, {7, 2}, true), slice_of(0, 2, {60, 61, 62}, {9, 4}, false)};
  const StepBatch host(plan, {0, 1, false}, /*page_size=*/4);
  std::vector<int32_t> memory;
  const ModelBatch batch = place(host, memory);
  CHECK(batch.num_tokens == 4);
  CHECK(batch.num_decode_tokens == 1);
  CHECK(ints(batch.token_ids) == std::vector<int32_t>{50, 60, 61, 62});
  CHECK(ints(batch.positions) == std::vector<int32_t>{5, 2, 3, 4});
  CHECK(ints(batch.slots) == std::vector<int32_t>{2 * 4 + 1, 9 * 4 + 2, 9 * 4 + 3, 4 * 4});
  CHECK(ints(batch.logits_rows) == std::vector<int32_t>{0, 3});
  CHECK(ints(batch.all.query_start) == std::vector<int32_t>{0, 1, 4});
  CHECK(ints(batch.all.context_len) == std::vector<int32_t>{6, 5});
  CHECK(ints(batch.all.block_tables) == std::vector<int32_t>{7, 2, 9, 4});
  CHECK(ints(batch.decode.query_start) == std::vector<int32_t>{0, 1});
  REQUIRE(batch.prefills.size() == 1);
  CHECK(batch.prefills[0].row_begin == 1);
  CHECK(batch.prefills[0].row_end == 4);
  CHECK(batch.prefills[0].context_len == 5);
  // Every index tensor begins where one of its own would: at 256 bytes.
  for (const Tensor& t : {batch.positions, batch.slots, batch.all.context_len}) {
    CHECK((t.as<int32_t>() - memory.data()) % 64 == 0);
  }
}

TEST_CASE("a step's numbers under DP attention: own sequences only, everybody's counts") {
  StepPlan plan;
  plan.slices = {slice_of(0, 0, {1, 2}, {0}, false), slice_of(1, 3, {9}, {1}, true)};
  const StepBatch host(plan, {1, 2, true}, 4, /*table_width=*/3);
  std::vector<int32_t> memory;
  const ModelBatch batch = place(host, memory);
  CHECK(ints(batch.token_ids) == std::vector<int32_t>{9});
  CHECK(batch.tokens_per_rank == std::vector<int64_t>{2, 1});
  CHECK(batch.logits_per_rank == std::vector<int64_t>{1, 1});
  CHECK(ints(batch.all.block_tables) == std::vector<int32_t>{1, 0, 0});
}

TEST_CASE("a step's numbers: which tokens are samples of the step before, of this rank's sequences") {
  StepPlan plan;
  plan.slices = {slice_of(0, 5, {0}, {7, 2}, true), slice_of(0, 2, {60, 61}, {9}, false)};
  plan.slices[0].from_sample = 3;
  std::vector<int32_t> memory;
  const StepBatch all(plan, {0, 1, false}, 4);
  const ModelBatch batch = place(all, memory);
  const Tensor on_device(memory.data(), DType::kI32, {static_cast<int64_t>(memory.size())});
  CHECK(all.has_sources());
  CHECK(ints(all.sources(on_device)) == std::vector<int32_t>{3, -1, -1});
  CHECK(batch.token_ids.num_elements() == 3);
  plan.slices.push_back(slice_of(1, 5, {0}, {7, 2}, true));
  CHECK(StepBatch(plan, {0, 2, true}, 4).has_sources());
  CHECK_FALSE(StepBatch(plan, {1, 2, true}, 4).has_sources());
}

TEST_CASE("a plan that would leave the cache or the ranks is a bug with a name") {
  const auto make = [](const SequenceSlice& slice) {
    StepPlan plan;
    plan.slices = {slice};
    return StepBatch(plan, {0, 2, true}, /*page_size=*/4);
  };
  CHECK_NOTHROW(make(slice_of(1, 7, {1}, {0, 1}, true)));
  CHECK_THROWS_AS(make(slice_of(1, 8, {1}, {0, 1}, true)), Bug);       // one past its pages
  CHECK_THROWS_AS(make(slice_of(0, 0, {1, 2, 3, 4, 5}, {0}, false)), Bug);
  CHECK_THROWS_AS(make(slice_of(0, -1, {1}, {0}, false)), Bug);
  CHECK_THROWS_AS(make(slice_of(2, 0, {1}, {0}, false)), Bug);         // two ranks
  CHECK_THROWS_AS(make(slice_of(-1, 0, {1}, {0}, false)), Bug);
}

TEST_CASE("decode buckets grow so that padding stays small, and end at what is asked for") {
  CHECK(decode_buckets(1) == std::vector<int64_t>{1});
  CHECK(decode_buckets(5) == std::vector<int64_t>{1, 2, 4, 5});
  CHECK(decode_buckets(40) == std::vector<int64_t>{1, 2, 4, 8, 16, 24, 32, 40});
  const std::vector<int64_t> most = decode_buckets(100000);
  CHECK(most.back() == 256);
  for (size_t i = 1; i < most.size(); ++i) {
    CHECK(most[i] > most[i - 1]);
    CHECK(most[i] <= 2 * most[i - 1]);
  }
}

}  // namespace
}  // namespace shoal

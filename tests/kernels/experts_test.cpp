// sort_by_expert and combine.
#include <catch2/catch.hpp>

#include "tests/kernels/support/reference.h"
#include "tests/kernels/support/test_data.h"

namespace shoal::test {
namespace {

std::vector<int32_t> ints_of(const HostTensor& t, int64_t n) {
  return {t.view().as<int32_t>(), t.view().as<int32_t>() + n};
}

}  // namespace

TEST_CASE("sort_by_expert: by expert, then token, then choice; others get -1", "[experts]") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const HostTensor ids = HostTensor::ints({4, 3}, {5, 2, 9, 3, 5, -1, 2, 4, 3, 5, 3, 0});
  HostTensor source(DType::kI32, {12}), slot(DType::kI32, {4, 3}), offsets(DType::kI32, {5});
  CHECK(ops->sort_by_expert(ids, 2, source, slot, offsets) == 9);
  CHECK(ints_of(offsets, 5) == std::vector<int32_t>{0, 2, 5, 6, 9});
  CHECK(ints_of(source, 9) == std::vector<int32_t>{0, 2, 1, 2, 3, 2, 0, 1, 3});
  CHECK(ints_of(slot, 12) == std::vector<int32_t>{6, 0, -1, 2, 7, -1, 1, 5, 3, 8, 4, -1});

  CHECK(ops->sort_by_expert(ids, 100, source, slot, offsets) == 0);
  CHECK(ints_of(offsets, 5) == std::vector<int32_t>(5, 0));
  CHECK(ints_of(slot, 12) == std::vector<int32_t>(12, -1));

  HostTensor none(DType::kI32, {0, 3}), no_source(DType::kI32, {0});
  CHECK(ops->sort_by_expert(none, 0, no_source, none, offsets) == 0);
  CHECK(ints_of(offsets, 5) == std::vector<int32_t>(5, 0));
}

TEST_CASE("sort_by_expert: a stable sort of random choices", "[experts]") {
  Random random(1);
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const int64_t tokens = 97, top_k = 6, experts = 20;
  HostTensor ids(DType::kI32, {tokens, top_k});
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    ids.view().as<int32_t>()[i] = static_cast<int32_t>(random.below(40));
  }
  HostTensor source(DType::kI32, {tokens * top_k}), slot(DType::kI32, {tokens, top_k}),
      offsets(DType::kI32, {experts + 1});
  const int64_t rows = ops->sort_by_expert(ids, 10, source, slot, offsets);
  int64_t row = 0;
  bool right = true;
  for (int32_t e = 10; e < 30; ++e) {
    right &= offsets.view().as<int32_t>()[e - 10] == row;
    for (int64_t i = 0; i < tokens * top_k; ++i) {
      if (ids.view().as<int32_t>()[i] != e) continue;
      right &= source.view().as<int32_t>()[row] == i / top_k;
      right &= slot.view().as<int32_t>()[i] == row++;
    }
  }
  CHECK(right);
  CHECK(rows == row);
  CHECK(offsets.view().as<int32_t>()[experts] == row);
}

TEST_CASE("combine: weighted sum in the order of the choices, -1 skipped", "[experts]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(2);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const int64_t dim : {1, 15, 16, 33, 256}) {
      const HostTensor rows = random.tensor(DType::kF32, {8, dim});
      const HostTensor slot =
          HostTensor::ints({5, 3}, {0, 7, 3, -1, 2, -1, -1, -1, -1, 5, 5, 5, 1, -1, 6});
      const HostTensor weights = random.tensor(DType::kF32, {5, 3});
      HostTensor out = random.tensor(DType::kF32, {5, dim});
      ops->combine(rows, slot, weights, out);
      CHECK(first_violation(out, combine(rows, slot, weights)) == "");
    }
  });
}

}  // namespace shoal::test

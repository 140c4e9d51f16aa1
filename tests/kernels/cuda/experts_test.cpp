// What stands between the router's logits and the model's output on the device: route,
// sort_by_expert, combine, and all of them in one captured graph.
#include <cmath>
#include <cstring>

#include "tests/kernels/cuda/cuda_case.h"

namespace shoal::test {
namespace {

std::vector<int32_t> ints_of(const HostTensor& t) {
  const auto* p = t.view().as<int32_t>();
  return {p, p + t.view().num_elements()};
}

HostTensor floats(std::initializer_list<int64_t> dims, const std::vector<float>& v) {
  HostTensor t(DType::kF32, dims);
  std::copy(v.begin(), v.end(), t.view().as<float>());
  return t;
}

HostTensor random_ids(Random& random, int64_t tokens, int64_t top_k, int64_t experts) {
  HostTensor ids(DType::kI32, {tokens, top_k});
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    // One in eight is held nowhere, as a padding row's choices are.
    ids.view().as<int32_t>()[i] =
        random.below(8) == 0 ? -1 : static_cast<int32_t>(random.below(experts));
  }
  return ids;
}

struct Sorted {
  std::vector<int32_t> source, slot, offsets;
};

// By the contract's words: by expert, then token, then choice.
Sorted sorted_by_expert(const std::vector<int32_t>& ids, int64_t top_k, int32_t first,
                        int32_t experts) {
  Sorted result;
  result.slot.assign(ids.size(), -1);
  std::vector<std::vector<int32_t>> pairs(experts);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] >= first && ids[i] < first + experts)
      pairs[ids[i] - first].push_back(i);
  }
  for (const auto& of_expert : pairs) {
    result.offsets.push_back(static_cast<int32_t>(result.source.size()));
    for (const int32_t i : of_expert) {
      result.slot[i] = static_cast<int32_t>(result.source.size());
      result.source.push_back(static_cast<int32_t>(i / top_k));
    }
  }
  result.offsets.push_back(static_cast<int32_t>(result.source.size()));
  result.source.resize(ids.size(), 0);
  return result;
}

void check_sort(const HostTensor& ids, int32_t first, int32_t experts) {
  const int64_t tokens = ids.view().dim(0), top_k = ids.view().dim(1);
  HostTensor garbage(DType::kI32, {tokens * top_k});
  std::memset(garbage.memory().data(), 0xff, garbage.memory().size());
  OnDevice source(garbage), slot(ids), offsets(HostTensor(DType::kI32, {experts + 1}));
  CHECK(cuda_ops().sort_by_expert(OnDevice(ids), first, source, slot, offsets) == tokens * top_k);
  const Sorted expected = sorted_by_expert(ints_of(ids), top_k, first, experts);
  CHECK(ints_of(offsets.host()) == expected.offsets);
  // Compared as wholes: Catch would print both in full.
  CHECK((ints_of(slot.host()) == expected.slot));
  CHECK((ints_of(source.host()) == expected.source));
}

}  // namespace

TEST_CASE("cuda sort_by_expert: by expert, then token, then choice; others get -1",
          "[cuda][experts]") {
  for_each_schedule([] {
    const HostTensor ids = HostTensor::ints({4, 3}, {5, 2, 9, 3, 5, -1, 2, 4, 3, 5, 3, 0});
    OnDevice source(HostTensor(DType::kI32, {12})), slot(HostTensor(DType::kI32, {4, 3})),
        offsets(HostTensor(DType::kI32, {5}));
    CHECK(cuda_ops().sort_by_expert(OnDevice(ids), 2, source, slot, offsets) == 12);
    CHECK(ints_of(offsets.host()) == std::vector<int32_t>{0, 2, 5, 6, 9});
    CHECK(ints_of(source.host()) == std::vector<int32_t>{0, 2, 1, 2, 3, 2, 0, 1, 3, 0, 0, 0});
    CHECK(ints_of(slot.host()) == std::vector<int32_t>{6, 0, -1, 2, 7, -1, 1, 5, 3, 8, 4, -1});
    check_sort(ids, 100, 4);
    check_sort(ids, -3, 4);  // negative ids are foreign whatever the range
    check_sort(ids, 0, 0);
    check_sort(HostTensor(DType::kI32, {0, 3}), 0, 4);
  });
}

TEST_CASE("cuda sort_by_expert: random choices, in one block and in many", "[cuda][experts]") {
  for_each_schedule([] {
    Random random(1);
    for (const auto& [tokens, top_k, all, first, experts] :
         std::vector<std::tuple<int, int, int, int, int>>{{1, 1, 1, 0, 1},
                                                          {1, 8, 256, 0, 256},
                                                          {31, 6, 64, 10, 20},
                                                          {97, 6, 40, 10, 20},
                                                          {256, 8, 256, 0, 256},
                                                          {257, 8, 256, 128, 64},
                                                          {300, 7, 700, 0, 700},
                                                          {1000, 2, 1024, 0, 1024},
                                                          {3000, 8, 64, 8, 32}}) {
      INFO(tokens << " tokens, " << top_k << " of " << all << ", here " << experts);
      check_sort(random_ids(random, tokens, top_k, all), first, experts);
    }
    // All to one expert, and none at all here.
    check_sort(HostTensor(DType::kI32, {700, 3}), 0, 2);
    check_sort(HostTensor(DType::kI32, {700, 3}), 1, 2);
  });
}

TEST_CASE("cuda combine: weighted sum in the order of the choices, -1 skipped", "[cuda][experts]") {
  for_each_schedule([] {
    Random random(2);
    for (const DType from : kActivations) {
      for (const DType to : kActivations) {
        for (const int64_t dim : {1, 15, 16, 33, 256}) {
          for (const int64_t gap : {0, 3, 8}) {
            HostTensor rows = HostTensor::strided(from, 8, dim, gap);
            std::memset(rows.memory().data(), 0xff, rows.memory().size());
            random.fill(rows);
            const HostTensor slot =
                HostTensor::ints({5, 3}, {0, 7, 3, -1, 2, -1, -1, -1, -1, 5, 5, 5, 1, -1, 6});
            const HostTensor weights = random.tensor(DType::kF32, {5, 3});
            OnDevice out(random.tensor(to, {5, dim}));
            cuda_ops().combine(OnDevice(rows), OnDevice(slot), OnDevice(weights), out);
            CHECK(first_violation(out.host(), stored_as(combine(rows, slot, weights), to)) == "");
          }
        }
      }
    }
    OnDevice none(HostTensor(DType::kF32, {0, 8}));
    cuda_ops().combine(OnDevice(random.tensor(DType::kF32, {4, 8})),
                       OnDevice(HostTensor(DType::kI32, {0, 3})),
                       OnDevice(HostTensor(DType::kF32, {0, 3})), none);
  });
}

TEST_CASE("cuda route: each kind against the reference", "[cuda][router]") {
  for_each_schedule([] {
    Random random(3);
    for (const RouterKind kind : {RouterKind::kGreedySoftmax, RouterKind::kGroupLimitedSoftmax,
                                  RouterKind::kNoauxTcSigmoid}) {
      for (const auto& [experts, top_k, groups, kept] :
           std::vector<std::tuple<int, int, int, int>>{{64, 6, 1, 1},
                                                       {160, 6, 8, 3},
                                                       {256, 8, 8, 4},
                                                       {16, 3, 4, 2},
                                                       {9, 2, 3, 1},
                                                       {12, 5, 12, 7},
                                                       {5, 5, 1, 1},
                                                       {1, 1, 1, 1},
                                                       {1024, 32, 32, 5}}) {
        for (const bool norm : {false, true}) {
          for (const int64_t tokens : {0, 1, 7}) {
            INFO("kind " << static_cast<int>(kind) << " experts " << experts << " norm " << norm);
            const RouterSpec spec{kind, top_k, groups, kept, norm, 2.5f};
            HostTensor logits = HostTensor::strided(DType::kF32, tokens, experts, 5);
            std::memset(logits.memory().data(), 0xff, logits.memory().size());
            random.fill(logits, 2);
            HostTensor bias;
            if (kind == RouterKind::kNoauxTcSigmoid) {
              bias = random.tensor(DType::kF32, {experts}, 0.3f);
            }
            OnDevice ids(HostTensor(DType::kI32, {tokens, top_k}));
            OnDevice weights(HostTensor::strided(DType::kF32, tokens, top_k, 2));
            cuda_ops().route(OnDevice(logits),
                             bias.view().defined() ? OnDevice(bias).view() : Tensor(), spec, ids,
                             weights);
            const Routed expected = route(logits, bias, spec);
            CHECK(ints_of(ids.host()) == expected.ids);
            CHECK(first_violation(weights.host(), expected.weights) == "");
          }
        }
      }
    }
  });
}

TEST_CASE("cuda route: among equals the lower expert wins", "[cuda][router]") {
  for_each_schedule([] {
    const OnDevice logits(floats({1, 8}, {1, 3, 3, 0, 3, 1, 1, 3}));
    OnDevice ids(HostTensor(DType::kI32, {1, 5})), weights(HostTensor(DType::kF32, {1, 5}));
    const auto routed = [&](const RouterSpec& spec) {
      cuda_ops().route(logits, {}, spec, ids, weights);
      return ints_of(ids.host());
    };
    CHECK(routed({RouterKind::kGreedySoftmax, 5, 1, 1, false, 1}) ==
          std::vector<int32_t>{1, 2, 4, 7, 0});
    // Groups {1,3} {3,0} {3,1} {1,3}: all have the best member 3, the first two stay. Then the
    // masked experts, all -infinity, follow in the order of their indices.
    CHECK(routed({RouterKind::kGroupLimitedSoftmax, 5, 4, 2, false, 1}) ==
          std::vector<int32_t>{1, 2, 0, 3, 4});
    // Ties across all lanes and steps of a warp.
    OnDevice many(HostTensor(DType::kI32, {2, 32})), much(HostTensor(DType::kF32, {2, 32}));
    cuda_ops().route(OnDevice(HostTensor(DType::kF32, {2, 100})), {},
                     {RouterKind::kGreedySoftmax, 32, 1, 1, true, 1}, many, much);
    std::vector<int32_t> expected;
    for (int32_t i = 0; i < 64; ++i) expected.push_back(i % 32);
    CHECK(ints_of(many.host()) == expected);
  });
}

TEST_CASE("cuda route: a masked group is out even if every kept score is negative",
          "[cuda][router]") {
  for_each_schedule([] {
    const OnDevice logits(HostTensor(DType::kF32, {1, 6}));
    // Two groups of three; all choices are negative. Group 0 scores -1 - 1, group 1 -2 - 3.
    const OnDevice bias(floats({6}, {-1.5f, -1.5f, -9, -2.5f, -3.5f, -4}));
    OnDevice ids(HostTensor(DType::kI32, {1, 3})), weights(HostTensor(DType::kF32, {1, 3}));
    cuda_ops().route(logits, bias, {RouterKind::kNoauxTcSigmoid, 3, 2, 1, true, 1}, ids, weights);
    CHECK(ints_of(ids.host()) == std::vector<int32_t>{0, 1, 2});
    const HostTensor w = weights.host();
    for (int j = 0; j < 3; ++j) CHECK(w.view().as<float>()[j] == Approx(1.0 / 3).epsilon(1e-6));
    // A group whose members are at -infinity, and one choice more than the kept group has.
    const OnDevice low(floats({6}, {-INFINITY, -INFINITY, -INFINITY, -1, -2, -3}));
    OnDevice four(HostTensor(DType::kI32, {1, 4})), w4(HostTensor(DType::kF32, {1, 4}));
    cuda_ops().route(logits, low, {RouterKind::kNoauxTcSigmoid, 4, 2, 1, false, 1}, four, w4);
    CHECK(ints_of(four.host()) == std::vector<int32_t>{3, 4, 5, 0});
  });
}

TEST_CASE("cuda route: a group is scored by its two best in noaux_tc, by its best in group_limited",
          "[cuda][router]") {
  for_each_schedule([] {
    const OnDevice logits(floats({1, 4}, {3, -3, 2, 2}));
    OnDevice ids(HostTensor(DType::kI32, {1, 1})), weights(HostTensor(DType::kF32, {1, 1}));
    cuda_ops().route(logits, {}, {RouterKind::kNoauxTcSigmoid, 1, 2, 1, false, 1}, ids, weights);
    CHECK(ints_of(ids.host()) == std::vector<int32_t>{2});
    cuda_ops().route(logits, {}, {RouterKind::kGroupLimitedSoftmax, 1, 2, 1, false, 1}, ids,
                     weights);
    CHECK(ints_of(ids.host()) == std::vector<int32_t>{0});
  });
}

TEST_CASE("cuda route: NaN logits give distinct experts and NaN weights", "[cuda][router]") {
  for_each_schedule([] {
    const float nan = std::nanf("");
    const OnDevice logits(floats({2, 4}, {nan, 1, -nan, 2, nan, nan, nan, nan}));
    OnDevice ids(HostTensor(DType::kI32, {2, 4})), weights(HostTensor(DType::kF32, {2, 4}));
    cuda_ops().route(logits, {}, {RouterKind::kNoauxTcSigmoid, 4, 1, 1, true, 1}, ids, weights);
    CHECK(ints_of(ids.host()) == std::vector<int32_t>{0, 2, 3, 1, 0, 1, 2, 3});
    CHECK(std::isnan(weights.host().view().as<float>()[0]));
  });
}

TEST_CASE("cuda experts: route, sort, gather and combine in a graph, with other inputs each time",
          "[cuda][experts]") {
  for_each_schedule([] {
    Random random(4);
    const int64_t tokens = 300, experts = 32, top_k = 8, dim = 24;
    const RouterSpec spec{RouterKind::kGreedySoftmax, 8, 1, 1, true, 1};
    OnDevice logits(HostTensor(DType::kF32, {tokens, experts})),
        x(HostTensor(DType::kBF16, {tokens, dim})), ids(HostTensor(DType::kI32, {tokens, top_k})),
        weights(HostTensor(DType::kF32, {tokens, top_k})),
        source(HostTensor(DType::kI32, {tokens * top_k})),
        slot(HostTensor(DType::kI32, {tokens, top_k})),
        offsets(HostTensor(DType::kI32, {experts + 1})),
        rows(HostTensor(DType::kBF16, {tokens * top_k, dim})),
        out(HostTensor(DType::kBF16, {tokens, dim}));
    const auto step = [&] {
      cuda_ops().route(logits, {}, spec, ids, weights);
      cuda_ops().sort_by_expert(ids, 0, source, slot, offsets);
      cuda_ops().gather_rows(x, source, rows);
      cuda_ops().combine(rows, slot, weights, out);
    };
    step();  // the scratch memory grows before the capture
    const std::unique_ptr<DeviceGraph> graph = cuda_device().capture(step);
    for (int i = 0; i < 2; ++i) {
      const HostTensor new_logits = random.tensor(DType::kF32, {tokens, experts});
      const HostTensor new_x = random.tensor(DType::kBF16, {tokens, dim});
      cuda_device().copy_to_device(logits.view().data, new_logits.view().data,
                                   new_logits.memory().size());
      cuda_device().copy_to_device(x.view().data, new_x.view().data, new_x.memory().size());
      graph->launch();
      // Experts that hand back their input: the sum of a token's weights, 1, times its row.
      Expected expected;
      for (const double v : values(new_x)) expected.push(v, std::fabs(v) * 1e-5);
      CHECK(first_violation(out.host(), stored_as(expected, DType::kBF16)) == "");
    }
  });
}

TEST_CASE("cuda expert verbs refuse tensors that do not fit", "[cuda][experts]") {
  Ops& ops = cuda_ops();
  const OnDevice logits(HostTensor(DType::kF32, {2, 8})), ids(HostTensor(DType::kI32, {2, 3})),
      weights(HostTensor(DType::kF32, {2, 3})), few(HostTensor(DType::kI32, {5})),
      offsets(HostTensor(DType::kI32, {9})), rows(HostTensor(DType::kF32, {6, 4})),
      wide(HostTensor(DType::kF32, {2, 5}));
  const RouterSpec spec{RouterKind::kGroupLimitedSoftmax, 3, 3, 1, false, 1};
  CHECK_THROWS_AS(ops.route(logits, {}, spec, ids, weights), Bug);  // 8 experts in 3 groups
  CHECK_THROWS_AS(ops.route(logits, {}, {RouterKind::kGreedySoftmax, 9}, ids, weights), Bug);
  CHECK_THROWS_AS(ops.route(logits, few, {RouterKind::kGreedySoftmax, 3}, ids, weights), Bug);
  CHECK_THROWS_AS(ops.route(ids, {}, {RouterKind::kGreedySoftmax, 3}, ids, weights), Bug);
  CHECK_THROWS_AS(ops.sort_by_expert(ids, 0, few, ids, offsets), Bug);
  CHECK_THROWS_AS(ops.sort_by_expert(ids, 0, offsets, ids, ids), Bug);
  CHECK_THROWS_AS(ops.combine(rows, ids, weights, wide), Bug);
  CHECK_THROWS_AS(ops.combine(rows, ids, wide, rows), Bug);
}

}  // namespace shoal::test

// route against the reference, and its rules for ties and masked groups by hand.
#include <catch2/catch.hpp>

#include "tests/kernels/support/reference.h"
#include "tests/kernels/support/test_data.h"

namespace shoal::test {
namespace {

std::vector<int32_t> ids_of(const HostTensor& t) {
  const auto* p = t.view().as<int32_t>();
  return {p, p + t.view().num_elements()};
}

HostTensor row(const std::vector<float>& v) {
  HostTensor t(DType::kF32, {1, static_cast<int64_t>(v.size())});
  std::copy(v.begin(), v.end(), t.view().as<float>());
  return t;
}

}  // namespace

TEST_CASE("route: each kind against the reference", "[router]") {
  for_each_target([](const std::string& name) {
    Random random(1);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const RouterKind kind : {RouterKind::kGreedySoftmax, RouterKind::kGroupLimitedSoftmax,
                                  RouterKind::kNoauxTcSigmoid}) {
      for (const auto& [experts, top_k, groups, kept] :
           std::vector<std::tuple<int, int, int, int>>{{64, 6, 1, 1},
                                                       {160, 6, 8, 3},
                                                       {256, 8, 8, 4},
                                                       {16, 3, 4, 2},
                                                       {9, 2, 3, 1},
                                                       {5, 5, 1, 1}}) {
        for (const bool norm : {false, true}) {
          for (const int64_t tokens : {0, 1, 33}) {
            INFO(name << " kind " << static_cast<int>(kind) << " experts " << experts << " norm "
                      << norm);
            const RouterSpec spec{kind, top_k, groups, kept, norm, 2.5f};
            const HostTensor logits = random.tensor(DType::kF32, {tokens, experts}, 2);
            HostTensor bias;
            if (kind == RouterKind::kNoauxTcSigmoid)
              bias = random.tensor(DType::kF32, {experts}, 0.3f);
            HostTensor ids(DType::kI32, {tokens, top_k}), weights(DType::kF32, {tokens, top_k});
            ops->route(logits, bias, spec, ids, weights);
            const Routed expected = route(logits, bias, spec);
            CHECK(ids_of(ids) == expected.ids);
            CHECK(first_violation(weights, expected.weights) == "");
          }
        }
      }
    }
  });
}

TEST_CASE("route: among equals the lower expert wins", "[router]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const HostTensor logits = row({1, 3, 3, 0, 3, 1, 1, 3});
    HostTensor ids(DType::kI32, {1, 5}), weights(DType::kF32, {1, 5});
    ops->route(logits, {}, {RouterKind::kGreedySoftmax, 5, 1, 1, false, 1}, ids, weights);
    CHECK(ids_of(ids) == std::vector<int32_t>{1, 2, 4, 7, 0});
    // Groups {1,3} {3,0} {3,1} {1,3}: all have the best member 3, the first two stay.
    ops->route(logits, {}, {RouterKind::kGroupLimitedSoftmax, 5, 4, 2, false, 1}, ids, weights);
    CHECK(ids_of(ids) == std::vector<int32_t>{1, 2, 0, 3, 4});
  });
}

TEST_CASE("route: a masked group is out even if every kept score is negative", "[router]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const HostTensor logits = row({0, 0, 0, 0, 0, 0});
    HostTensor bias(DType::kF32, {6});
    // Two groups of three; all choices are negative. Group 0 scores -1 - 1, group 1 -2 - 3. Were a
    // masked expert given 0, it would beat every expert that is kept.
    const float values[] = {-1.5f, -1.5f, -9, -2.5f, -3.5f, -4};
    std::copy(values, values + 6, bias.view().as<float>());
    HostTensor ids(DType::kI32, {1, 3}), weights(DType::kF32, {1, 3});
    ops->route(logits, bias, {RouterKind::kNoauxTcSigmoid, 3, 2, 1, true, 1}, ids, weights);
    CHECK(ids_of(ids) == std::vector<int32_t>{0, 1, 2});
    for (int j = 0; j < 3; ++j) {
      CHECK(weights.view().as<float>()[j] == Approx(1.0 / 3).epsilon(1e-6));
    }
  });
}

TEST_CASE("route: a group is scored by its two best in noaux_tc, by its best in group_limited",
          "[router]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const HostTensor logits = row({3, -3, 2, 2});
    HostTensor ids(DType::kI32, {1, 1}), weights(DType::kF32, {1, 1});
    ops->route(logits, {}, {RouterKind::kNoauxTcSigmoid, 1, 2, 1, false, 1}, ids, weights);
    CHECK(ids_of(ids) == std::vector<int32_t>{2});
    ops->route(logits, {}, {RouterKind::kGroupLimitedSoftmax, 1, 2, 1, false, 1}, ids, weights);
    CHECK(ids_of(ids) == std::vector<int32_t>{0});
  });
}

}  // namespace shoal::test

// Quantised KV caches: what write_cache stores and gather_cache reads back.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/kernels/support/host_cache.h"
#include "tests/kernels/support/reference.h"

namespace shoal::test {
namespace {

constexpr DType kCodes[] = {DType::kF8E4M3, DType::kI8};

// Writes tokens to slots in an order of their own and compares codes and scales with the reference,
// which rounds as the kernels: equal bits.
void check_write_and_gather(Ops& ops, Random& random, DType type, int64_t groups, int64_t group,
                            int64_t rope) {
  INFO(dtype_name(type) << " " << groups << " groups of " << group << ", rope " << rope);
  const int32_t page_size = 4;
  const int64_t n = groups * group, tokens = 13;
  const HostCache cache = random_cache(random, type, 8 * page_size, n, groups, rope);
  const HostCache before = cache.clone();
  const std::vector<int32_t> pages = random.permutation(8);
  std::vector<int32_t> slots;
  for (int64_t p = 3; p < 3 + tokens; ++p) {
    slots.push_back(pages[p / page_size] * page_size + static_cast<int32_t>(p % page_size));
  }
  HostTensor x = HostTensor::strided(DType::kF32, tokens, n + rope, 3);
  for (int64_t t = 0; t < tokens; ++t) {
    // From far below to far above what the codes themselves hold.
    random.fill(x.view().slice(0, t, t + 1), std::exp2(static_cast<float>(5 * (t - 6))));
  }
  std::memset(x.view().row<float>(5), 0, n * sizeof(float));
  ops.write_cache(x, HostTensor::ints({tokens}, slots), cache);

  Expected rows;
  std::vector<bool> written(8 * page_size, false);
  for (int64_t t = 0; t < tokens; ++t) {
    written[slots[t]] = true;
    const float* row = x.view().row<float>(t);
    for (int64_t g = 0; g < groups; ++g) {
      const Group expected = quantised(type, {row + g * group, row + (g + 1) * group});
      CHECK(cache.scale.view().row<float>(slots[t])[g] == expected.scale);
      const auto* codes = cache.data.view().row<uint8_t>(slots[t]) + g * group;
      CHECK(std::memcmp(codes, expected.codes.data(), group) == 0);
      // Half a step of the code: int8 half a scale; e4m3 2^-4 of the value, or 2^-10 scales where
      // its codes are subnormal. And the roundings of the quotient and the product.
      for (int64_t i = 0; i < group; ++i) {
        const double v = row[g * group + i];
        const double step = type == DType::kI8
                                ? 0.5 * expected.scale
                                : std::max(std::fabs(v) / 16, double{expected.scale} * 0x1p-10);
        rows.push(v, step + std::fabs(v) * 4 * kEps);
      }
    }
    for (int64_t i = 0; i < rope; ++i) rows.push(to_float(to_bf16(row[n + i])), 0);
  }
  HostTensor out(DType::kF32, {tokens, n + rope});
  ops.gather_cache(cache, HostTensor::ints({8}, pages), page_size, 3, 3 + tokens, out);
  CHECK(first_violation(out, rows) == "");
  for (int64_t slot = 0; slot < 8 * page_size; ++slot) {
    if (written[slot]) continue;  // the others are as they were
    CHECK(std::memcmp(cache.data.view().row<uint8_t>(slot), before.data.view().row<uint8_t>(slot),
                      n) == 0);
  }
}

TEST_CASE("write_cache to codes and gather_cache back, in equal bits on every target", "[cache]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(11);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const DType type : kCodes) {
      check_write_and_gather(*ops, random, type, 1, 512, 64);
      check_write_and_gather(*ops, random, type, 1, 33, 6);
      check_write_and_gather(*ops, random, type, 3, 7, 0);
      check_write_and_gather(*ops, random, type, 2, 128, 0);
      check_write_and_gather(*ops, random, type, 1, 1, 1);
    }
  });
}

TEST_CASE("write_cache to FP8 rounds as to_f8e4m3 does", "[cache]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    // 448 among the values makes the scale 1: each is then rounded as it is.
    std::vector<float> values = {448.0f};
    for (int code = 0; code < 0x7e; ++code) {
      const float low = to_float(F8E4M3{static_cast<uint8_t>(code)});
      const float high = to_float(F8E4M3{static_cast<uint8_t>(code + 1)});
      const float middle = (low + high) / 2;  // a tie
      for (const float v : {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 500.0f)}) {
        values.push_back(v);
        values.push_back(-v);
      }
    }
    const auto n = static_cast<int64_t>(values.size());
    HostTensor x(DType::kF32, {1, n});
    std::memcpy(x.view().data, values.data(), n * sizeof(float));
    Random random(1);
    const HostCache cache = random_cache(random, DType::kF8E4M3, 1, n);
    ops->write_cache(x, HostTensor::ints({1}, {0}), cache);
    CHECK(cache.scale.view().as<float>()[0] == 1.0f);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      wrong += cache.data.view().as<uint8_t>()[i] != to_f8e4m3(values[i]).bits;
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("a group with an infinity or a NaN reads as NaN, and no other", "[cache]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    Random random(12);
    for (const DType type : kCodes) {
      for (const float bad : {std::numeric_limits<float>::infinity(), -std::nanf("")}) {
        const HostCache cache = random_cache(random, type, 2, 40, 2);
        const HostTensor x = random.tensor(DType::kF32, {2, 40});
        x.view().row<float>(1)[25] = bad;
        ops->write_cache(x, HostTensor::ints({2}, {0, 1}), cache);
        HostTensor out(DType::kF32, {2, 40});
        ops->gather_cache(cache, HostTensor::ints({1}, {0}), 2, 0, 2, out);
        for (int64_t i = 0; i < 80; ++i) CHECK(std::isnan(out.view().as<float>()[i]) == (i >= 60));
      }
    }
  });
}

TEST_CASE("caches that do not fit are refused", "[cache]") {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  Random random(13);
  const HostTensor x = random.tensor(DType::kF32, {1, 8}), slot = HostTensor::ints({1}, {0});
  const HostCache good = random_cache(random, DType::kI8, 4, 8, 2);
  CHECK_NOTHROW(ops->write_cache(x, slot, good));
  CacheTensor bad = good;
  bad.scale = {};
  CHECK_THROWS_AS(ops->write_cache(x, slot, bad), Bug);
  bad = good;
  bad.scale = bad.scale.slice(0, 0, 3);
  CHECK_THROWS_AS(ops->write_cache(x, slot, bad), Bug);
  bad = good;
  bad.data = random.tensor(DType::kF16, {4, 8});
  CHECK_THROWS_AS(ops->write_cache(x, slot, bad), Bug);
  const HostTensor wide = random.tensor(DType::kF32, {4, 3});
  bad = good;
  bad.scale = wide;
  CHECK_THROWS_AS(ops->write_cache(x, slot, bad), Bug);
  bad = good;
  bad.rope = wide;
  CHECK_THROWS_AS(ops->write_cache(x, slot, bad), Bug);
}

}  // namespace
}  // namespace shoal::test

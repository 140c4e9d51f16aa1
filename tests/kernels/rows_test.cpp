// Verbs that work row by row: embedding, copy, norms, add, silu_mul, rope, the cache, gather_rows.
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/kernels/support/reference.h"
#include "tests/kernels/support/test_data.h"

namespace shoal::test {
namespace {

const std::vector<int64_t> kRows = {0, 1, 2, 3, 5, 16, 33};
const std::vector<int64_t> kDims = {1, 7, 16, 31, 64, 200};

Expected exactly(std::vector<double> value) {
  std::vector<double> bound(value.size(), 0.0);
  return {std::move(value), std::move(bound)};
}

}  // namespace

TEST_CASE("embedding: rows of every type, zeros for rows held elsewhere", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(1);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const auto& [type, asymmetric] : weight_formats()) {
      for (const int64_t dim : kDims) {
        if (type == DType::kI4x2 && dim % 2 == 1) continue;
        INFO(to_string({type, asymmetric}) << " dim " << dim);
        const HostWeight table = random_weight(random, type, 10, dim, 16, 0, 0, asymmetric);
        const HostTensor ids = HostTensor::ints({6}, {20, 29, 25, 19, 30, 0});
        HostTensor out = random.tensor(DType::kF32, {6, dim});
        ops->embedding(ids, table.weight, 20, out);
        std::vector<double> expected;
        for (const int64_t row : {0, 9, 5}) {
          for (int64_t i = 0; i < dim; ++i) expected.push_back(weight_at(table.weight, row, i));
        }
        expected.resize(6 * dim, 0.0);
        CHECK(first_violation(out, exactly(expected)) == "");
      }
    }
  });
}

TEST_CASE("rms_norm and add_rms_norm against the reference", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(2);
    const std::unique_ptr<Ops> ops = make_cpu_ops(3);
    for (const int64_t rows : kRows) {
      for (const int64_t dim : kDims) {
        HostTensor x = HostTensor::strided(DType::kF32, rows, dim, 5);
        random.fill(x);
        const HostTensor weight = random.tensor(DType::kF32, {dim});
        HostTensor out = HostTensor::strided(DType::kF32, rows, dim, 3);
        ops->rms_norm(x, weight, 1e-6f, out);
        const Expected expected = rms_norm(x, weight, 1e-6f);
        CHECK(first_violation(out, expected) == "");

        HostTensor residual = random.tensor(DType::kF32, {rows, dim});
        HostTensor sum = residual.clone();
        std::vector<double> sums = values(residual);
        const std::vector<double> added = values(x);
        for (size_t i = 0; i < sums.size(); ++i) sums[i] = float(sums[i]) + float(added[i]);
        ops->add_rms_norm(x, sum, weight, 1e-6f, out);
        CHECK(first_violation(sum, exactly(sums)) == "");
        CHECK(first_violation(out, rms_norm(sum, weight, 1e-6f)) == "");

        ops->rms_norm(x, weight, 1e-6f, x);  // in place
        CHECK(first_violation(x, expected) == "");
      }
    }
  });
}

TEST_CASE("add and copy are exact", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(3);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const int64_t rows : kRows) {
      for (const int64_t dim : kDims) {
        HostTensor x = HostTensor::strided(DType::kF32, rows, dim, 1);
        random.fill(x);
        HostTensor y = random.tensor(DType::kF32, {rows, dim});
        std::vector<double> expected = values(y);
        const std::vector<double> added = values(x);
        for (size_t i = 0; i < expected.size(); ++i) {
          expected[i] = float(expected[i]) + float(added[i]);
        }
        ops->add(x, y);
        CHECK(first_violation(y, exactly(expected)) == "");
        ops->copy(x, y);
        CHECK(first_violation(y, exactly(added)) == "");
      }
    }
    // Heads of a wider row, both ways.
    HostTensor wide = random.tensor(DType::kF32, {4, 3, 24});
    const Tensor part = wide.view().slice(2, 5, 18);
    HostTensor packed(DType::kF32, {4, 3, 13});
    ops->copy(part, packed);
    CHECK(first_violation(packed, exactly(values(part))) == "");
    const HostTensor fresh = random.tensor(DType::kF32, {4, 3, 13});
    ops->copy(fresh, part);
    CHECK(first_violation(part, exactly(values(fresh))) == "");
    const HostTensor line = random.tensor(DType::kF32, {9});
    HostTensor copied(DType::kF32, {9});
    ops->copy(line, copied);
    CHECK(first_violation(copied, exactly(values(line))) == "");
  });
}

TEST_CASE("silu_mul over the whole range of exp, also in place", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(4);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const int64_t dim : kDims) {
      HostTensor gate = random.tensor(DType::kF32, {5, dim}, 40);
      const HostTensor up = random.tensor(DType::kF32, {5, dim});
      HostTensor out(DType::kF32, {5, dim});
      ops->silu_mul(gate, up, out);
      const Expected expected = silu_mul(gate, up);
      CHECK(first_violation(out, expected) == "");
      ops->silu_mul(gate, up, gate);
      CHECK(first_violation(gate, expected) == "");
    }
    // Densely, so that every piece of the exponential is met.
    HostTensor gate(DType::kF32, {1, 40001}), up(DType::kF32, {1, 40001}), out = up.clone();
    for (int64_t i = 0; i <= 40000; ++i) {
      gate.view().as<float>()[i] = static_cast<float>(i - 20000) * 0.005f;
      up.view().as<float>()[i] = 1;
    }
    ops->silu_mul(gate, up, out);
    CHECK(first_violation(out, silu_mul(gate, up)) == "");
    const float nan = std::nanf("");
    gate.view().as<float>()[0] = nan;
    gate.view().as<float>()[1] = 1e30f;
    gate.view().as<float>()[2] = -1e30f;
    ops->silu_mul(gate, up, out);
    CHECK(std::isnan(out.view().as<float>()[0]));
    CHECK(out.view().as<float>()[1] == 1e30f);
    CHECK(std::fabs(out.view().as<float>()[2]) < 1e-6f);
  });
}

TEST_CASE("rope: both pairings, in place on part of a wider head", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(5);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const int64_t d : {2, 6, 16, 32, 34, 64, 128}) {
      for (const bool interleaved : {true, false}) {
        HostTensor heads = random.tensor(DType::kF32, {5, 3, d + 7});
        const Tensor x = heads.view().slice(2, 4, 4 + d);
        const HostTensor table = random.tensor(DType::kF32, {50, d});
        const HostTensor positions = HostTensor::ints({5}, {0, 49, 3, 3, 17});
        const Expected expected = rope(x, positions, table, interleaved);
        const std::vector<double> before = values(heads.view().slice(2, 0, 4));
        ops->rope(x, positions, table, interleaved);
        CHECK(first_violation(x, expected) == "");
        CHECK(first_violation(heads.view().slice(2, 0, 4), exactly(before)) == "");
      }
    }
  });
}

TEST_CASE("write_cache and gather_cache: both types, part columns, permuted pages", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(6);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const int64_t dim : {1, 7, 16, 48, 65}) {
        const int32_t page_size = 4;
        HostTensor cache = random.tensor(type, {8 * page_size, dim + 9});
        const std::vector<double> before = values(cache);
        const std::vector<int32_t> pages = random.permutation(8);
        const HostTensor table = HostTensor::ints({8}, pages);
        const int64_t tokens = 13;
        std::vector<int32_t> slots;
        for (int64_t p = 3; p < 3 + tokens; ++p) {
          slots.push_back(pages[p / page_size] * page_size + static_cast<int32_t>(p % page_size));
        }
        HostTensor x = HostTensor::strided(DType::kF32, tokens, dim, 2);
        random.fill(x);
        ops->write_cache(x, HostTensor::ints({tokens}, slots), {cache.view().slice(1, 9, 9 + dim)});

        std::vector<double> expected = before;
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < dim; ++i) {
            const float v = x.view().row<float>(t)[i];
            expected[slots[t] * (dim + 9) + 9 + i] = type == DType::kF32 ? v : to_float(to_bf16(v));
          }
        }
        CHECK(first_violation(cache, exactly(expected)) == "");

        HostTensor out(DType::kF32, {tokens, dim + 9});
        ops->gather_cache({cache}, table, page_size, 3, 3 + tokens, out);
        std::vector<double> rows;
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < dim + 9; ++i) rows.push_back(expected[slots[t] * (dim + 9) + i]);
        }
        CHECK(first_violation(out, exactly(rows)) == "");
      }
    }
  });
}

TEST_CASE("write_cache rounds every kind of float32 as to_bf16 does", "[rows]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const int64_t n = 1 << 16;
    HostTensor x(DType::kF32, {1, n}), cache(DType::kBF16, {1, n});
    const HostTensor slot = HostTensor::ints({1}, {0});
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      for (int64_t i = 0; i < n; ++i) {
        x.view().as<uint32_t>()[i] = (static_cast<uint32_t>(i) << 16) | low;
      }
      ops->write_cache(x, slot, {cache});
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i) {
        wrong += cache.view().as<uint16_t>()[i] != to_bf16(x.view().as<float>()[i]).bits;
      }
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("gather_rows copies rows in any order, repeated ones too", "[rows]") {
  Random random(7);
  const std::unique_ptr<Ops> ops = make_cpu_ops(2);
  const HostTensor x = random.tensor(DType::kF32, {5, 37});
  HostTensor out(DType::kF32, {7, 37});
  const std::vector<int32_t> rows = {4, 0, 0, 3, 2, 4, 1};
  ops->gather_rows(x, HostTensor::ints({7}, rows), out);
  std::vector<double> expected;
  for (const int32_t r : rows) {
    for (int64_t i = 0; i < 37; ++i) expected.push_back(value_at(x, r * 37 + i));
  }
  CHECK(first_violation(out, exactly(expected)) == "");
}

TEST_CASE("verbs refuse tensors that do not fit", "[rows]") {
  Random random(8);
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const HostTensor x = random.tensor(DType::kF32, {2, 8}), y = random.tensor(DType::kF32, {2, 9});
  CHECK_THROWS_AS(ops->add(x, y), Bug);
  CHECK_THROWS_AS(ops->copy(x, y), Bug);
  CHECK_THROWS_AS(ops->silu_mul(x, y, y), Bug);
  CHECK_THROWS_AS(ops->rms_norm(x, x, 1e-6f, x), Bug);
  CHECK_THROWS_AS(ops->linear(x, Weight{.data = y}, {}, y), Bug);
  CHECK_THROWS_AS(ops->linear(random.tensor(DType::kBF16, {2, 8}), Weight{.data = x}, {}, x), Bug);
}

}  // namespace shoal::test

// A row's result does not depend on the rows beside it, on the number of threads, or on how a
// prompt was cut: equal in every bit.
#include <catch2/catch.hpp>

#include "tests/kernels/support/host_cache.h"
#include "tests/kernels/support/paged.h"
#include "tests/kernels/support/reference.h"

namespace shoal::test {
namespace {

// The bits of rows [begin, end).
std::vector<std::byte> row_bits(const HostTensor& t, int64_t begin, int64_t end) {
  const std::vector<std::byte> all = t.bytes();
  const int64_t rows = t.view().dim(0), row = static_cast<int64_t>(all.size()) / rows;
  return {all.begin() + begin * row, all.begin() + end * row};
}

// Not ==, which would print every byte.
bool same(const std::vector<std::byte>& a, const std::vector<std::byte>& b) { return a == b; }

void check_mla_decode(const std::string& name, DType type) {
  Random random(3);
  const int64_t heads = 7, lora = 48, rope = 8;
  const PagedCase paged(random, {{1, 70}, {3, 40}, {1, 129}, {1, 1}}, 16);
  INFO(name << " " << dtype_name(type));
  const HostCache cache = random_cache(random, type, paged.num_slots, lora, 1, rope);
  const HostTensor q = random.tensor(DType::kF32, {6, heads, lora + rope});
  HostTensor all(DType::kF32, {6, heads, lora});
  make_cpu_ops(1)->mla_decode(q, cache, paged.batch, 0.2f, all);
  for (const int threads : {1, 2, 5}) {
    const std::unique_ptr<Ops> ops = make_cpu_ops(threads);
    HostTensor out(DType::kF32, {6, heads, lora});
    ops->mla_decode(q, cache, paged.batch, 0.2f, out);
    CHECK(same(out.bytes(), all.bytes()));
    // Row 2 is the middle token of sequence 1: alone it is a sequence with one key fewer.
    const HostTensor start = HostTensor::ints({2}, {0, 1}), context = HostTensor::ints({1}, {39});
    HostTensor one(DType::kF32, {1, heads, lora});
    ops->mla_decode(q.view().slice(0, 2, 3), cache,
                    {16, start, context, paged.batch.block_tables.slice(0, 1, 2)}, 0.2f, one);
    CHECK(same(one.bytes(), row_bits(all, 2, 3)));
  }
}

void check_gqa_attention(const std::string& name, DType type) {
  Random random(4);
  const int32_t context = 75;
  const int64_t heads = 6, kv_heads = 2, dim = 24;
  const PagedCase paged(random, {{context, context}}, 16);
  const HostCache k = random_cache(random, type, paged.num_slots, kv_heads * dim, kv_heads);
  const HostCache v = random_cache(random, type, paged.num_slots, kv_heads * dim, kv_heads);
  const HostTensor q = random.tensor(DType::kF32, {context, heads, dim});
  HostTensor all(DType::kF32, {context, heads, dim});
  make_cpu_ops(1)->gqa_attention(q, k, v, paged.batch, {3, 0, 0}, 0.2f, all);
  for (const int threads : {1, 2, 3}) {
    const std::unique_ptr<Ops> ops = make_cpu_ops(threads);
    for (const int32_t chunk : {1, 7, 32, 75}) {
      INFO(name << " " << dtype_name(type) << " threads " << threads << " chunk " << chunk);
      HostTensor out(DType::kF32, {context, heads, dim});
      for (int32_t begin = 0; begin < context; begin += chunk) {
        const int32_t end = std::min(begin + chunk, context);
        const HostTensor start = HostTensor::ints({2}, {0, end - begin});
        const HostTensor len = HostTensor::ints({1}, {end});
        ops->gqa_attention(q.view().slice(0, begin, end), k, v,
                           {16, start, len, paged.batch.block_tables}, {3, 0, 0}, 0.2f,
                           out.view().slice(0, begin, end));
      }
      CHECK(same(out.bytes(), all.bytes()));
    }
    HostTensor some(DType::kF32, {context, 3, dim});
    ops->gqa_attention(q.view().slice(1, 2, 5), k, v, paged.batch, {3, 2, 0}, 0.2f, some);
    HostTensor expected(DType::kF32, {context, 3, dim});
    ops->copy(all.view().slice(1, 2, 5), expected);
    CHECK(same(some.bytes(), expected.bytes()));
  }
}

}  // namespace

TEST_CASE("linear: a row alone, in any batch, on any number of threads", "[invariance]") {
  for_each_target([](const std::string& name) {
    Random random(1);
    for (const WeightFormat format : weight_formats()) {
      const bool pairs = format.type == DType::kI4x2;
      for (const int32_t offset : {0, pairs ? 6 : 5}) {
        const int64_t n = 131, k = pairs ? 2118 : 2117, most = 150;
        const int32_t block = format.type == DType::kF8E4M3 ? 128 : 16;
        const HostWeight w =
            random_weight(random, format.type, n, k, block, offset, offset, format.min);
        const HostTensor bias = random.tensor(DType::kF32, {n});
        const HostTensor x = random.tensor(DType::kF32, {most, k});
        HostTensor all(DType::kF32, {most, n});
        make_cpu_ops(1)->linear(x, w.weight, bias, all);
        for (const int threads : {1, 2, 3}) {
          const std::unique_ptr<Ops> ops = make_cpu_ops(threads);
          for (const int64_t rows : {1, 2, 3, 4, 5, 16, 33, 149}) {
            INFO(name << " " << to_string(format) << " offset " << offset << " rows " << rows
                      << " threads " << threads);
            HostTensor out(DType::kF32, {rows, n});
            ops->linear(x.view().slice(0, most - rows, most), w.weight, bias, out);
            CHECK(same(out.bytes(), row_bits(all, most - rows, most)));
          }
        }
      }
    }
  });
}

TEST_CASE("grouped_linear and head_linear give the bits of linear", "[invariance]") {
  for_each_target([](const std::string& name) {
    Random random(2);
    const int64_t n = 70, k = 150, rows = 40;
    const HostTensor x = random.tensor(DType::kF32, {rows, k});
    for (const WeightFormat format : weight_formats()) {
      INFO(name << " " << to_string(format));
      std::vector<HostWeight> kept;
      std::vector<Weight> experts;
      for (int e = 0; e < 4; ++e) {
        kept.push_back(random_weight(random, format.type, n, k, 32, 0, 0, format.min));
        experts.push_back(kept.back().weight);
      }
      const std::vector<int32_t> offsets = {0, 1, 1, 17, 40};
      HostTensor grouped(DType::kF32, {rows, n});
      make_cpu_ops(3)->grouped_linear(x, experts, HostTensor::ints({5}, offsets), grouped);
      const std::unique_ptr<Ops> ops = make_cpu_ops(1);
      for (int e = 0; e < 4; ++e) {
        for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
          HostTensor alone(DType::kF32, {1, n});
          ops->linear(x.view().slice(0, r, r + 1), experts[e], {}, alone);
          CHECK(same(alone.bytes(), row_bits(grouped, r, r + 1)));
        }
      }
      if (format.type != DType::kF32 && format.type != DType::kBF16) continue;
      const HostTensor w = random.tensor(format.type, {3, n, k});
      const HostTensor xh = random.tensor(DType::kF32, {rows, 3, k});
      HostTensor heads(DType::kF32, {rows, 3, n});
      make_cpu_ops(2)->head_linear(xh, w, heads);
      for (int64_t r = 0; r < rows; r += 13) {
        HostTensor alone(DType::kF32, {1, 3, n});
        ops->head_linear(xh.view().slice(0, r, r + 1), w, alone);
        CHECK(same(alone.bytes(), row_bits(heads, r, r + 1)));
      }
    }
  });
}

TEST_CASE("mla_decode: a sequence alone, in a batch, on any number of threads", "[invariance]") {
  for_each_target([](const std::string& name) {
    for (const DType type : {DType::kBF16, DType::kF8E4M3, DType::kI8}) check_mla_decode(name, type);
  });
}

TEST_CASE("gqa_attention: in one piece, in chunks, token by token, with fewer heads",
          "[invariance]") {
  for_each_target([](const std::string& name) {
    for (const DType type : {DType::kF32, DType::kF8E4M3, DType::kI8}) check_gqa_attention(name, type);
  });
}

TEST_CASE("mla_prefill: chunks of queries, and of keys in whole blocks, change nothing",
          "[invariance]") {
  for_each_target([](const std::string& name) {
    Random random(5);
    const int64_t context = 80, heads = 3, nope = 16, rope = 4, dv = 20;
    const HostTensor kv = random.tensor(DType::kF32, {context, heads, nope + dv});
    const HostTensor k_pe = random.tensor(DType::kF32, {context, rope});
    const HostTensor q = random.tensor(DType::kF32, {context, heads, nope + rope});
    std::vector<int32_t> position;
    for (int32_t t = 0; t < context; ++t) position.push_back(t);
    const HostTensor positions = HostTensor::ints({context}, position);
    const auto run = [&](Ops& ops, int64_t query_chunk, int64_t key_chunk) {
      HostTensor acc(DType::kF32, {context, heads, dv}), row_max(DType::kF32, {context, heads});
      HostTensor row_sum = row_max.clone(), out(DType::kF32, {context, heads, dv});
      for (int64_t t = 0; t < context; t += query_chunk) {
        const int64_t end = std::min(t + query_chunk, context);
        const AttentionState state{acc.view().slice(0, t, end), row_max.view().slice(0, t, end),
                                   row_sum.view().slice(0, t, end)};
        ops.begin_state(state);
        for (int64_t p = 0; p < end; p += key_chunk) {
          const int64_t last = std::min(p + key_chunk, end);
          ops.mla_prefill(q.view().slice(0, t, end), kv.view().slice(0, p, last),
                          k_pe.view().slice(0, p, last), positions.view().slice(0, t, end), p, 0.3f,
                          state);
        }
        ops.finish_state(state, out.view().slice(0, t, end));
      }
      return out.bytes();
    };
    const std::vector<std::byte> whole = run(*make_cpu_ops(1), context, context);
    for (const int threads : {1, 3}) {
      const std::unique_ptr<Ops> ops = make_cpu_ops(threads);
      for (const int64_t query_chunk : {1, 13, 80}) {
        for (const int64_t key_chunk : {16, 48}) {
          INFO(name << " threads " << threads << " chunks " << query_chunk << " " << key_chunk);
          CHECK(same(run(*ops, query_chunk, key_chunk), whole));
        }
      }
    }
  });
}

TEST_CASE("row verbs: a row alone and in a batch on several threads", "[invariance]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(6);
    const std::unique_ptr<Ops> one = make_cpu_ops(1), many = make_cpu_ops(4);
    const int64_t rows = 300, dim = 301;
    const HostTensor x = random.tensor(DType::kF32, {rows, dim});
    const HostTensor y = random.tensor(DType::kF32, {rows, dim});
    const HostTensor weight = random.tensor(DType::kF32, {dim});
    HostTensor norm(DType::kF32, {rows, dim}), silu = norm.clone();
    HostTensor ids(DType::kI32, {rows, 8}), weights(DType::kF32, {rows, 8});
    const RouterSpec spec{RouterKind::kNoauxTcSigmoid, 8, 7, 3, true, 2.5f};
    many->rms_norm(x, weight, 1e-6f, norm);
    many->silu_mul(x, y, silu);
    many->route(x, weight, spec, ids, weights);
    for (int64_t r = 0; r < rows; r += 37) {
      HostTensor a(DType::kF32, {1, dim}), b = a.clone();
      HostTensor id(DType::kI32, {1, 8}), w(DType::kF32, {1, 8});
      one->rms_norm(x.view().slice(0, r, r + 1), weight, 1e-6f, a);
      one->silu_mul(x.view().slice(0, r, r + 1), y.view().slice(0, r, r + 1), b);
      one->route(x.view().slice(0, r, r + 1), weight, spec, id, w);
      CHECK(same(a.bytes(), row_bits(norm, r, r + 1)));
      CHECK(same(b.bytes(), row_bits(silu, r, r + 1)));
      CHECK(same(id.bytes(), row_bits(ids, r, r + 1)));
      CHECK(same(w.bytes(), row_bits(weights, r, r + 1)));
    }
  });
}

}  // namespace shoal::test

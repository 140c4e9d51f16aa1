// mla_decode, mla_prefill and gqa_attention against the reference.
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/kernels/support/host_cache.h"
#include "tests/kernels/support/paged.h"
#include "tests/kernels/support/reference.h"

namespace shoal::test {
namespace {

const std::vector<std::pair<int32_t, int32_t>> kSequences = {{1, 1},  {1, 17}, {1, 100}, {5, 5},
                                                             {3, 40}, {0, 12}, {20, 33}};

constexpr DType kCacheTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI8};

struct State {
  HostTensor acc, row_max, row_sum;
  AttentionState state;
  State(int64_t tokens, int64_t heads, int64_t dv)
      : acc(DType::kF32, {tokens, heads, dv}),
        row_max(DType::kF32, {tokens, heads}),
        row_sum(DType::kF32, {tokens, heads}),
        state{acc, row_max, row_sum} {}
};

}  // namespace

TEST_CASE("mla_decode: contexts across permuted pages, every cache, any head count",
          "[attention]") {
  for_each_target([](const std::string& name) {
    Random random(1);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    for (const DType type : kCacheTypes) {
      for (const auto& [heads, lora, rope] : std::vector<std::tuple<int, int, int>>{
               {1, 16, 4}, {3, 33, 6}, {6, 64, 16}, {4, 128, 16}}) {
        for (const int32_t page_size : {1, 5, 16}) {
          INFO(name << " " << dtype_name(type) << " heads " << heads << " page " << page_size);
          const PagedCase paged(random, kSequences, page_size);
          const HostCache cache = random_cache(random, type, paged.num_slots, lora, 1, rope);
          const HostTensor q = random.tensor(DType::kF32, {paged.num_tokens, heads, lora + rope});
          HostTensor out(DType::kF32, {paged.num_tokens, heads, lora});
          const float scale = 1.0f / std::sqrt(static_cast<float>(lora));
          ops->mla_decode(q, cache, paged.batch, scale, out);
          CHECK(first_violation(out, mla_decode(q, cache, paged.batch, scale, lora)) == "");
        }
      }
    }
  });
}

TEST_CASE("mla_prefill: one chunk, several, and unaligned ones agree with the reference",
          "[attention]") {
  for_each_target([](const std::string& name) {
    Random random(2);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    const int64_t tokens = 37, heads = 3, nope = 20, rope = 6, dv = 24, context = 61;
    HostTensor kv = random.tensor(DType::kF32, {context, heads, nope + dv});
    HostTensor latent = random.tensor(DType::kF32, {context, rope + 3});
    const Tensor k_pe = latent.view().slice(1, 3, 3 + rope);
    const HostTensor q = random.tensor(DType::kF32, {tokens, heads, nope + rope});
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(int32_t(context - tokens + t));
    const HostTensor position = HostTensor::ints({tokens}, positions);
    const Expected expected = mla_expanded(q, kv, k_pe, position, 0.2);
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{0, 61}, {0, 16, 48, 61}, {0, 1, 7, 50, 61}}) {
      INFO(name << " " << cuts.size() - 1 << " chunks");
      State s(tokens, heads, dv);
      HostTensor wide(DType::kF32, {tokens, heads, dv + 2});
      const Tensor out = wide.view().slice(2, 0, dv);
      ops->begin_state(s.state);
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        ops->mla_prefill(q, kv.view().slice(0, cuts[c], cuts[c + 1]),
                         k_pe.slice(0, cuts[c], cuts[c + 1]), position, cuts[c], 0.2f, s.state);
      }
      ops->finish_state(s.state, out);
      CHECK(first_violation(out, expected) == "");
    }
  });
}

TEST_CASE("gqa_attention: prefill and decode mixed, every cache, every split of heads",
          "[attention]") {
  for_each_target([](const std::string& name) {
    Random random(3);
    const std::unique_ptr<Ops> ops = make_cpu_ops(2);
    struct Split {
      int64_t heads, kv_heads;
      Ops::HeadMap map;
    };
    for (const Split& split :
         {Split{4, 4, {1, 0, 0}}, Split{6, 2, {3, 0, 0}}, Split{8, 1, {8, 0, 0}},
          // a rank that begins and ends in the middle of a group
          Split{5, 3, {3, 5, 1}}, Split{2, 1, {4, 13, 3}}}) {
      for (const DType type : kCacheTypes) {
        for (const int64_t dim : {8, 33, 64}) {
          INFO(name << " " << dtype_name(type) << " heads " << split.heads << " of group "
                    << split.map.group << " dim " << dim);
          const PagedCase paged(random, kSequences, dim == 33 ? 3 : 16);
          const int64_t width = split.kv_heads * dim;
          const HostCache k = random_cache(random, type, paged.num_slots, width, split.kv_heads);
          const HostCache v = random_cache(random, type, paged.num_slots, width, split.kv_heads);
          const HostTensor q = random.tensor(DType::kF32, {paged.num_tokens, split.heads, dim});
          HostTensor out(DType::kF32, {paged.num_tokens, split.heads, dim});
          const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
          ops->gqa_attention(q, k, v, paged.batch, split.map, scale, out);
          CHECK(first_violation(out, gqa_attention(q, k, v, paged.batch, split.map, scale)) == "");
        }
      }
    }
  });
}

TEST_CASE("attention: scores far apart neither overflow nor lose the best key", "[attention]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(4);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const PagedCase paged(random, {{1, 50}, {4, 30}}, 16);
    const HostTensor cache = random.tensor(DType::kF32, {paged.num_slots, 24}, 10);
    const HostTensor q = random.tensor(DType::kF32, {paged.num_tokens, 2, 24}, 10);
    HostTensor out(DType::kF32, {paged.num_tokens, 2, 16});
    ops->mla_decode(q, {cache}, paged.batch, 1.0f, out);
    CHECK(first_violation(out, mla_decode(q, {cache}, paged.batch, 1.0, 16)) == "");
  });
}

TEST_CASE("attention: slots past a context are never used", "[attention]") {
  for_each_target([](const std::string& name) {
    INFO(name);
    Random random(5);
    const std::unique_ptr<Ops> ops = make_cpu_ops(1);
    const PagedCase paged(random, {{2, 19}}, 16);
    HostTensor cache = random.tensor(DType::kF32, {paged.num_slots, 20});
    const int32_t* table = paged.block_tables.view().as<int32_t>();
    for (int64_t slot = 0; slot < paged.num_slots; ++slot) {
      const bool used = slot / 16 == table[0] || (slot / 16 == table[1] && slot % 16 < 3);
      if (used) continue;
      for (int i = 0; i < 20; ++i) cache.view().row<float>(slot)[i] = std::nanf("");
    }
    const HostTensor q = random.tensor(DType::kF32, {2, 2, 20});
    HostTensor out(DType::kF32, {2, 2, 16});
    ops->mla_decode(q, {cache}, paged.batch, 0.3f, out);
    CHECK(first_violation(out, mla_decode(q, {cache}, paged.batch, 0.3f, 16)) == "");
    HostTensor gqa_out(DType::kF32, {2, 2, 20});
    ops->gqa_attention(q, {cache}, {cache}, paged.batch, {2, 0, 0}, 0.3f, gqa_out);
    CHECK(first_violation(gqa_out, gqa_attention(q, {cache}, {cache}, paged.batch, {2, 0, 0}, 0.3f)) ==
          "");
  });
}

}  // namespace shoal::test

// The attention verbs on the device. Shapes decide which form of a kernel runs: bfloat16 queries
// and caches (or codes) of the dimensions that the tensor-core forms are made for (MLA 512 + 64
// decoded, 128 + 64 and 128 expanded; GQA 64 and 128), and everything else in float.
#include <cmath>
#include <cstring>

#include "tests/kernels/cuda/cuda_case.h"
#include "tests/kernels/support/paged.h"

namespace shoal::test {
namespace {

using Sequences = std::vector<std::pair<int32_t, int32_t>>;

// Tokens of a step and contexts after it: decode, contexts at and around the kernels' blocks of
// keys (16, 32, 64), prefill with and without what came before, none of a sequence's tokens in this
// step.
const Sequences kMixed = {{1, 1}, {1, 17}, {1, 64}, {5, 5}, {3, 40}, {0, 12}, {20, 33}};
const Sequences kDecode = {{1, 33}, {1, 1}, {2, 66}, {1, 32}};
const Sequences kLong = {{1, 700}, {1, 3}, {2, 257}};
const Sequences kLongPrefill = {{20, 300}, {1, 9}, {70, 70}};

class PagedOnDevice {
 public:
  explicit PagedOnDevice(const PagedCase& host)
      : query_start_(host.query_start),
        context_len_(host.context_len),
        block_tables_(host.block_tables),
        batch_{host.batch.page_size, query_start_, context_len_, block_tables_} {}
  operator const PagedBatch&() const { return batch_; }  // NOLINT(google-explicit-constructor)

 private:
  OnDevice query_start_, context_len_, block_tables_;
  PagedBatch batch_;
};

HostCache absolute(const HostCache& cache) {
  HostCache result = cache.clone();
  const Tensor& view = result.data.view();
  for_each_index(view, [&](int64_t at) {
    switch (view.dtype) {
      case DType::kF32: view.as<float>()[at] = std::fabs(view.as<float>()[at]); break;
      case DType::kBF16: view.as<uint16_t>()[at] &= 0x7fff; break;
      case DType::kF8E4M3: view.as<uint8_t>()[at] &= 0x7f; break;
      default:  // the magnitude of -128 is no int8: a bound that small differs by less than 1 %
        view.as<int8_t>()[at] = static_cast<int8_t>(std::min(std::abs(view.as<int8_t>()[at]), 127));
    }
  });
  return result;
}

// The tensor-core forms multiply values by softmax weights that were rounded to bfloat16, each by
// up to 2^-8 of itself, and divide by the sum of the unrounded ones. `magnitude`: sum of weight *
// |value| / sum.
Expected with_bf16_weights(Expected expected, const Expected& magnitude) {
  for (size_t i = 0; i < expected.value.size(); ++i) {
    expected.bound[i] += magnitude.value[i] * 0x1p-8 * 1.01;
  }
  return expected;
}

struct MlaCase {
  PagedCase paged;
  int64_t heads, lora, rope;
  HostCache cache;
  HostTensor q;
  float scale;

  MlaCase(Random& random, const Sequences& sequences, int32_t page_size, int64_t num_heads,
          int64_t kv_lora, int64_t qk_rope, DType activation, DType cache_type)
      : paged(random, sequences, page_size),
        heads(num_heads),
        lora(kv_lora),
        rope(qk_rope),
        cache(random_cache(random, cache_type, paged.num_slots, lora, 1, rope)),
        q(random.tensor(activation, {paged.num_tokens, heads, lora + rope})),
        scale(1.0f / std::sqrt(static_cast<float>(lora))) {}

  HostTensor out() const { return HostTensor(q.view().dtype, {paged.num_tokens, heads, lora}); }
  bool tensor_cores() const {
    return q.view().dtype == DType::kBF16 && cache.data.view().dtype != DType::kF32 && lora == 512 &&
           rope == 64;
  }
  Expected expected() const {
    Expected result = mla_decode(q, cache, paged.batch, scale, lora);
    if (tensor_cores()) {
      // The whole row taken for the value; the columns after the first `lora` are left out.
      const Expected wide = gqa_attention(q, cache, absolute(cache), paged.batch,
                                          {static_cast<int32_t>(heads), 0, 0}, scale);
      Expected magnitude;
      for (size_t i = 0; i < wide.value.size(); ++i) {
        if (static_cast<int64_t>(i) % (lora + rope) < lora) magnitude.push(wide.value[i], 0);
      }
      result = with_bf16_weights(std::move(result), magnitude);
    }
    return stored_as(std::move(result), q.view().dtype);
  }
};

void check_mla(const MlaCase& c) {
  INFO(dtype_name(c.q.view().dtype)
       << " cache " << dtype_name(c.cache.data.view().dtype) << " heads " << c.heads << " lora "
       << c.lora << " page " << c.paged.batch.page_size);
  const PagedOnDevice paged(c.paged);
  const OnDevice q(c.q);
  const CacheOnDevice cache(c.cache);
  const Expected expected = c.expected();
  for_each_schedule([&] {
    const OnDevice out(c.out());
    cuda_ops().mla_decode(q, cache, paged, c.scale, out);
    CHECK(first_violation(out.host(), expected) == "");
  });
}

struct GqaCase {
  PagedCase paged;
  Ops::HeadMap map;
  int64_t dim;
  HostCache k, v;
  HostTensor q;
  float scale;

  GqaCase(Random& random, const Sequences& sequences, int32_t page_size, int64_t heads,
          int64_t kv_heads, const Ops::HeadMap& head_map, int64_t head_dim, DType activation,
          DType cache_type)
      : paged(random, sequences, page_size),
        map(head_map),
        dim(head_dim),
        k(random_cache(random, cache_type, paged.num_slots, kv_heads * dim, kv_heads)),
        v(random_cache(random, cache_type, paged.num_slots, kv_heads * dim, kv_heads)),
        q(random.tensor(activation, {paged.num_tokens, heads, dim})),
        scale(1.0f / std::sqrt(static_cast<float>(dim))) {}

  HostTensor out() const {
    return HostTensor(q.view().dtype, {q.view().dim(0), q.view().dim(1), dim});
  }
  Expected expected() const {
    Expected result = gqa_attention(q, k, v, paged.batch, map, scale);
    if (q.view().dtype == DType::kBF16 && k.data.view().dtype != DType::kF32 &&
        (dim == 64 || dim == 128)) {
      result = with_bf16_weights(std::move(result),
                                 gqa_attention(q, k, absolute(v), paged.batch, map, scale));
    }
    return stored_as(std::move(result), q.view().dtype);
  }
};

void check_gqa(const GqaCase& c) {
  INFO(dtype_name(c.q.view().dtype)
       << " cache " << dtype_name(c.k.data.view().dtype) << " heads " << c.q.view().dim(1) << " group "
       << c.map.group << " dim " << c.dim << " page " << c.paged.batch.page_size);
  const PagedOnDevice paged(c.paged);
  const OnDevice q(c.q);
  const CacheOnDevice k(c.k), v(c.v);
  const Expected expected = c.expected();
  for_each_schedule([&] {
    const OnDevice out(c.out());
    cuda_ops().gqa_attention(q, k, v, paged, c.map, c.scale, out);
    CHECK(first_violation(out.host(), expected) == "");
  });
}

// Fills what no sequence of the case may read with NaN.
void poison_unused(const PagedCase& paged, const HostCache& cache) {
  const int32_t page_size = paged.batch.page_size;
  const int64_t max_pages = paged.block_tables.view().dim(1);
  std::vector<bool> used(paged.num_slots, false);
  for (int64_t s = 0; s < paged.context_len.view().dim(0); ++s) {
    for (int32_t p = 0; p < paged.context_len.view().as<int32_t>()[s]; ++p) {
      const int32_t page = paged.block_tables.view().as<int32_t>()[s * max_pages + p / page_size];
      used[page * page_size + p % page_size] = true;
    }
  }
  for (const HostTensor* plane : {&cache.data, &cache.scale, &cache.rope}) {
    if (!plane->view().defined()) continue;
    const int64_t bytes = plane->view().dim(1) * dtype_size(plane->view().dtype);
    for (int64_t slot = 0; slot < paged.num_slots; ++slot) {
      if (!used[slot]) std::memset(plane->memory().data() + slot * bytes, 0xff, bytes);
    }
  }
}

struct StateOnDevice {
  OnDevice acc, row_max, row_sum;
  AttentionState state;
  StateOnDevice(int64_t tokens, int64_t heads, int64_t dv)
      : acc(HostTensor(DType::kF32, {tokens, heads, dv})),
        row_max(HostTensor(DType::kF32, {tokens, heads})),
        row_sum(HostTensor(DType::kF32, {tokens, heads})),
        state{acc, row_max, row_sum} {}
};

// The last `tokens` of `context` positions, folded in chunks that end at `cuts`.
void check_prefill(DType type, int64_t tokens, int64_t context, int64_t heads, int64_t nope,
                   int64_t rope, int64_t dv, const std::vector<std::vector<int64_t>>& all_cuts) {
  INFO(dtype_name(type) << " " << tokens << " of " << context << " tokens, " << heads
                        << " heads of " << nope << " + " << rope << ", " << dv);
  Random random(2);
  const HostTensor kv = random.tensor(type, {context, heads, nope + dv});
  const HostTensor latent =
      random.tensor(type, {context, rope + 8});  // k_pe lies inside wider rows
  const HostTensor q = random.tensor(type, {tokens, heads, nope + rope});
  std::vector<int32_t> at;
  for (int64_t t = 0; t < tokens; ++t) at.push_back(static_cast<int32_t>(context - tokens + t));
  const HostTensor positions = HostTensor::ints({tokens}, at);
  const float scale = 1.0f / std::sqrt(static_cast<float>(nope + rope));
  const auto k_pe_of = [&](const Tensor& rows) { return rows.slice(1, 8, 8 + rope); };
  Expected expected = mla_expanded(q, kv, k_pe_of(latent), positions, scale);
  if (type == DType::kBF16 && nope == 128 && rope == 64 && dv == 128) {
    HostTensor magnitudes = kv.clone();
    for (int64_t i = 0; i < context * heads; ++i) {
      for (int64_t c = nope; c < nope + dv; ++c) {
        magnitudes.view().as<uint16_t>()[i * (nope + dv) + c] &= 0x7fff;
      }
    }
    expected = with_bf16_weights(std::move(expected),
                                 mla_expanded(q, magnitudes, k_pe_of(latent), positions, scale));
  }
  expected = stored_as(std::move(expected), type);

  const OnDevice dq(q), dkv(kv), dlatent(latent), dpositions(positions);
  for_each_schedule([&] {
    for (const std::vector<int64_t>& cuts : all_cuts) {
      INFO(cuts.size() - 1 << " chunks");
      const StateOnDevice s(tokens, heads, dv);
      const OnDevice wide(HostTensor(type, {tokens, heads, dv + 2}));
      cuda_ops().begin_state(s.state);
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        cuda_ops().mla_prefill(dq, dkv.view().slice(0, cuts[c], cuts[c + 1]),
                               k_pe_of(dlatent).slice(0, cuts[c], cuts[c + 1]), dpositions, cuts[c],
                               scale, s.state);
      }
      cuda_ops().finish_state(s.state, wide.view().slice(2, 0, dv));
      const HostTensor result = wide.host();
      CHECK(first_violation(result.view().slice(2, 0, dv), expected) == "");
    }
  });
}

}  // namespace

TEST_CASE("mla_decode: any dimensions, head counts, pages and types", "[cuda]") {
  Random random(1);
  for (const DType activation : kActivations) {
    for (const DType cache : {DType::kF32, DType::kBF16}) {
      check_mla(MlaCase(random, kMixed, 1, 1, 16, 4, activation, cache));
      check_mla(MlaCase(random, kMixed, 5, 3, 33, 6, activation, cache));
      check_mla(MlaCase(random, kMixed, 16, 6, 64, 16, activation, cache));
      check_mla(MlaCase(random, kDecode, 16, 20, 40, 8, activation, cache));
    }
  }
}

TEST_CASE("mla_decode: the latents of DeepSeek, with tensor cores where both are bfloat16",
          "[cuda]") {
  Random random(2);
  for (const int64_t heads : {1, 3, 6, 16, 20}) {
    check_mla(
        MlaCase(random, kDecode, heads == 3 ? 5 : 16, heads, 512, 64, DType::kBF16, DType::kBF16));
  }
  check_mla(MlaCase(random, {{1, 40}}, 64, 64, 512, 64, DType::kBF16, DType::kBF16));
  check_mla(MlaCase(random, kMixed, 16, 2, 512, 64, DType::kBF16, DType::kBF16));
  check_mla(MlaCase(random, kDecode, 16, 3, 512, 64, DType::kF32, DType::kF32));
  check_mla(MlaCase(random, kDecode, 16, 3, 512, 64, DType::kBF16, DType::kF32));
}

TEST_CASE("mla_decode: long contexts are cut and combined", "[cuda]") {
  Random random(3);
  for (const int32_t page_size : {7, 64}) {
    check_mla(MlaCase(random, kLong, page_size, 3, 33, 6, DType::kF32, DType::kF32));
    check_mla(MlaCase(random, kLong, page_size, 6, 512, 64, DType::kBF16, DType::kBF16));
  }
  check_mla(MlaCase(random, kLong, 16, 20, 512, 64, DType::kBF16, DType::kBF16));
}

TEST_CASE("attention on CUDA: random batches keep to the bounds of their grids", "[cuda]") {
  // More, fewer and as many tiles as the device holds at once, of like and of very unlike lengths:
  // wrong bounds leave rows out or let parts overwrite each other.
  Random random(11);
  for (int i = 0; i < 12; ++i) {
    Sequences sequences;
    const int64_t num_seqs = 1 + random.below(i % 3 == 0 ? 3 : 40);
    const int64_t longest = i % 2 == 0 ? 100 : 1500;
    for (int64_t s = 0; s < num_seqs; ++s) {
      const auto rows = static_cast<int32_t>(random.below(4));
      const int64_t most = random.below(8) == 0 ? longest : longest / 10;
      sequences.emplace_back(rows, rows + static_cast<int32_t>(random.below(most)));
    }
    check_mla(MlaCase(random, sequences, 16, 3, 8, 4, DType::kF32, DType::kF32));
    check_gqa(GqaCase(random, sequences, 5, 6, 2, {3, 0, 0}, 8, DType::kF32, DType::kF32));
  }
}

TEST_CASE("mla_prefill: one chunk, several, and unaligned ones agree with the reference",
          "[cuda]") {
  const std::vector<std::vector<int64_t>> cuts = {{0, 61}, {0, 16, 48, 61}, {0, 1, 7, 50, 61}};
  for (const DType type : kActivations) {
    check_prefill(type, 37, 61, 3, 20, 6, 24, cuts);
    check_prefill(type, 5, 61, 2, 128, 64, 128, cuts);
  }
  check_prefill(DType::kBF16, 150, 200, 2, 128, 64, 128, {{0, 64, 200}});
}

TEST_CASE("gqa_attention: every split of heads, both caches, both activations", "[cuda]") {
  struct Split {
    int64_t heads, kv_heads;
    Ops::HeadMap map;
  };
  Random random(4);
  for (const Split& split : {Split{4, 4, {1, 0, 0}}, Split{6, 2, {3, 0, 0}}, Split{8, 1, {8, 0, 0}},
                             // a rank that begins and ends in the middle of a group
                             Split{5, 3, {3, 5, 1}}, Split{2, 1, {4, 13, 3}}}) {
    for (const DType activation : kActivations) {
      for (const DType cache : {DType::kF32, DType::kBF16}) {
        check_gqa(GqaCase(random, kMixed, 16, split.heads, split.kv_heads, split.map, 8, activation,
                          cache));
        check_gqa(GqaCase(random, kMixed, 3, split.heads, split.kv_heads, split.map, 33, activation,
                          cache));
      }
    }
    for (const int64_t dim : {64, 128}) {
      check_gqa(GqaCase(random, dim == 64 ? kMixed : kDecode, dim == 64 ? 3 : 16, split.heads,
                        split.kv_heads, split.map, dim, DType::kBF16, DType::kBF16));
    }
  }
}

TEST_CASE("gqa_attention: long contexts and prompts of several tiles", "[cuda]") {
  Random random(5);
  check_gqa(GqaCase(random, kLong, 16, 6, 2, {3, 0, 0}, 128, DType::kBF16, DType::kBF16));
  check_gqa(GqaCase(random, kLong, 7, 6, 2, {3, 0, 0}, 33, DType::kF32, DType::kBF16));
  check_gqa(GqaCase(random, kLongPrefill, 16, 4, 2, {2, 0, 0}, 64, DType::kBF16, DType::kBF16));
  check_gqa(GqaCase(random, kLongPrefill, 16, 1, 1, {7, 6, 0}, 128, DType::kBF16, DType::kBF16));
  check_gqa(GqaCase(random, {{40, 200}}, 16, 1, 1, {7, 0, 0}, 128, DType::kBF16, DType::kBF16));
  // Tiles of 16, 64 and 128 pairs, for both sizes of head, cut and uncut.
  for (const int64_t dim : {64, 128}) {
    for (const std::pair<int32_t, int32_t> sequence :
         {std::pair{2, 300}, {20, 300}, {20, 20}, {70, 300}, {70, 70}}) {
      INFO("dim " << dim << ", " << sequence.first << " rows of " << sequence.second);
      check_gqa(GqaCase(random, {sequence}, 16, 2, 1, {2, 0, 0}, dim, DType::kBF16, DType::kBF16));
    }
  }
}

TEST_CASE("mla_decode: caches of codes, in every form", "[cuda]") {
  Random random(12);
  for (const DType cache : {DType::kF8E4M3, DType::kI8}) {
    // In float: any dimensions, float32 queries, cut and uncut.
    check_mla(MlaCase(random, kMixed, 5, 3, 33, 6, DType::kF32, cache));
    check_mla(MlaCase(random, kMixed, 16, 6, 64, 16, DType::kBF16, cache));
    check_mla(MlaCase(random, kDecode, 16, 3, 512, 64, DType::kF32, cache));
    check_mla(MlaCase(random, kLong, 7, 3, 33, 6, DType::kF32, cache));
    // On tensor cores: 16, 32 and 64 pairs.
    for (const int64_t heads : {3, 16, 20}) {
      check_mla(MlaCase(random, kDecode, heads == 3 ? 5 : 16, heads, 512, 64, DType::kBF16, cache));
    }
    check_mla(MlaCase(random, {{1, 40}}, 64, 64, 512, 64, DType::kBF16, cache));
    check_mla(MlaCase(random, kMixed, 16, 2, 512, 64, DType::kBF16, cache));
    check_mla(MlaCase(random, kLong, 64, 6, 512, 64, DType::kBF16, cache));
  }
}

TEST_CASE("gqa_attention: caches of codes, in every form", "[cuda]") {
  Random random(13);
  for (const DType cache : {DType::kF8E4M3, DType::kI8}) {
    check_gqa(GqaCase(random, kMixed, 3, 6, 2, {3, 0, 0}, 33, DType::kF32, cache));
    check_gqa(GqaCase(random, kMixed, 16, 5, 3, {3, 5, 1}, 8, DType::kBF16, cache));
    check_gqa(GqaCase(random, kLong, 7, 6, 2, {3, 0, 0}, 33, DType::kBF16, cache));
    for (const int64_t dim : {64, 128}) {
      check_gqa(GqaCase(random, dim == 64 ? kMixed : kDecode, dim == 64 ? 3 : 16, 5, 3, {3, 5, 1},
                        dim, DType::kBF16, cache));
      // Tiles of 16, 64 and 128 pairs, cut and uncut.
      for (const std::pair<int32_t, int32_t> sequence :
           {std::pair{2, 300}, {20, 300}, {70, 70}}) {
        INFO("dim " << dim << ", " << sequence.first << " rows of " << sequence.second);
        check_gqa(GqaCase(random, {sequence}, 16, 2, 1, {2, 0, 0}, dim, DType::kBF16, cache));
      }
    }
  }
}

TEST_CASE("attention on CUDA: scores far apart neither overflow nor lose the best key", "[cuda]") {
  Random random(6);
  for (const auto& [lora, type] : {std::pair{16, DType::kF32}, std::pair{512, DType::kBF16}}) {
    MlaCase c(random, {{1, 50}, {4, 300}}, 16, 2, lora, lora / 8, type, type);
    random.fill(c.q, 10);
    random.fill(c.cache.data, 10);
    c.scale = 1;
    check_mla(c);
  }
}

TEST_CASE("attention on CUDA: slots past a context are never used", "[cuda]") {
  Random random(7);
  for (const auto& [lora, rope, type] :
       {std::tuple{16, 4, DType::kF32}, std::tuple{512, 64, DType::kBF16},
        std::tuple{16, 4, DType::kF8E4M3}, std::tuple{512, 64, DType::kF8E4M3},
        std::tuple{512, 64, DType::kI8}}) {
    const DType activation = has_scales(type) ? DType::kBF16 : type;
    const MlaCase c(random, {{2, 19}, {1, 170}}, 16, 2, lora, rope, activation, type);
    poison_unused(c.paged, c.cache);
    check_mla(c);
  }
  for (const auto& [dim, type] :
       {std::pair{20, DType::kF32}, std::pair{64, DType::kBF16}, std::pair{20, DType::kI8},
        std::pair{64, DType::kF8E4M3}, std::pair{128, DType::kI8}}) {
    for (const Sequences& sequences : {Sequences{{2, 19}, {1, 170}}, Sequences{{30, 45}}}) {
      const DType activation = has_scales(type) ? DType::kBF16 : type;
      const GqaCase c(random, sequences, 16, 2, 1, {2, 0, 0}, dim, activation, type);
      poison_unused(c.paged, c.k);
      poison_unused(c.paged, c.v);
      check_gqa(c);
    }
  }
}

TEST_CASE("attention on CUDA: no tokens, no sequences, and rows that see no key", "[cuda]") {
  Random random(8);
  for (const Sequences& sequences : {Sequences{}, Sequences{{0, 12}, {0, 0}}}) {
    check_mla(MlaCase(random, sequences, 16, 2, 512, 64, DType::kBF16, DType::kBF16));
    check_gqa(GqaCase(random, sequences, 16, 2, 1, {2, 0, 0}, 33, DType::kF32, DType::kF32));
  }
  // A graph's bucket is filled up with sequences of one row and no context: zeros come out.
  const PagedCase paged(random, {{1, 0}, {1, 0}}, 16);
  const PagedOnDevice batch(paged);
  for (const auto& [lora, rope, type] :
       {std::tuple{16, 4, DType::kF32}, std::tuple{512, 64, DType::kBF16}}) {
    HostTensor nan(type, {2, 3, lora});
    std::memset(nan.memory().data(), 0xff, nan.memory().size());
    const OnDevice q(random.tensor(type, {2, 3, lora + rope}));
    const OnDevice cache(random.tensor(type, {paged.num_slots, lora + rope}));
    const OnDevice out(nan);
    cuda_ops().mla_decode(q, {cache}, batch, 1.0f, out);
    for (const double value : values(out.host())) CHECK(value == 0);
    // Heads of a rank that hold one KV head of lora + rope (20 or 576: in float) and of 64.
    const OnDevice narrow(random.tensor(type, {2, 3, 64}));
    const OnDevice keys(random.tensor(type, {paged.num_slots, 64}));
    HostTensor nan64(type, {2, 3, 64});
    std::memset(nan64.memory().data(), 0xff, nan64.memory().size());
    const OnDevice gqa_out(nan64);
    cuda_ops().gqa_attention(narrow, {keys}, {keys}, batch, {3, 0, 0}, 1.0f, gqa_out);
    for (const double value : values(gqa_out.host())) CHECK(value == 0);
  }
}

TEST_CASE("attention on CUDA: a captured decode follows the context lengths on the device",
          "[cuda]") {
  const auto overwrite = [](const OnDevice& device, const HostTensor& host) {
    cuda_device().copy_to_device(device.view().data, host.memory().data(), host.memory().size());
  };
  Random random(9);
  // The same shapes, pages for the longest; from nothing cut to two sequences cut.
  const int32_t page_size = 16, longest = 600;
  const std::vector<std::vector<int32_t>> steps = {{1, 2, 3}, {600, 5, 400}, {30, 600, 1}};
  const PagedCase paged(random, {{1, longest}, {1, longest}, {1, longest}}, page_size);
  const PagedOnDevice batch(paged);
  const OnDevice context_len(paged.context_len);
  PagedBatch device_batch = batch;
  device_batch.context_len = context_len;

  for (const auto& [lora, rope, activation, type] :
       {std::tuple{33, 6, DType::kF32, DType::kF32}, std::tuple{512, 64, DType::kBF16, DType::kBF16},
        std::tuple{512, 64, DType::kBF16, DType::kF8E4M3}}) {
    MlaCase mla(random, {{1, longest}, {1, longest}, {1, longest}}, page_size, 3, lora, rope,
                activation, type);
    mla.paged = paged;
    GqaCase gqa(random, {{1, longest}, {1, longest}, {1, longest}}, page_size, 3, 1, {3, 0, 0},
                activation == DType::kBF16 ? 64 : 24, activation, type);
    gqa.paged = paged;
    const OnDevice q(mla.q), out(mla.out()), gqa_q(gqa.q), gqa_out(gqa.out());
    const CacheOnDevice cache(mla.cache), k(gqa.k), v(gqa.v);
    const auto work = [&] {
      cuda_ops().mla_decode(q, cache, device_batch, mla.scale, out);
      cuda_ops().gqa_attention(gqa_q, k, v, device_batch, gqa.map, gqa.scale, gqa_out);
    };
    // Two layers of a step: the second finds the first one's cut.
    const OnDevice second(mla.out()), gqa_second(gqa.out());
    const auto step = [&] {
      cuda_ops().begin_step();
      work();
      cuda_ops().mla_decode(q, cache, device_batch, mla.scale, second);
      cuda_ops().gqa_attention(gqa_q, k, v, device_batch, gqa.map, gqa.scale, gqa_second);
      cuda_ops().end_step();
    };
    work();  // what it needs is allocated before the graph is recorded
    step();
    const std::unique_ptr<DeviceGraph> graph = cuda_device().capture(work);
    const std::unique_ptr<DeviceGraph> step_graph = cuda_device().capture(step);
    for (const std::vector<int32_t>& contexts : steps) {
      INFO("contexts " << contexts[0] << " " << contexts[1] << " " << contexts[2]);
      const HostTensor values = HostTensor::ints({3}, contexts);
      mla.paged.batch.context_len = gqa.paged.batch.context_len = values;
      overwrite(context_len, values);
      graph->launch();
      CHECK(first_violation(out.host(), mla.expected()) == "");
      CHECK(first_violation(gqa_out.host(), gqa.expected()) == "");
      const HostTensor before = out.host(), gqa_before = gqa_out.host();
      graph->launch();
      CHECK(out.host().bytes() == before.bytes());  // the same bits each time
      CHECK(gqa_out.host().bytes() == gqa_before.bytes());
      step_graph->launch();
      CHECK(second.host().bytes() == before.bytes());
      CHECK(gqa_second.host().bytes() == gqa_before.bytes());
      work();  // outside a step, with the tensors' contents of now
      CHECK(out.host().bytes() == before.bytes());
    }
  }
}

}  // namespace shoal::test

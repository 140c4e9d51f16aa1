// What a token costs in every format, for every model, and that pages are where the views say.
#include "runtime/cache/paged_kv_cache.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>

#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

ModelConfig fixture(const std::string& name) {
  std::ostringstream text;
  text << std::ifstream(SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/configs/" + name + ".json").rdbuf();
  return parse_model_config(text.str(), name);
}

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI8};

TEST_CASE("bytes per token of every model") {
  struct Row {
    const char* name;
    int64_t bf16, quantised;  // of all layers
  };
  for (const Row& row : {
           // MLA: 576 * 2, and 512 + 4 + 64 * 2, times 27, 60, 61 and 61 layers.
           Row{"deepseek-v2-lite", 31104, 17388}, Row{"deepseek-v2", 69120, 38640},
           Row{"deepseek-v3", 70272, 39284}, Row{"deepseek-r1", 70272, 39284},
           // Dense: 2 * heads * 128 * 2, and 2 * heads * (128 + 4).
           Row{"r1-distill-qwen-1.5b", 28672, 14784}, Row{"r1-distill-qwen-7b", 57344, 29568},
           Row{"r1-distill-qwen-14b", 196608, 101376}, Row{"r1-distill-qwen-32b", 262144, 135168},
           Row{"r1-distill-llama-8b", 131072, 67584}, Row{"r1-distill-llama-70b", 327680, 168960}}) {
    INFO(row.name);
    const ModelConfig c = fixture(row.name);
    const auto bytes = [&](DType dtype) {
      return kv_bytes_per_token_layer(c, c.num_key_value_heads, dtype) * c.num_hidden_layers;
    };
    CHECK(bytes(DType::kBF16) == row.bf16);
    CHECK(bytes(DType::kF32) == 2 * row.bf16);
    CHECK(bytes(DType::kF8E4M3) == row.quantised);
    CHECK(bytes(DType::kI8) == row.quantised);
  }
}

TEST_CASE("a layout says all that pages of another cache must share") {
  const KvCacheLayout mla(fixture("deepseek-v2-lite"), 0, 27, DType::kF8E4M3, 16);
  CHECK(mla.describe() ==
        "27 layers of 16 tokens a page: float8_e4m3[512] float32[1] bfloat16[64]");
  const KvCacheLayout dense(fixture("r1-distill-qwen-1.5b"), 2, 28, DType::kI8, 8);
  CHECK(dense.describe() ==
        "28 layers of 8 tokens a page: int8[256] float32[2] int8[256] float32[2]");
}

TEST_CASE("the names of the formats") {
  CHECK(parse_kv_cache_dtype("auto", DType::kBF16) == DType::kBF16);
  CHECK(parse_kv_cache_dtype("float32", DType::kBF16) == DType::kF32);
  CHECK(parse_kv_cache_dtype("bfloat16", DType::kF32) == DType::kBF16);
  CHECK(parse_kv_cache_dtype("fp8", DType::kBF16) == DType::kF8E4M3);
  CHECK(parse_kv_cache_dtype("fp8_e4m3", DType::kBF16) == DType::kF8E4M3);
  CHECK(parse_kv_cache_dtype("int8", DType::kBF16) == DType::kI8);
  for (const char* wrong : {"", "fp8_e5m2", "FP8", "int4"}) {
    CHECK_THROWS_AS(parse_kv_cache_dtype(wrong, DType::kBF16), InvalidInput);
  }
}

TEST_CASE("pages cover the cache once, each the same bytes in the same order") {
  const std::unique_ptr<Device> device = make_cpu_device();
  for (const char* name : {"deepseek-v2-lite", "r1-distill-qwen-1.5b"}) {
    for (const DType dtype : kTypes) {
      INFO(name << " " << dtype_name(dtype));
      const KvCacheLayout layout(fixture(name), 1, 3, dtype, 5);
      const PagedKvCache cache(*device, layout, 7);
      CHECK(cache.bytes() == layout.total_bytes(7));
      // One page more than asked for, and less than 256 bytes lost per plane.
      const int64_t used = 8 * layout.page_bytes();
      CHECK(layout.page_bytes() == 5 * layout.bytes_per_token());
      CHECK(cache.bytes() >= used);
      CHECK(cache.bytes() < used + 3 * 256 * static_cast<int64_t>(layout.planes().size()));
      std::set<const std::byte*> begins;
      for (int32_t p = 0; p <= 7; ++p) {
        int64_t bytes = 0;
        const auto pieces = cache.page(p);
        const auto first = cache.page(0);
        REQUIRE(pieces.size() == first.size());
        for (size_t i = 0; i < pieces.size(); ++i) {
          CHECK(pieces[i].bytes == first[i].bytes);
          CHECK(pieces[i].data == first[i].data + p * first[i].bytes);
          CHECK(begins.insert(pieces[i].data).second);
          bytes += pieces[i].bytes;
        }
        CHECK(bytes == layout.page_bytes());
      }
      CHECK_THROWS_AS(cache.page(8), Bug);
      CHECK_THROWS_AS(cache.page(-1), Bug);
    }
  }
}

}  // namespace
}  // namespace shoal

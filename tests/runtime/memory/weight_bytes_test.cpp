// Weights from shapes: against the figures of the published models, and against golden checkpoints.
#include "runtime/memory/weight_bytes.h"

#include <catch2/catch.hpp>

#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/rank_bytes.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/memory/plan_cases.h"

namespace shoal {
namespace {

ModelWeights weights_of(const ModelConfig& config, const std::string& quantization) {
  return {config, forms_quantized(forms_as_published(config, DType::kBF16), quantization), DType::kBF16,
          false};
}

// The published sizes: parameters and bytes in 10^9, KV bytes a token in bfloat16. fp8 0: not listed.
struct Figures {
  const char* name;
  double parameters, active;
  double bf16, fp8, int4;
  int64_t kv;
};
constexpr Figures kFigures[] = {
    {"V2-Lite", 15.7, 2.45, 31.4, 16, 8.8, 31104},
    {"V2", 235.7, 20.9, 471, 236, 125, 69120},
    {"V3", 671.0, 36.6, 1342, 673, 351, 70272},
    {"R1", 671.0, 36.6, 1342, 673, 351, 70272},
    {"Qwen-1.5B", 0, 0, 3.55, 0, 1.61, 28672},
    {"Qwen-7B", 0, 0, 15.2, 0, 5.57, 57344},
    {"Qwen-14B", 0, 0, 29.5, 0, 9.98, 196608},
    {"Qwen-32B", 0, 0, 65.5, 0, 19.3, 262144},
    {"Llama-8B", 0, 0, 16.1, 0, 5.73, 131072},
    {"Llama-70B", 0, 0, 141, 0, 39.8, 327680},
};

TEST_CASE("parameters, weights and KV cache of the published models are the known figures") {
  for (const Figures& f : kFigures) {
    INFO(f.name);
    ModelConfig config = published(f.name);
    const ModelWeights stored = weights_of(config, "none");
    if (f.parameters > 0) {
      CHECK(stored.parameters() / 1e9 == Approx(f.parameters).epsilon(0.002));
      CHECK(stored.active_parameters() / 1e9 == Approx(f.active).epsilon(0.005));
    }
    if (f.fp8 > 0) {
      CHECK(weights_of(config, "fp8").total_bytes() / 1e9 == Approx(f.fp8).epsilon(0.015));
    }
    // The list has 16-bit scales for the groups, we hold 32-bit ones: 1/32 byte a parameter more at most.
    const double int4 = weights_of(config, "int4").total_bytes() / 1e9;
    CHECK(int4 > f.int4 * 0.97);
    CHECK(int4 < f.int4 * 1.04);
    config.quantization = {};
    CHECK(weights_of(config, "none").total_bytes() / 1e9 == Approx(f.bf16).epsilon(0.005));
    const int64_t kv_heads = config.is_mla() ? 0 : config.num_key_value_heads;
    CHECK(config.num_hidden_layers * kv_bytes_per_token_layer(config, kv_heads, DType::kBF16) == f.kv);
  }
}

TEST_CASE("what ranks hold is what the headers of golden checkpoints say, kind by kind") {
  for (const char* name : {"v2-lite", "v2-mscale-tied", "v3", "v3-fp8", "qwen2", "qwen2-tied", "llama3"}) {
    const std::string dir = SHOAL_SOURCE_DIR "/tests/golden/data/" + std::string(name);
    const ModelConfig config = read_model_config(dir);
    const std::shared_ptr<const Checkpoint> checkpoint = Checkpoint::open(dir);
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const ModelWeights weights(config, forms_of_checkpoint(checkpoint, dtype), dtype, true);
      for (int ranks = 1; ranks <= 4; ++ranks) {
        for (int rank = 0; rank < ranks; ++rank) {
          for (const bool dp_attention : {false, true}) {
            INFO(name << ", " << dtype_name(dtype) << ", rank " << rank << " of " << ranks << ", dp "
                      << dp_attention);
            const RankBytes bytes =
                rank_bytes(*checkpoint, config, {ranks, rank, dp_attention, dtype});
            const ModelWeights::Held held = weights.held({rank, ranks, dp_attention});
            for (int kind = 0; kind < kNumTensorKinds; ++kind) {
              CHECK(held.by_kind[kind] == bytes.by_kind[kind].held);
            }
            CHECK(held.absorbed == bytes.derived + bytes.derived_mtp);
            CHECK(held.total() >= bytes.total(true).held);
          }
        }
      }
    }
  }
}

TEST_CASE("ranks together hold the whole model, and V3's experts are shared out") {
  const ModelConfig config = published("V3");
  const ModelWeights weights = weights_of(config, "int4");
  uint64_t experts = 0;
  for (int rank = 0; rank < 6; ++rank) {
    const ModelWeights::Held held = weights.held({rank, 6, false});
    experts += held.of(TensorKind::kRoutedExperts);
    CHECK(held.of(TensorKind::kMtp) == 0);
    CHECK(held.of(TensorKind::kRouter) == weights.whole(TensorKind::kRouter).bytes);
  }
  CHECK(experts == weights.whole(TensorKind::kRoutedExperts).bytes);
}

TEST_CASE("what is quantised already is not quantised again, and layouts that no budget helps") {
  const ModelConfig config = published("V2-Lite");
  INVALID(forms_quantized(forms_as_published(config, DType::kBF16), "int3"), "--quantization \"int3\"");
  const FormOf int4 = forms_quantized(forms_as_published(config, DType::kBF16), "int4");
  // Four bits stay four.
  CHECK(ModelWeights(config, forms_quantized(int4, "int8"), DType::kBF16, false).total_bytes() ==
        ModelWeights(config, int4, DType::kBF16, false).total_bytes());
  INVALID(check_layout(config, 17, false), "16 attention heads");
  INVALID(check_layout(config, 65, true), "64 routed experts");
  CHECK_NOTHROW(check_layout(config, 64, true));
}

}  // namespace
}  // namespace shoal

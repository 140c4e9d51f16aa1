#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>

#include "tests/runtime/memory/plan_cases.h"

namespace shoal {
namespace {

std::string published_file(const KnownModel& model) {
  std::string file(short_name(model));
  for (char& c : file) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (!model.is_distill()) file = "deepseek-" + file;
  return SHOAL_SOURCE_DIR "/tests/runtime/checkpoint/configs/" + file + ".json";
}

TEST_CASE("known models have the shapes of the configurations that they are published with") {
  CHECK(known_models().size() == 10);
  for (const KnownModel& model : known_models()) {
    INFO(model.name);
    std::ifstream file(published_file(model));
    REQUIRE(file);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const ModelConfig known = parse_model_config(model.config, model.name);
    const ModelConfig read = parse_model_config(text, model.name);
    CHECK(known.architecture_name == read.architecture_name);
    CHECK(known.hidden_size == read.hidden_size);
    CHECK(known.num_hidden_layers == read.num_hidden_layers);
    CHECK(known.num_attention_heads == read.num_attention_heads);
    CHECK(known.num_key_value_heads == read.num_key_value_heads);
    CHECK(known.head_dim == read.head_dim);
    CHECK(known.vocab_size == read.vocab_size);
    CHECK(known.intermediate_size == read.intermediate_size);
    CHECK(known.max_position_embeddings == read.max_position_embeddings);
    CHECK(known.tie_word_embeddings == read.tie_word_embeddings);
    CHECK(known.q_lora_rank == read.q_lora_rank);
    CHECK(known.kv_lora_rank == read.kv_lora_rank);
    CHECK(known.n_routed_experts == read.n_routed_experts);
    CHECK(known.n_shared_experts == read.n_shared_experts);
    CHECK(known.moe_intermediate_size == read.moe_intermediate_size);
    CHECK(known.first_k_dense_replace == read.first_k_dense_replace);
    CHECK(known.num_nextn_predict_layers == read.num_nextn_predict_layers);
    CHECK(known.router.top_k == read.router.top_k);
    CHECK(known.torch_dtype == read.torch_dtype);
    CHECK(known.quantization.method == read.quantization.method);
  }
}

TEST_CASE("a model is found by its names, and another's is not") {
  for (const char* name : {"deepseek-ai/DeepSeek-V2-Lite", "DeepSeek-V2-Lite", "V2-Lite", "v2-lite"}) {
    INFO(name);
    REQUIRE(find_known_model(name) != nullptr);
    CHECK(short_name(*find_known_model(name)) == "V2-Lite");
  }
  for (const char* name : {"R1-Distill-Qwen-7B", "qwen-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"}) {
    INFO(name);
    REQUIRE(find_known_model(name) != nullptr);
    CHECK(find_known_model(name)->is_distill());
  }
  for (const char* name : {"V4", "", "someone/DeepSeek-V3", "V2-Lite-Chat", "./V3"}) {
    INFO(name);
    CHECK(find_known_model(name) == nullptr);
  }
}

}  // namespace
}  // namespace shoal

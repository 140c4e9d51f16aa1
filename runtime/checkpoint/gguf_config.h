// What the metadata of a GGUF file says, as the config.json that the same model has on Hugging
// Face.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/gguf.h"

namespace shoal {

// The text of config.json, for parse_model_config(). Throws InvalidInput naming file, key, value
// and what would be right: for another architecture than deepseek2, qwen2 and llama, a key that is
// missing, a feature that is not implemented, and every key of the architecture that is not known.
std::string gguf_config_json(const GgufModel& model);

// The tensor rope_freqs.weight: by how much the frequency of each rotated pair is divided (how
// Llama 3's scaling is stored); empty without one. Throws InvalidInput unless it holds `pairs`
// positive numbers.
std::vector<float> gguf_rope_factors(const GgufModel& model, int64_t pairs);

// The token that a key such as tokenizer.ggml.bos_token_id names; nothing where it says none (-1).
std::optional<int64_t> gguf_token_id(const GgufMetadata& metadata, const std::string& key);

// Those among the file's eos, eot and eom ids, then the tokens that end a turn by their name where
// no eot id says so; no id twice.
std::vector<int64_t> gguf_eos_token_ids(const GgufMetadata& metadata);

}  // namespace shoal

// generation_config.json: how the makers of a checkpoint sample from it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace shoal {

struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;  // 0: all
  std::optional<bool> do_sample;
  std::vector<int32_t> eos_token_ids;  // empty: the config's own
};

// `dir`/generation_config.json; all empty when there is none. Throws InvalidInput naming file, field,
// value and what would be right; fields that would change what is sampled and are not implemented
// (beams, bad words, ...) are refused by name.
GenerationDefaults read_generation_defaults(const std::string& dir);
// The same from text; token ids have to be below `vocab_size`.
GenerationDefaults parse_generation_defaults(const std::string& json, const std::string& source,
                                             int64_t vocab_size);

}  // namespace shoal

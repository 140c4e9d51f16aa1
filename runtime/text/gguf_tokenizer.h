// What the metadata of a GGUF file says of its tokenizer, as the files that the same model has on
// Hugging Face. Pure. Throws InvalidInput naming file, key, value and what would be right.
#pragma once

#include <nlohmann/json.hpp>

#include "runtime/checkpoint/gguf.h"

namespace shoal {

// tokenizer.json. Byte-level BPE only (tokenizer.ggml.model "gpt2"); tokenizer.ggml.pre names how
// text is cut, which a GGUF file does not say otherwise: names that are not known are refused.
// Control tokens become special added tokens, user-defined ones added tokens. Tokens that are not
// used are left out at the end of the vocabulary and are ordinary ones elsewhere.
nlohmann::json gguf_tokenizer_json(const GgufMetadata& metadata);

// tokenizer_config.json: the bos and eos tokens, whether they are added, and the chat templates.
nlohmann::json gguf_tokenizer_config_json(const GgufMetadata& metadata);

}  // namespace shoal

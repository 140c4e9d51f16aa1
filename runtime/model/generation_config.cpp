#include "runtime/model/generation_config.h"

#include <limits>

#include "runtime/checkpoint/strict_json.h"
#include "runtime/model/config_fields.h"

namespace shoal {
namespace {

std::optional<float> optional_number(ConfigFields& fields, const char* name, double low,
                                     double high) {
  if (fields.find(name) == nullptr) return std::nullopt;
  return static_cast<float>(fields.number(name, low, high));
}

// What Hugging Face's generate() would do with these, nothing here does. Other fields of the file
// describe it or bound lengths, which a request says itself.
void refuse_unsupported(ConfigFields& fields) {
  for (const char* name :
       {"assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens", "constraints",
        "force_words_ids", "forced_bos_token_id", "forced_decoder_ids", "forced_eos_token_id",
        "guidance_scale", "penalty_alpha", "sequence_bias", "suppress_tokens",
        "watermarking_config"}) {
    if (fields.find(name) != nullptr) fields.refuse(name, "not supported; remove it");
  }
  for (const char* name :
       {"num_beams", "num_beam_groups", "encoder_repetition_penalty", "typical_p"}) {
    fields.only(name, 1);
  }
  for (const char* name : {"diversity_penalty", "encoder_no_repeat_ngram_size", "epsilon_cutoff",
                           "eta_cutoff", "no_repeat_ngram_size"}) {
    fields.only(name, 0);
  }
}

}  // namespace

GenerationDefaults parse_generation_defaults(const std::string& json, const std::string& source,
                                             int64_t vocab_size) {
  const nlohmann::json document = parse_strict_json(json, source);
  ConfigFields fields(document, source);
  refuse_unsupported(fields);
  GenerationDefaults defaults;
  defaults.temperature = optional_number(fields, "temperature", 0, 100);
  defaults.top_p = optional_number(fields, "top_p", 1e-6, 1);
  defaults.min_p = optional_number(fields, "min_p", 0, 1);
  defaults.repetition_penalty = optional_number(fields, "repetition_penalty", 1e-3, 100);
  if (fields.find("top_k") != nullptr) {
    defaults.top_k =
        static_cast<int32_t>(fields.integer("top_k", 0, std::numeric_limits<int32_t>::max()));
  }
  if (fields.find("do_sample") != nullptr) defaults.do_sample = fields.flag("do_sample");
  defaults.eos_token_ids = fields.token_ids("eos_token_id", vocab_size);
  return defaults;
}

GenerationDefaults read_generation_defaults(const std::string& dir) {
  const std::string path = dir + "/generation_config.json";
  if (!path_exists(path)) return {};
  return parse_generation_defaults(read_small_file(path, kMaxConfigBytes), path,
                                   std::numeric_limits<int32_t>::max());
}

}  // namespace shoal

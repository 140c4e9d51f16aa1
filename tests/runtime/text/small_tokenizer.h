// A byte-level tokenizer.json small enough to reason about: all bytes (ids by the byte alphabet's
// order 0 to 255), a few merges, and <s> and <think> at the end.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/byte_alphabet.h"

namespace shoal {

inline nlohmann::json small_tokenizer_json(
    const std::vector<std::pair<std::string, std::string>>& merges = {
        {"t", "h"}, {"th", "e"}, {"a", "b"}, {"b", "c"}, {"ab", "c"}}) {
  nlohmann::json vocab = nlohmann::json::object();
  int next = 0;
  for (int byte = 0; byte < 256; ++byte)
    vocab[byte_to_alphabet(static_cast<uint8_t>(byte))] = next++;
  nlohmann::json merge_list = nlohmann::json::array();
  for (const auto& [left, right] : merges) {
    if (!vocab.contains(left + right)) vocab[left + right] = next++;
    merge_list.push_back(left + " " + right);
  }
  const auto added = [&](const std::string& content, bool special) {
    return nlohmann::json{{"id", next++},      {"content", content}, {"single_word", false},
                          {"lstrip", false},   {"rstrip", false},    {"normalized", false},
                          {"special", special}};
  };
  return {
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}},
      {"added_tokens", {added("<s>", true), added("<think>", false)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}}};
}

}  // namespace shoal

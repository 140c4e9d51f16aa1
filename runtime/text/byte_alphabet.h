// GPT-2's byte-level alphabet: every byte is written as one printable character in a vocabulary, so
// that a token that is not valid UTF-8 can still be a JSON string. Constant and thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shoal {

// The character that stands for `byte`, as UTF-8.
const std::string& byte_to_alphabet(uint8_t byte);

// The bytes that `token` stands for, or nothing if one of its characters is not in the alphabet.
// `token` must be valid UTF-8.
std::optional<std::string> alphabet_to_bytes(std::string_view token);

}  // namespace shoal

// JSON of checkpoint folders: bounded in size and depth, no key twice in one object, and errors
// that are InvalidInput and never repeat raw bytes of the file. Stateless.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace shoal {

// Real config.json files nest 3 levels; the bound keeps every walk over a document shallow.
inline constexpr int kMaxConfigDepth = 16;
// The largest published config.json (with id2label tables) has some 100 KB.
inline constexpr uint64_t kMaxConfigBytes = uint64_t{1} << 20;

// `source` names the text in errors.
nlohmann::json parse_strict_json(std::string_view text, const std::string& source);

// The whole of a regular file of at most `max_bytes`.
std::string read_small_file(const std::string& path, uint64_t max_bytes);

// Whether there is a file (or a link, even a dangling one: reading that names the error).
bool path_exists(const std::string& path);

// `text` between quotes, fit for a message: what is not printable ASCII escaped, at most 120 bytes.
std::string in_quotes(std::string_view text);

}  // namespace shoal

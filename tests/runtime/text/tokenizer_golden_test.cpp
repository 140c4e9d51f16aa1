// The ids of Hugging Face tokenizers on the strings of tests/golden/tokenizer (see its README).
#include <zlib.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/unicode.h"

namespace shoal {
namespace {

const std::string kFolder = SHOAL_SOURCE_DIR "/tests/golden/tokenizer/";

std::vector<std::string> read_gzip_lines(const std::string& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  REQUIRE(file != nullptr);
  std::string text;
  char buffer[65536];
  int count = 0;
  while ((count = gzread(file.get(), buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<size_t>(count));
  }
  REQUIRE(count == 0);
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::string parse_string(const std::string& line) {
  const auto json = nlohmann::json::parse(line);
  if (json.is_string()) return json.get<std::string>();
  const std::string hex = json.at("hex").get<std::string>();
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::vector<int32_t> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  std::istringstream stream(text);
  for (int32_t id = 0; stream >> id;) ids.push_back(id);
  return ids;
}

void check_family(const std::string& family, bool normalizes) {
  const auto strings = read_gzip_lines(kFolder + "strings.jsonl.gz");
  const auto golden = read_gzip_lines(kFolder + family + ".ids.gz");
  REQUIRE(strings.size() >= 10'000);
  REQUIRE(golden.size() == strings.size());
  const Tokenizer tokenizer = Tokenizer::FromFile(kFolder + family + ".tokenizer.json");
  size_t mismatches = 0;
  for (size_t i = 0; i < strings.size(); ++i) {
    const std::string text = parse_string(strings[i]);
    const size_t tab = golden[i].find('\t');
    const auto parsed = parse_ids(golden[i].substr(0, tab));
    const auto as_text = tab == std::string::npos ? parsed : parse_ids(golden[i].substr(tab + 1));
    const bool same =
        tokenizer.encode(text, {.add_special_tokens = false, .parse_special = true}) == parsed &&
        tokenizer.encode(text, {.add_special_tokens = false, .parse_special = false}) == as_text;
    const std::string repaired = replace_invalid_utf8(text);
    const std::string decoded = tokenizer.decode(parsed);
    Detokenizer stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : parsed) streamed += stream.push(id);
    streamed += stream.flush();
    const bool round_trip =
        decoded == (normalizes ? normalize_nfc(repaired) : repaired) && streamed == decoded;
    if (!same || !round_trip) {
      ++mismatches;
      UNSCOPED_INFO(family << " line " << i + 1 << ": " << strings[i].substr(0, 200));
    }
  }
  CHECK(mismatches == 0);
}

TEST_CASE("DeepSeek ids are those of Hugging Face") { check_family("deepseek", false); }
TEST_CASE("Llama 3 ids are those of Hugging Face") { check_family("llama3", false); }
TEST_CASE("Qwen ids are those of Hugging Face") { check_family("qwen", true); }

TEST_CASE("Encoding one long text is encoding it in pieces that do not touch") {
  const auto strings = read_gzip_lines(kFolder + "strings.jsonl.gz");
  const Tokenizer tokenizer = Tokenizer::FromFile(kFolder + "llama3.tokenizer.json");
  const int32_t separator = tokenizer.encode("<|eot_id|>", {.add_special_tokens = false}).at(0);
  std::string joined;
  std::vector<int32_t> expected;
  for (size_t i = 0; i < 2000; ++i) {
    const std::string text = replace_invalid_utf8(parse_string(strings[i]));
    joined += text + "<|eot_id|>";
    const auto ids = tokenizer.encode(text, {.add_special_tokens = false});
    expected.insert(expected.end(), ids.begin(), ids.end());
    expected.push_back(separator);
  }
  CHECK(tokenizer.encode(joined, {.add_special_tokens = false}) == expected);
}

}  // namespace
}  // namespace shoal

#include "runtime/text/detokenizer.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "runtime/text/unicode.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace shoal {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::FromJson(small_tokenizer_json().dump());
  return instance;
}

// One token per byte.
std::vector<int32_t> byte_ids(const std::string& bytes) {
  std::vector<int32_t> ids;
  for (const char c : bytes) {
    ids.push_back(*tokenizer().token_to_id(byte_to_alphabet(static_cast<uint8_t>(c))));
  }
  return ids;
}

TEST_CASE("A character comes out when its last byte is there") {
  Detokenizer stream(tokenizer(), false);
  const auto ids = byte_ids("a\u00E9\u65E5\U0001F642");
  const std::vector<std::string> expected = {"a",      "", "\u00E9", "", "",
                                             "\u65E5", "", "",       "", "\U0001F642"};
  for (size_t i = 0; i < ids.size(); ++i) CHECK(stream.push(ids[i]) == expected[i]);
  CHECK(stream.flush().empty());
}

TEST_CASE("Broken bytes give the U+FFFD of decoding all at once") {
  const std::string pieces[] = {"\xF0\x9F", "\x99", "\x82", "a",        "\xE6", "\xED\xA0",
                                "\x80",     "\xC3", "\xA9", "\xF4\x90", "\xFF", "\xE6\x97"};
  uint32_t random = 1;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) {
      random = random * 1664525 + 1013904223;
      bytes += pieces[(random >> 16) % std::size(pieces)];
    }
    const auto ids = byte_ids(bytes);
    Detokenizer stream(tokenizer(), false);
    std::string joined;
    for (const int32_t id : ids) {
      const std::string delta = stream.push(id);
      if (!is_valid_utf8(delta)) FAIL("half a character");
      if (stream.pending_bytes() > 3) FAIL("too much held back");
      joined += delta;
    }
    joined += stream.flush();
    if (joined != tokenizer().decode(ids) || joined != replace_invalid_utf8(bytes)) FAIL(joined);
  }
}

TEST_CASE("Special tokens are shown or skipped; unknown ids give nothing") {
  const int32_t special = *tokenizer().token_to_id("<s>");
  Detokenizer shown(tokenizer(), false);
  CHECK(shown.push(special) == "<s>");
  Detokenizer skipped(tokenizer(), true);
  CHECK(skipped.push(special).empty());
  CHECK(skipped.push(*tokenizer().token_to_id("<think>")) == "<think>");
  CHECK(skipped.push(1 << 20).empty());
  CHECK(skipped.push(-1).empty());
}

TEST_CASE("A flush ends the character and starts afresh") {
  Detokenizer stream(tokenizer(), false);
  const auto ids = byte_ids("\xF0\x9F");
  for (const int32_t id : ids) CHECK(stream.push(id).empty());
  CHECK(stream.flush() == "\uFFFD");
  CHECK(stream.push(byte_ids("b")[0]) == "b");
}

}  // namespace
}  // namespace shoal

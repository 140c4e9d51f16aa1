// tokenizer.json, and after a NUL byte the text to encode: a tokenizer that loads encodes any bytes
// to ids of its own, and the stream of their texts is the text of all.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "kernels/base/error.h"
#include "runtime/text/detokenizer.h"
#include "runtime/text/tokenizer.h"
#include "runtime/text/unicode.h"

namespace {

void check_text(const shoal::Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {false, true}) {
    const auto ids =
        tokenizer.encode(text, {.add_special_tokens = true, .parse_special = parse_special});
    for (const int32_t id : ids) {
      if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
    }
    const std::string whole = tokenizer.decode(ids, !parse_special);
    if (!shoal::is_valid_utf8(whole)) std::abort();
    shoal::Detokenizer stream(tokenizer, !parse_special);
    std::string joined;
    for (const int32_t id : ids) {
      const std::string delta = stream.push(id);
      if (!shoal::is_valid_utf8(delta)) std::abort();
      joined += delta;
    }
    joined += stream.flush();
    if (joined != whole) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  try {
    const auto tokenizer = shoal::Tokenizer::FromJson(input.substr(0, end));
    check_text(tokenizer, "it's  12345 <s>\xE6\x97\xA5\xCC\x81\n\n");
    if (end < input.size()) check_text(tokenizer, input.substr(end + 1));
  } catch (const shoal::InvalidInput&) {
  }
  return 0;
}

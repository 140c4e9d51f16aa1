// Cuts a template into tokens as Jinja does with trim_blocks and lstrip_blocks on, the setting of
// Hugging Face: white space around tags is already resolved in the text tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shoal::jinja {

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kPrintBegin,
  kPrintEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;     // the name, the operator, the text, or the value of a string
  int64_t integer = 0;  // kInteger
  double number = 0;    // kFloat
  int line = 1;
};

// The last token is kEnd. Throws InvalidInput with the line.
std::vector<Token> tokenize_template(std::string_view source);

}  // namespace shoal::jinja

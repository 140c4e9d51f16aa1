#include "runtime/text/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

// Longest first, so that the first that fits is the right one.
constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}

size_t skip_python_space(std::string_view text, size_t position) {
  while (position < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(position));
    if (!is_python_space(step.code_point)) break;
    position += step.length;
  }
  return position;
}

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  // Jinja drops one line break at the end of a template.
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (position_ < source_.size()) lex_text();
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  enum class Tag { kBlock, kPrint, kComment };

  [[noreturn]] void fail(std::string_view message) const {
    throw_invalid("line {}: {}", line_, message);
  }

  std::string_view rest() const { return std::string_view(source_).substr(position_); }

  void push(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), 0, 0, line_});
  }

  void advance(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(position_),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    position_ = end;
  }

  // Text up to the next tag, and the tag.
  void lex_text() {
    size_t begin = source_.find('{', position_);
    while (begin != std::string::npos &&
           (begin + 1 >= source_.size() ||
            std::string_view("%{#").find(source_[begin + 1]) == std::string_view::npos)) {
      begin = source_.find('{', begin + 1);
    }
    if (begin == std::string::npos) {
      push_text(rest());
      position_ = source_.size();
      return;
    }
    const char kind = source_[begin + 1];
    const Tag tag = kind == '%' ? Tag::kBlock : kind == '{' ? Tag::kPrint : Tag::kComment;
    const char sign = begin + 2 < source_.size() ? source_[begin + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    push_text(strip_before_tag(std::string_view(source_).substr(position_, begin - position_), sign,
                               tag != Tag::kPrint));
    advance(begin + 2 + (has_sign ? 1 : 0));
    switch (tag) {
      case Tag::kComment:
        skip_comment();
        break;
      case Tag::kPrint:
        push(TokenKind::kPrintBegin, "");
        lex_code(Tag::kPrint);
        break;
      case Tag::kBlock:
        if (!lex_raw()) {
          push(TokenKind::kBlockBegin, "");
          lex_code(Tag::kBlock);
        }
        break;
    }
  }

  void push_text(std::string_view text) {
    if (!text.empty()) push(TokenKind::kText, std::string(text));
  }

  // lstrip_blocks, and the "-" of a tag.
  std::string_view strip_before_tag(std::string_view text, char sign, bool lstrip) const {
    if (sign == '-') {
      size_t end = text.size();
      while (end > 0) {
        size_t at = end - 1;
        while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
        if (!is_python_space(decode_utf8(text.substr(at)).code_point)) break;
        end = at;
      }
      return text.substr(0, end);
    }
    if (sign == '+' || !lstrip) return text;
    const size_t newline = text.rfind('\n');
    const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_start == 0 && !line_starting_) return text;
    return skip_python_space(text, line_start) == text.size() ? text.substr(0, line_start) : text;
  }

  // Past the closing mark at `end`, and past what it strips. `trim` is trim_blocks.
  void close_tag(size_t end, char sign, bool trim) {
    if (sign == '-') {
      end = skip_python_space(source_, end);
    } else if (trim && sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    advance(end);
    line_starting_ = end > 0 && source_[end - 1] == '\n';
  }

  void skip_comment() {
    const size_t end = source_.find("#}", position_);
    if (end == std::string::npos) fail("comment without an end");
    close_tag(end + 2, end > position_ ? source_[end - 1] : '\0', true);
  }

  // {% raw %} … {% endraw %}; the position is after the "{%" and its sign.
  bool lex_raw() {
    size_t at = skip_python_space(source_, position_);
    if (source_.compare(at, 3, "raw") != 0) return false;
    at = skip_python_space(source_, at + 3);
    const bool strips = source_.compare(at, 3, "-%}") == 0;
    if (!strips && source_.compare(at, 2, "%}") != 0) return false;
    close_tag(at + (strips ? 3 : 2), strips ? '-' : '+', false);
    for (size_t open = source_.find("{%", position_); open != std::string::npos;
         open = source_.find("{%", open + 2)) {
      size_t end = open + 2;
      const char sign = end < source_.size() ? source_[end] : '\0';
      if (sign == '-' || sign == '+') ++end;
      end = skip_python_space(source_, end);
      if (source_.compare(end, 6, "endraw") != 0) continue;
      end = skip_python_space(source_, end + 6);
      const char close_sign = end < source_.size() ? source_[end] : '\0';
      if (close_sign == '-' || close_sign == '+') ++end;
      if (source_.compare(end, 2, "%}") != 0) continue;
      push_text(strip_before_tag(std::string_view(source_).substr(position_, open - position_),
                                 sign, true));
      close_tag(end + 2, close_sign, true);
      return true;
    }
    fail("{% raw %} without {% endraw %}");
  }

  // The inside of {% %} or {{ }}, and its end.
  void lex_code(Tag tag) {
    const std::string_view mark = tag == Tag::kBlock ? "%}" : "}}";
    std::string open;  // brackets that wait for their partner; inside them the mark is an operator
    while (true) {
      advance(skip_python_space(source_, position_));
      if (position_ >= source_.size()) fail("tag without an end");
      if (open.empty()) {
        const char sign = source_[position_];
        const bool has_sign = sign == '-' || (sign == '+' && tag == Tag::kBlock);
        if (rest().substr(has_sign ? 1 : 0).starts_with(mark)) {
          push(tag == Tag::kBlock ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, "");
          close_tag(position_ + mark.size() + (has_sign ? 1 : 0), sign, tag == Tag::kBlock);
          return;
        }
      }
      lex_token(&open);
    }
  }

  void lex_token(std::string* open) {
    const char c = source_[position_];
    if (is_digit(c)) {
      lex_number();
    } else if (is_name_start(c)) {
      lex_name();
    } else if (c == '\'' || c == '"') {
      lex_string(c);
    } else {
      lex_operator(open);
    }
  }

  void lex_operator(std::string* open) {
    const auto* it = std::find_if(std::begin(kOperators), std::end(kOperators),
                                  [&](std::string_view op) { return rest().starts_with(op); });
    if (it == std::end(kOperators)) {
      const Utf8Step step = decode_utf8(rest());
      fail(fmt::format("unexpected character '{}'", rest().substr(0, step.length)));
    }
    const std::string op(*it);
    if (op == "(" || op == "[" || op == "{") {
      *open += op == "(" ? ')' : op == "[" ? ']' : '}';
    } else if (op == ")" || op == "]" || op == "}") {
      if (open->empty() || open->back() != op[0]) fail(fmt::format("unexpected '{}'", op));
      open->pop_back();
    }
    push(TokenKind::kOperator, op);
    position_ += op.size();
  }

  void lex_name() {
    size_t end = position_;
    while (end < source_.size()) {
      const Utf8Step step = decode_utf8(std::string_view(source_).substr(end));
      if (!is_word_character(step.code_point)) break;
      end += step.length;
    }
    if (end == position_) {
      fail(fmt::format("unexpected character '{}'", rest().substr(0, decode_utf8(rest()).length)));
    }
    push(TokenKind::kName, source_.substr(position_, end - position_));
    position_ = end;
  }

  // Digits with single underscores between them, without the underscores.
  std::string take_digits(size_t* at, std::string_view digits) const {
    std::string out;
    while (*at < source_.size()) {
      const char c = source_[*at];
      if (digits.find(c) != std::string_view::npos) {
        out += c;
      } else if (c != '_' || *at + 1 >= source_.size() ||
                 digits.find(source_[*at + 1]) == std::string_view::npos) {
        break;
      }
      ++*at;
    }
    return out;
  }

  void lex_number() {
    constexpr std::string_view kDecimal = "0123456789";
    size_t at = position_;
    int base = 10;
    std::string digits;
    const char prefix = at + 1 < source_.size() ? source_[at + 1] : '\0';
    if (source_[at] == '0' && (prefix == 'x' || prefix == 'X' || prefix == 'o' || prefix == 'O' ||
                               prefix == 'b' || prefix == 'B')) {
      base = prefix == 'x' || prefix == 'X' ? 16 : prefix == 'o' || prefix == 'O' ? 8 : 2;
      at += 2;
      digits = take_digits(&at, base == 16  ? "0123456789abcdefABCDEF"
                                : base == 8 ? "01234567"
                                            : "01");
    } else {
      digits = take_digits(&at, kDecimal);
      // After a dot ("x.0.1") a number is an index, never a fraction.
      const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
      if (!after_dot && lex_fraction(digits, at)) return;
    }
    int64_t value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size()) {
      fail("an integer is malformed or does not fit 64 bits");
    }
    push(TokenKind::kInteger, "");
    tokens_.back().integer = value;
    position_ = at;
  }

  // A fraction or exponent after `digits`, which end at `at`.
  bool lex_fraction(std::string text, size_t at) {
    constexpr std::string_view kDecimal = "0123456789";
    bool is_float = false;
    if (at + 1 < source_.size() && source_[at] == '.' && is_digit(source_[at + 1])) {
      ++at;
      text += '.' + take_digits(&at, kDecimal);
      is_float = true;
    }
    if (at < source_.size() && (source_[at] == 'e' || source_[at] == 'E')) {
      size_t exponent = at + 1;
      std::string sign;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) {
        sign = source_[exponent++];
      }
      const std::string digits = take_digits(&exponent, kDecimal);
      if (!digits.empty()) {
        text += 'e' + sign + digits;
        at = exponent;
        is_float = true;
      }
    }
    if (!is_float) return false;
    push(TokenKind::kFloat, "");
    tokens_.back().number = std::strtod(text.c_str(), nullptr);
    position_ = at;
    return true;
  }

  void lex_string(char quote) {
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("string without an end");
    push(TokenKind::kString,
         unescape(std::string_view(source_).substr(position_ + 1, end - position_ - 1)));
    advance(end + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];  // the lexer took pairs, so there is one
      switch (c) {
        case '\n':
          break;
        case '\\':
        case '\'':
        case '"':
          out += c;
          break;
        case 'a':
          out += '\a';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'n':
          out += '\n';
          break;
        case 'r':
          out += '\r';
          break;
        case 't':
          out += '\t';
          break;
        case 'v':
          out += '\v';
          break;
        case 'x':
          i += unescape_code_point(text.substr(i + 1), 2, 2, 16, &out);
          break;
        case 'u':
          i += unescape_code_point(text.substr(i + 1), 4, 4, 16, &out);
          break;
        case 'U':
          i += unescape_code_point(text.substr(i + 1), 8, 8, 16, &out);
          break;
        case 'N':
          fail("the escape \\N is not supported");
        default:
          if (c >= '0' && c <= '7') {
            i += unescape_code_point(text.substr(i), 1, 3, 8, &out) - 1;
          } else {
            out += '\\';
            out += c;
          }
      }
    }
    return out;
  }

  // Returns the number of digits taken.
  size_t unescape_code_point(std::string_view text, size_t least, size_t most, int base,
                             std::string* out) const {
    uint32_t value = 0;
    const auto digits = text.substr(0, most);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    const auto count = static_cast<size_t>(parsed.ptr - digits.data());
    const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
    if (parsed.ec != std::errc() || count < least || value > 0x10FFFF || surrogate) {
      fail("malformed escape in a string");
    }
    append_utf8(value, out);
    return count;
  }

  std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // whether the text begins at the start of a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) {
  if (!is_valid_utf8(source)) throw_invalid("the template is not valid UTF-8");
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace shoal::jinja

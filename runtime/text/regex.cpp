#include "runtime/text/regex.h"

#include <cctype>
#include <new>

#include "kernels/base/error.h"

namespace shoal {
namespace {

// Far above any published pattern (the longest, DeepSeek-V2's letter list, has 1.5 KB).
constexpr size_t kMaxPatternBytes = 64 * 1024;
// Published patterns backtrack at most over one run of white space, once per character of it: 16 M
// lets a prompt of that many spaces pass, and ends a catastrophic pattern within about a second.
constexpr uint32_t kMatchLimit = 16'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;

// PCRE2's own \s has U+180E in it and its \w lacks marks and connectors, so both are spelled out.
constexpr std::string_view kSpaceSet =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kWordSet = R"(\p{L}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kDigitSet = R"(\p{Nd})";

class PatternTranslator {
 public:
  PatternTranslator(std::string_view pattern, std::string_view where)
      : pattern_(pattern), where_(where) {}

  std::string translate() {
    while (position_ < pattern_.size()) {
      const char c = pattern_[position_];
      if (c == '\\') {
        translate_escape();
      } else if (in_class_) {
        translate_in_class(c);
      } else if (c == '[') {
        open_class();
      } else if (c == '{') {
        translate_interval();
      } else if (pattern_.substr(position_, 2) == "(*") {
        refuse("a (*VERB)");
      } else {
        out_ += c;
        ++position_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view construct) const {
    throw_invalid("{}: regular expression uses {}, which is not supported", where_, construct);
  }

  void open_class() {
    in_class_ = true;
    out_ += '[';
    if (++position_ < pattern_.size() && pattern_[position_] == '^') {
      out_ += '^';
      ++position_;
    }
    // Oniguruma takes "[]" as an error or a literal depending on its syntax flags.
    if (position_ < pattern_.size() && pattern_[position_] == ']')
      refuse("an unescaped ']' in a set");
  }

  void translate_in_class(char c) {
    if (c == '[') refuse("a set inside a set");
    if (pattern_.substr(position_, 2) == "&&") refuse("set intersection (&&)");
    if (c == ']') in_class_ = false;
    out_ += c;
    ++position_;
  }

  void translate_interval() {
    const size_t close = pattern_.find('}', position_);
    if (close == std::string_view::npos) refuse("an unescaped '{'");
    const auto body = pattern_.substr(position_ + 1, close - position_ - 1);
    const bool numeric = !body.empty() && body.front() != ',' &&
                         body.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!numeric) refuse(fmt::format("the repetition {{{}}}", body));
    // {n,m}+ is possessive in PCRE2 and a repetition of a repetition in Oniguruma.
    if (close + 1 < pattern_.size() && pattern_[close + 1] == '+') refuse("a possessive {n,m}+");
    out_ += pattern_.substr(position_, close + 1 - position_);
    position_ = close + 1;
  }

  void append_set(std::string_view set, bool negated) {
    if (!in_class_) {
      out_ += negated ? "[^" : "[";
      out_ += set;
      out_ += ']';
    } else if (!negated) {
      out_ += set;
    } else {
      refuse("a negated class (\\S, \\W or \\D) inside a set");
    }
  }

  void translate_escape() {
    if (position_ + 1 >= pattern_.size()) refuse("a trailing backslash");
    const char c = pattern_[position_ + 1];
    position_ += 2;
    switch (c) {
      case 's':
      case 'S':
        append_set(kSpaceSet, c == 'S');
        return;
      case 'w':
      case 'W':
        append_set(kWordSet, c == 'W');
        return;
      case 'd':
      case 'D':
        append_set(kDigitSet, c == 'D');
        return;
      case 'p':
      case 'P': {
        const size_t close = pattern_.find('}', position_);
        if (position_ >= pattern_.size() || pattern_[position_] != '{' ||
            close == std::string_view::npos) {
          refuse("\\p without braces");
        }
        out_ += '\\';
        out_ += c;
        out_ += pattern_.substr(position_, close + 1 - position_);
        position_ = close + 1;
        return;
      }
      case 'n':
      case 'r':
      case 't':
      case 'f':
        out_ += {'\\', c};
        return;
      case 'x':
      case 'u':
        translate_code_point(c);
        return;
      default:
        break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && std::isalnum(byte)) refuse(fmt::format("the escape \\{}", c));
    if (byte >= 0x80) {
      out_ += c;  // an escaped non-ASCII character is itself; its other bytes follow as literals
    } else {
      out_ += {'\\', c};
    }
  }

  void translate_code_point(char kind) {
    std::string_view digits;
    bool is_byte = false;
    if (kind == 'x' && position_ < pattern_.size() && pattern_[position_] == '{') {
      const size_t close = pattern_.find('}', position_);
      if (close == std::string_view::npos) refuse("an unterminated \\x{");
      digits = pattern_.substr(position_ + 1, close - position_ - 1);
      position_ = close + 1;
    } else {
      digits = pattern_.substr(position_, kind == 'x' ? 2 : 4);
      position_ += digits.size();
      is_byte = kind == 'x';
    }
    if (digits.empty() || digits.size() > 6 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse("a malformed code point escape");
    }
    if (is_byte && std::stoul(std::string(digits), nullptr, 16) > 0x7F) {
      refuse("a byte escape \\x80 to \\xFF");  // one byte of a character to Oniguruma
    }
    out_ += fmt::format("\\x{{{}}}", digits);
  }

  std::string_view pattern_;
  std::string_view where_;
  std::string out_;
  size_t position_ = 0;
  bool in_class_ = false;
};

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR as_units(std::string_view text) {
  // PCRE2 10.42 rejects a null subject even when its length is 0.
  return reinterpret_cast<PCRE2_SPTR>(text.data() == nullptr ? "" : text.data());
}

}  // namespace

RegexScratch::RegexScratch()
    // Only the whole match is read, so one pair of offsets is enough whatever the pattern.
    : match_data_(pcre2_match_data_create(1, nullptr)),
      limits_(pcre2_match_context_create(nullptr)) {
  if (!match_data_ || !limits_) throw std::bad_alloc();
  pcre2_set_match_limit(limits_.get(), kMatchLimit);
  pcre2_set_depth_limit(limits_.get(), kDepthLimit);
  pcre2_set_heap_limit(limits_.get(), kHeapLimitKib);
}

Regex::Regex(std::string_view pattern, std::string_view where) {
  if (pattern.size() > kMaxPatternBytes) {
    throw_invalid("{}: regular expression of {} bytes; at most {} are supported", where,
                  pattern.size(), kMaxPatternBytes);
  }
  const std::string translated = PatternTranslator(pattern, where).translate();
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(as_units(translated), translated.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &error, &offset, nullptr));
  if (!code_) throw_invalid("{}: regular expression: {}", where, pcre2_message(error));
  jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

bool Regex::find(std::string_view subject, size_t start, RegexScratch* scratch,
                 RegexMatch* match) const {
  const auto run = [&](uint32_t options) {
    return pcre2_match(code_.get(), as_units(subject), subject.size(), start,
                       options | PCRE2_NO_UTF_CHECK, scratch->match_data_.get(),
                       scratch->limits_.get());
  };
  int result = run(0);
  // The compiled code has a fixed 32 KiB stack; the interpreter uses the heap, up to its own limit.
  if (jit_ && result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {
    throw_invalid("text could not be split by the tokenizer's regular expression: {}",
                  pcre2_message(result));
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch->match_data_.get());
  match->begin = offsets[0];
  match->end = offsets[1];
  return true;
}

}  // namespace shoal

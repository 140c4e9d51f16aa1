// Python's two ways to fill in a format string.
#include <array>
#include <cstdio>

#include "kernels/base/error.h"
#include "runtime/text/jinja/callable.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

constexpr int64_t kMaxFieldWidth = 10'000;

// One % conversion: %[(name)][flags][width][.precision]type
struct Conversion {
  std::string flags;
  int64_t width = 0;
  int64_t precision = -1;
  char type = '\0';
};

class PercentFormatter {
 public:
  PercentFormatter(const std::string& format, const Value& values)
      : format_(format), values_(values) {}

  std::string run() {
    while (position_ < format_.size()) {
      const size_t percent = std::min(format_.find('%', position_), format_.size());
      out_.append(std::string_view(format_).substr(position_, percent - position_));
      position_ = percent;
      if (position_ < format_.size()) convert();
    }
    if (!values_.is_dict() && next_ < count()) throw_invalid("%: more values than conversions");
    return out_.take();
  }

 private:
  size_t count() const { return values_.is_tuple() ? values_.items().size() : 1; }

  char peek() const { return position_ < format_.size() ? format_[position_] : '\0'; }

  int64_t take_number() {
    int64_t number = 0;
    while (peek() >= '0' && peek() <= '9') {
      number = number * 10 + (format_[position_++] - '0');
      if (number > kMaxFieldWidth) throw_invalid("%: a width over {}", kMaxFieldWidth);
    }
    return number;
  }

  const Value& next_value() {
    if (next_ >= count()) throw_invalid("%: fewer values than conversions");
    return values_.is_tuple() ? values_.items()[next_++] : (++next_, values_);
  }

  void convert() {
    ++position_;  // the percent sign
    const Value* value = nullptr;
    if (peek() == '(') {
      const size_t close = format_.find(')', position_);
      if (close == std::string::npos || !values_.is_dict()) throw_invalid("%: malformed (name)");
      const auto name = std::string_view(format_).substr(position_ + 1, close - position_ - 1);
      value = values_.mapping().find(name);
      if (value == nullptr) throw_invalid("%: no value named {}", name);
      position_ = close + 1;
    }
    Conversion conversion;
    while (std::string_view("-+ 0#").find(peek()) != std::string_view::npos && peek() != '\0') {
      if (conversion.flags.find(peek()) == std::string::npos) conversion.flags += peek();
      ++position_;
    }
    conversion.width = take_number();
    if (peek() == '.') {
      ++position_;
      conversion.precision = take_number();
    }
    conversion.type = peek();
    ++position_;
    if (conversion.type == '%') {
      out_.append("%");
      return;
    }
    if (value == nullptr) value = &next_value();
    value->require_defined();
    append(conversion, *value);
  }

  void append(const Conversion& conversion, const Value& value) {
    switch (conversion.type) {
      case 's':
      case 'r': {
        Writer text;
        conversion.type == 's' ? append_text(value, &text) : append_repr(value, &text);
        append_padded(conversion, text.take());
        return;
      }
      case 'd':
      case 'i':
      case 'u':
        append_integer(conversion, value, "lld");
        return;
      case 'x':
        append_integer(conversion, value, "llx");
        return;
      case 'X':
        append_integer(conversion, value, "llX");
        return;
      case 'o':
        append_integer(conversion, value, "llo");
        return;
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        append_float(conversion, value);
        return;
      default:
        throw_invalid("%: the conversion '{}' is not supported", conversion.type);
    }
  }

  void append_padded(const Conversion& conversion, std::string text) {
    if (conversion.precision >= 0) {
      size_t end = 0;
      for (int64_t i = 0; i < conversion.precision && end < text.size(); ++i) {
        end += decode_utf8(std::string_view(text).substr(end)).length;
      }
      text.resize(end);
    }
    const auto length = static_cast<int64_t>(count_code_points(text));
    const auto padding = static_cast<size_t>(std::max<int64_t>(conversion.width - length, 0));
    const bool left = conversion.flags.find('-') != std::string::npos;
    if (!left) out_.append(padding, ' ');
    out_.append(text);
    if (left) out_.append(padding, ' ');
  }

  template <typename Number>
  void append_number(const Conversion& conversion, const char* type, Number number) {
    std::string spec = "%" + conversion.flags;
    if (conversion.width > 0) spec += std::to_string(conversion.width);
    if (conversion.precision >= 0) spec += "." + std::to_string(conversion.precision);
    spec += type;
    std::string text(static_cast<size_t>(std::snprintf(nullptr, 0, spec.c_str(), number)), '\0');
    std::snprintf(text.data(), text.size() + 1, spec.c_str(), number);
    out_.append(text);
  }

  void append_integer(const Conversion& conversion, const Value& value, const char* type) {
    if (!value.is_number()) throw_invalid("%{}: needs a number", conversion.type);
    const double whole = value.is_float() ? value.as_double() : 0;
    if (!(whole > -9e18 && whole < 9e18)) throw_invalid("%{}: number too large", conversion.type);
    const int64_t number = value.is_float() ? static_cast<int64_t>(whole) : value.as_int();
    if (number < 0 && type[2] != 'd') {
      throw_invalid("%{}: a negative number is not supported", conversion.type);
    }
    append_number(conversion, type, static_cast<long long>(number));
  }

  void append_float(const Conversion& conversion, const Value& value) {
    if (!value.is_number()) throw_invalid("%{}: needs a number", conversion.type);
    const char type[] = {conversion.type, '\0'};
    append_number(conversion, type, value.as_double());
  }

  const std::string& format_;
  const Value& values_;
  Writer out_;
  size_t position_ = 0;
  size_t next_ = 0;
};

const Value& field_value(std::string_view name, size_t* automatic, const Arguments& arguments) {
  const bool numeric = name.find_first_not_of("0123456789") == std::string_view::npos;
  if (!numeric) {
    for (const auto& [key, value] : arguments.keyword) {
      if (key == name) return value;
    }
    throw_invalid("format: no value for the field {{{}}}", name);
  }
  if (name.size() > 4) throw_invalid("format: no value for the field {{{}}}", name);
  const size_t index = name.empty() ? (*automatic)++ : std::stoul(std::string(name));
  if (index >= arguments.positional.size()) {
    throw_invalid("format: no value for the field {{{}}}", name);
  }
  return arguments.positional[index];
}

}  // namespace

std::string format_percent(const std::string& format, const Value& values) {
  return PercentFormatter(format, values).run();
}

std::string format_braces(const std::string& format, const Arguments& arguments) {
  Writer out;
  size_t automatic = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    const bool doubled = i + 1 < format.size() && format[i + 1] == c;
    if ((c != '{' && c != '}') || doubled) {
      out.append(1, c);
      if (c == '{' || c == '}') ++i;
      continue;
    }
    const size_t close = c == '{' ? format.find('}', i) : std::string::npos;
    if (close == std::string::npos) throw_invalid("format: a single '{}'", c);
    std::string_view field = std::string_view(format).substr(i + 1, close - i - 1);
    const bool repr = field.ends_with("!r");
    if (repr || field.ends_with("!s")) field.remove_suffix(2);
    if (field.find_first_of(".[:!{") != std::string_view::npos) {
      throw_invalid("format: the field {{{}}} is not supported (only names and numbers)", field);
    }
    const Value& value = field_value(field, &automatic, arguments);
    repr ? append_repr(value, &out) : append_text(value, &out);
    i = close;
  }
  return out.take();
}

}  // namespace shoal::jinja

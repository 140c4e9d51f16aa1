#include "runtime/text/jinja/format.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "kernels/base/error.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

void append_string_repr(const std::string& text, Writer* out) {
  const bool double_quotes =
      text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = double_quotes ? '"' : '\'';
  out->append(1, quote);
  std::string_view rest = text;
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    const char32_t c = step.code_point;
    if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out->append(1, '\\');
      out->append(1, static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (is_printable(c)) {
      out->append(rest.substr(0, step.length));
    } else if (c < 0x100) {
      out->append(fmt::format("\\x{:02x}", static_cast<uint32_t>(c)));
    } else if (c < 0x10000) {
      out->append(fmt::format("\\u{:04x}", static_cast<uint32_t>(c)));
    } else {
      out->append(fmt::format("\\U{:08x}", static_cast<uint32_t>(c)));
    }
    rest.remove_prefix(step.length);
  }
  out->append(1, quote);
}

void append_json_string(std::string_view text, bool ensure_ascii, Writer* out) {
  out->append("\"");
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    const char32_t c = step.code_point;
    if (c == '"') {
      out->append("\\\"");
    } else if (c == '\\') {
      out->append("\\\\");
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (c == '\f') {
      out->append("\\f");
    } else if (c == '\b') {
      out->append("\\b");
    } else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
      out->append(fmt::format("\\u{:04x}", static_cast<uint32_t>(c)));
    } else if (ensure_ascii && c >= 0x10000) {
      const uint32_t offset = static_cast<uint32_t>(c) - 0x10000;
      out->append(
          fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (offset >> 10), 0xDC00 + (offset & 0x3FF)));
    } else {
      out->append(text.substr(0, step.length));
    }
    text.remove_prefix(step.length);
  }
  out->append("\"");
}

std::string json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return float_repr(value);
}

std::string json_key(const Value& key) {
  if (key.is_string()) return key.as_string();
  if (key.is_bool()) return key.as_bool() ? "true" : "false";
  if (key.is_none()) return "null";
  return key.is_float() ? json_float(key.as_double()) : std::to_string(key.as_int());
}

class JsonWriter {
 public:
  JsonWriter(const JsonFormat& format, Writer* out) : format_(format), out_(out) {}

  void write(const Value& value) {
    if (value.is_none()) {
      out_->append("null");
    } else if (value.is_bool()) {
      out_->append(value.as_bool() ? "true" : "false");
    } else if (value.is_int()) {
      out_->append(std::to_string(value.as_int()));
    } else if (value.is_float()) {
      out_->append(json_float(value.as_double()));
    } else if (value.is_string()) {
      append_json_string(value.as_string(), format_.ensure_ascii, out_);
    } else if (value.is_sequence()) {
      write_items('[', ']', value.items(), [&](const Value& item) { write(item); });
    } else if (value.is_dict()) {
      write_dict(value.mapping());
    } else {
      value.require_defined();
      throw_invalid("a value of type {} cannot be written as JSON", value.type_name());
    }
  }

 private:
  template <typename Items, typename WriteItem>
  void write_items(char open, char close, const Items& items, const WriteItem& write_item) {
    out_->append(1, open);
    ++level_;
    bool first = true;
    for (const auto& item : items) {
      if (!first) out_->append(format_.item_separator);
      first = false;
      break_line();
      write_item(item);
    }
    --level_;
    if (!first) break_line();
    out_->append(1, close);
  }

  void write_dict(const Mapping& mapping) {
    std::vector<const std::pair<Value, Value>*> items;
    items.reserve(mapping.items.size());
    for (const auto& item : mapping.items) items.push_back(&item);
    if (format_.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto* a, const auto* b) { return a->first.less(b->first); });
    }
    write_items('{', '}', items, [&](const std::pair<Value, Value>* item) {
      append_json_string(json_key(item->first), format_.ensure_ascii, out_);
      out_->append(format_.key_separator);
      write(item->second);
    });
  }

  void break_line() {
    if (!format_.indent) return;
    out_->append("\n");
    for (int i = 0; i < level_; ++i) out_->append(*format_.indent);
  }

  const JsonFormat& format_;
  Writer* out_;
  int level_ = 0;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // The shortest digits that read back as the same number, laid out by Python's rule.
  std::array<char, 32> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::scientific)
                       .ptr;
  const std::string text(buffer.data(), end);
  const size_t mark = text.find('e');
  const int exponent = std::atoi(text.c_str() + mark + 1);
  std::string digits;
  for (const char c : text.substr(0, mark)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  const std::string sign = text[0] == '-' ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02d}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

void append_text(const Value& value, Writer* out) {
  if (value.is_string()) {
    out->append(value.as_string());
  } else if (!value.is_undefined()) {
    append_repr(value, out);
  }
}

std::string to_text(const Value& value) {
  Writer out;
  append_text(value, &out);
  return out.take();
}

void append_repr(const Value& value, Writer* out) {
  if (value.is_undefined()) {
    out->append("Undefined");
  } else if (value.is_none()) {
    out->append("None");
  } else if (value.is_bool()) {
    out->append(value.as_bool() ? "True" : "False");
  } else if (value.is_int()) {
    out->append(std::to_string(value.as_int()));
  } else if (value.is_float()) {
    out->append(float_repr(value.as_double()));
  } else if (value.is_string()) {
    append_string_repr(value.as_string(), out);
  } else if (value.is_sequence()) {
    const Values& items = value.items();
    out->append(value.is_tuple() ? "(" : "[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out->append(", ");
      append_repr(items[i], out);
    }
    if (value.is_tuple() && items.size() == 1) out->append(",");
    out->append(value.is_tuple() ? ")" : "]");
  } else if (value.is_dict()) {
    out->append("{");
    bool first = true;
    for (const auto& [key, item] : value.mapping().items) {
      if (!first) out->append(", ");
      first = false;
      append_repr(key, out);
      out->append(": ");
      append_repr(item, out);
    }
    out->append("}");
  } else {
    throw_invalid("a value of type {} cannot be printed", value.type_name());
  }
}

void append_json(const Value& value, const JsonFormat& format, Writer* out) {
  JsonWriter(format, out).write(value);
}

}  // namespace shoal::jinja

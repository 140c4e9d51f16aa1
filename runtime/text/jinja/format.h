// Values as text: str(), repr() and json.dumps() of Python.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

// Python's str(); undefined gives nothing.
void append_text(const Value& value, Writer* out);
std::string to_text(const Value& value);
// Python's repr().
void append_repr(const Value& value, Writer* out);
std::string float_repr(double value);

struct JsonFormat {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // one level of it; none: all on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
void append_json(const Value& value, const JsonFormat& format, Writer* out);

// Python's format % values, and format.format(*positional, **keyword) with plain fields.
std::string format_percent(const std::string& format, const Value& values);
struct Arguments;
std::string format_braces(const std::string& format, const Arguments& arguments);

}  // namespace shoal::jinja

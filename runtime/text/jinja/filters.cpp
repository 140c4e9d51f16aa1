// The filters: value | name(arguments).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/jinja/string_tools.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

using Filter = Value (*)(Interpreter& in, const Value& value, const Arguments& arguments);

void no_arguments(std::string_view name, const Arguments& arguments) {
  BoundArguments(name, arguments, {});
}

Value length_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("length", arguments);
  size_t length = 0;
  if (value.is_string()) {
    length = count_code_points(value.as_string());
  } else if (value.is_sequence()) {
    length = value.items().size();
  } else if (value.is_dict()) {
    length = value.mapping().items.size();
  } else if (!value.is_undefined()) {
    throw_invalid("a value of type {} has no length", value.type_name());
  }
  return Value(static_cast<int64_t>(length));
}

Value default_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("default", arguments, {"default_value", "boolean"});
  if (!value.is_undefined() && (value.truthy() || !bound.boolean(1, false))) return value;
  return bound.find(0) != nullptr ? *bound.find(0) : Value::string("");
}

Value tojson_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("tojson", arguments,
                             {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonFormat format;
  format.ensure_ascii = bound.boolean(0, false);
  format.sort_keys = bound.boolean(3, false);
  if (const Value* indent = bound.find(1); indent != nullptr && !indent->is_none()) {
    if (indent->is_string()) {
      format.indent = indent->as_string();
    } else {
      format.indent =
          std::string(static_cast<size_t>(std::clamp<int64_t>(bound.integer(1, 0), 0, 1000)), ' ');
    }
    format.item_separator = ",";
  }
  if (const Value* separators = bound.find(2); separators != nullptr && !separators->is_none()) {
    const Value pair = in.iterate(*separators);
    if (pair.items().size() != 2 || !pair.items()[0].is_string() || !pair.items()[1].is_string()) {
      throw_invalid("tojson: separators must be two strings");
    }
    format.item_separator = pair.items()[0].as_string();
    format.key_separator = pair.items()[1].as_string();
  }
  Writer out;
  append_json(value, format, &out);
  return Value::string(out.take());
}

Value trim_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("trim", arguments, {"chars"});
  const Value* chars = bound.find(0);
  const bool given = chars != nullptr && !chars->is_none();
  return Value::string(
      strip(to_text(value), given ? &bound.require_string(0) : nullptr, StripSide::kBoth));
}

Value join_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("join", arguments, {"d", "attribute"});
  const std::string separator = bound.find(0) != nullptr ? to_text(*bound.find(0)) : "";
  const Value items = in.iterate(value);
  Writer out;
  for (size_t i = 0; i < items.items().size(); ++i) {
    if (i > 0) out.append(separator);
    const Value& item = items.items()[i];
    const Value part = bound.find(1) != nullptr ? in.path(item, *bound.find(1)) : item;
    in.charge(part);
    append_text(part, &out);
  }
  return Value::string(out.take());
}

Value first_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  no_arguments("first", arguments);
  const Value items = in.iterate(value);
  if (items.items().empty()) return Value::undefined("first: the sequence is empty");
  return items.items().front();
}

Value last_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  no_arguments("last", arguments);
  const Value items = in.iterate(value);
  if (items.items().empty()) return Value::undefined("last: the sequence is empty");
  return items.items().back();
}

Value list_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  no_arguments("list", arguments);
  return Value::list(in.iterate(value).items());
}

Value reverse_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  no_arguments("reverse", arguments);
  if (value.is_string()) {
    return slice(value, Value::none(), Value::none(), Value(int64_t{-1}));
  }
  Values items = in.iterate(value).items();
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items));
}

Value items_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("items", arguments);
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) throw_invalid("items needs a dict, not {}", value.type_name());
  return dict_items(value);
}

Value string_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("string", arguments);
  return value.is_string() ? value : Value::string(to_text(value));
}

Value upper_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("upper", arguments);
  return Value::string(to_upper(to_text(value)));
}

Value lower_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("lower", arguments);
  return Value::string(to_lower(to_text(value)));
}

Value capitalize_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("capitalize", arguments);
  return Value::string(to_capitalized(to_text(value)));
}

// Unlike str.title(): only the first letter after white space, a dash or an opening bracket.
Value title_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("title", arguments);
  const std::string text = to_text(value);
  std::string out;
  std::string word;
  const auto flush = [&] {
    if (word.empty()) return;
    const size_t first = decode_utf8(word).length;
    out += to_upper(std::string_view(word).substr(0, first));
    out += to_lower(std::string_view(word).substr(first));
    word.clear();
  };
  std::string_view rest = text;
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    const char32_t c = step.code_point;
    if (is_python_space(c) || c == '-' || c == '(' || c == '[' || c == '{' || c == '<') {
      flush();
      out += rest.substr(0, step.length);
    } else {
      word += rest.substr(0, step.length);
    }
    rest.remove_prefix(step.length);
  }
  flush();
  return Value::string(std::move(out));
}

Value replace_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("replace", arguments, {"old", "new", "count"});
  const Value* count = bound.find(2);
  return Value::string(replace(in, to_text(value), to_text(bound.require(0)),
                               to_text(bound.require(1)),
                               count == nullptr || count->is_none() ? -1 : bound.integer(2, -1)));
}

Value indent_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("indent", arguments, {"width", "first", "blank"});
  value.require_defined();
  if (!value.is_string()) throw_invalid("indent needs a string, not {}", value.type_name());
  const Value* width = bound.find(0);
  const std::string indent =
      width != nullptr && width->is_string()
          ? width->as_string()
          : std::string(static_cast<size_t>(std::clamp<int64_t>(bound.integer(0, 4), 0, 1000)),
                        ' ');
  const bool blank = bound.boolean(2, false);
  // Jinja adds a line break before it splits, so that a last empty line counts.
  const std::string text = value.as_string() + "\n";
  const auto lines = split_lines(text);
  Writer out;
  if (bound.boolean(1, false)) out.append(indent);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out.append("\n");
      if (blank || !lines[i].empty()) out.append(indent);
    }
    out.append(lines[i]);
  }
  return Value::string(out.take());
}

Value int_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("int", arguments, {"default", "base"});
  value.require_defined();
  const Value fallback = bound.find(0) != nullptr ? *bound.find(0) : Value(int64_t{0});
  if (value.is_integral()) return Value(value.as_int());
  std::optional<double> number;
  if (value.is_float()) number = value.as_double();
  if (value.is_string()) {
    const int64_t base = bound.integer(1, 10);
    if (base < 2 || base > 36) throw_invalid("int: base {} is not supported", base);
    if (const auto integer = parse_integer(value.as_string(), static_cast<int>(base))) {
      return Value(*integer);
    }
    number = parse_float(value.as_string());
  }
  if (!number || !(*number > -9.2e18 && *number < 9.2e18)) return fallback;
  return Value(static_cast<int64_t>(*number));
}

Value float_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("float", arguments, {"default"});
  value.require_defined();
  if (value.is_number()) return Value(value.as_double());
  if (value.is_string()) {
    if (const auto number = parse_float(value.as_string())) return Value(*number);
  }
  return bound.find(0) != nullptr ? *bound.find(0) : Value(0.0);
}

Value abs_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  no_arguments("abs", arguments);
  value.require_defined();
  if (!value.is_number()) throw_invalid("abs needs a number, not {}", value.type_name());
  if (value.is_integral()) return value.as_int() < 0 ? negate(value) : Value(value.as_int());
  return Value(std::fabs(value.as_double()));
}

Value round_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("round", arguments, {"precision", "method"});
  value.require_defined();
  if (!value.is_number()) throw_invalid("round needs a number, not {}", value.type_name());
  const int64_t precision = bound.integer(0, 0);
  const std::string method = bound.string(1, "common");
  if (precision < 0 || precision > 20) throw_invalid("round: precision must be 0 to 20");
  const double number = value.as_double();
  if (method == "common") {
    if (value.is_integral()) return Value(value.as_int());
    // Decimal, half to even, correctly rounded: what Python's round() does.
    char buffer[400];
    std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(precision), number);
    return Value(std::strtod(buffer, nullptr));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  throw_invalid("round: method {} is not supported (common, ceil, floor)", method);
}

// The key that sort, min, max and unique compare by.
Value order_key(Interpreter& in, const Value& item, const Value* attribute, bool case_sensitive) {
  Value key = attribute != nullptr && !attribute->is_none() ? in.path(item, *attribute) : item;
  in.charge(key);
  if (case_sensitive || !key.is_string()) return key;
  return Value::string(to_lower(key.as_string()));
}

using Keyed = std::pair<Value, Value>;  // key, item

std::vector<Keyed> keyed_items(Interpreter& in, const Value& value, const Value* attribute,
                               bool case_sensitive) {
  const Value items = in.iterate(value);
  std::vector<Keyed> keyed;
  for (const Value& item : items.items()) {
    keyed.emplace_back(order_key(in, item, attribute, case_sensitive), item);
  }
  return keyed;
}

void stable_sort_keyed(Interpreter& in, std::vector<Keyed>* keyed, bool reverse) {
  std::stable_sort(keyed->begin(), keyed->end(), [&](const Keyed& a, const Keyed& b) {
    in.charge(a.first.weight() + b.first.weight());
    return reverse ? b.first.less(a.first) : a.first.less(b.first);
  });
}

Value sort_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  auto keyed = keyed_items(in, value, bound.find(2), bound.boolean(1, false));
  stable_sort_keyed(in, &keyed, bound.boolean(0, false));
  Values out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value extreme(Interpreter& in, const Value& value, const Arguments& arguments, bool want_less) {
  const std::string_view name = want_less ? "min" : "max";
  const BoundArguments bound(name, arguments, {"case_sensitive", "attribute"});
  const auto keyed = keyed_items(in, value, bound.find(1), bound.boolean(0, false));
  if (keyed.empty()) return Value::undefined(fmt::format("{}: the sequence is empty", name));
  const Keyed* best = &keyed.front();
  for (const Keyed& candidate : keyed) {
    const bool better =
        want_less ? candidate.first.less(best->first) : best->first.less(candidate.first);
    if (better) best = &candidate;
  }
  return best->second;
}

Value min_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return extreme(in, value, arguments, true);
}

Value max_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return extreme(in, value, arguments, false);
}

Value unique_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("unique", arguments, {"case_sensitive", "attribute"});
  const auto keyed = keyed_items(in, value, bound.find(1), bound.boolean(0, false));
  Values seen;
  Values out;
  for (const Keyed& candidate : keyed) {
    const bool known = std::any_of(seen.begin(), seen.end(), [&](const Value& other) {
      in.charge(candidate.first);
      return other.equals(candidate.first);
    });
    if (known) continue;
    seen.push_back(candidate.first);
    out.push_back(candidate.second);
  }
  return Value::list(std::move(out));
}

Value sum_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("sum", arguments, {"attribute", "start"});
  Value total = bound.find(1) != nullptr ? *bound.find(1) : Value(int64_t{0});
  const Value items = in.iterate(value);
  for (const Value& item : items.items()) {
    const bool by_attribute = bound.find(0) != nullptr && !bound.find(0)->is_none();
    total = binary_operation(in, Operator::kAdd, total,
                             by_attribute ? in.path(item, *bound.find(0)) : item);
  }
  return total;
}

Value dictsort_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  value.require_defined();
  if (!value.is_dict()) throw_invalid("dictsort needs a dict, not {}", value.type_name());
  const std::string by = bound.string(1, "key");
  if (by != "key" && by != "value") throw_invalid("dictsort: by must be \"key\" or \"value\"");
  const Value place(int64_t{by == "key" ? 0 : 1});
  auto keyed = keyed_items(in, dict_items(value), &place, bound.boolean(0, false));
  stable_sort_keyed(in, &keyed, bound.boolean(2, false));
  Values out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value map_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const Value items = in.iterate(value);
  Values out;
  if (arguments.positional.empty()) {
    const BoundArguments bound("map", arguments, {"attribute", "default"});
    for (const Value& item : items.items()) {
      Value result = in.path(item, bound.require(0));
      if (result.is_undefined() && bound.find(1) != nullptr) result = *bound.find(1);
      in.charge(result);
      out.push_back(std::move(result));
    }
    return Value::list(std::move(out));
  }
  if (!arguments.positional[0].is_string()) throw_invalid("map needs the name of a filter");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : items.items()) {
    out.push_back(in.filter(arguments.positional[0].as_string(), item, rest));
  }
  return Value::list(std::move(out));
}

Value select(Interpreter& in, const Value& value, const Arguments& arguments, bool by_attribute,
             bool keep) {
  Arguments rest = arguments;
  Value attribute;
  if (by_attribute) {
    if (rest.positional.empty()) throw_invalid("selectattr and rejectattr need an attribute");
    attribute = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  std::optional<std::string> test;
  if (!rest.positional.empty()) {
    if (!rest.positional[0].is_string()) throw_invalid("select needs the name of a test");
    test = rest.positional[0].as_string();
    rest.positional.erase(rest.positional.begin());
  }
  const Value items = in.iterate(value);
  Values out;
  for (const Value& item : items.items()) {
    in.charge(1);
    const Value subject = by_attribute ? in.path(item, attribute) : item;
    const bool holds = test ? in.test(*test, subject, rest) : subject.truthy();
    if (holds == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

Value select_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return select(in, value, arguments, false, true);
}
Value reject_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return select(in, value, arguments, false, false);
}
Value selectattr_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return select(in, value, arguments, true, true);
}
Value rejectattr_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  return select(in, value, arguments, true, false);
}

Value attr_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const BoundArguments bound("attr", arguments, {"name"});
  value.require_defined();
  // Attributes only, not the keys of a dict.
  if (value.is_dict() && find_method(value, bound.require_string(0)) == nullptr) {
    return Value::undefined(fmt::format("a dict has no attribute '{}'", bound.require_string(0)));
  }
  return in.attribute(value, bound.require_string(0));
}

Value format_filter(Interpreter& in, const Value& value, const Arguments& arguments) {
  const std::string format = to_text(value);
  if (arguments.keyword.empty()) {
    const Value values = Value::tuple(arguments.positional);
    in.charge(values);
    return Value::string(format_percent(format, values));
  }
  if (!arguments.positional.empty()) throw_invalid("format takes values by place or by name");
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, argument] : arguments.keyword) {
    named.emplace_back(Value::string(name), argument);
  }
  return Value::string(format_percent(format, Value::dict(std::move(named))));
}

const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> table = {
      {"abs", abs_filter},
      {"attr", attr_filter},
      {"capitalize", capitalize_filter},
      {"count", length_filter},
      {"d", default_filter},
      {"default", default_filter},
      {"dictsort", dictsort_filter},
      {"first", first_filter},
      {"float", float_filter},
      {"format", format_filter},
      {"indent", indent_filter},
      {"int", int_filter},
      {"items", items_filter},
      {"join", join_filter},
      {"last", last_filter},
      {"length", length_filter},
      {"list", list_filter},
      {"lower", lower_filter},
      {"map", map_filter},
      {"max", max_filter},
      {"min", min_filter},
      {"reject", reject_filter},
      {"rejectattr", rejectattr_filter},
      {"replace", replace_filter},
      {"reverse", reverse_filter},
      {"round", round_filter},
      // Nothing is escaped, so nothing needs to be marked as safe.
      {"safe", string_filter},
      {"select", select_filter},
      {"selectattr", selectattr_filter},
      {"sort", sort_filter},
      {"string", string_filter},
      {"sum", sum_filter},
      {"title", title_filter},
      {"tojson", tojson_filter},
      {"trim", trim_filter},
      {"unique", unique_filter},
      {"upper", upper_filter},
  };
  return table;
}

}  // namespace

Value Interpreter::filter(std::string_view name, const Value& input, const Arguments& arguments) {
  const auto it = filters().find(name);
  if (it == filters().end()) throw_invalid("the filter '{}' is not supported", name);
  charge(input);
  Value result = it->second(*this, input, arguments);
  charge(result);
  return result;
}

}  // namespace shoal::jinja

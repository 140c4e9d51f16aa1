// The methods of strings, dicts, lists and loops. Nothing that changes a value, and nothing else of
// Python's objects, can be reached.
#include <algorithm>
#include <limits>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/jinja/string_tools.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

using Methods = std::unordered_map<std::string_view, Method>;

Value make_list(std::vector<std::string_view> parts) {
  Values items;
  items.reserve(parts.size());
  for (const auto part : parts) items.push_back(Value::string(std::string(part)));
  return Value::list(std::move(items));
}

// str.split() and str.rsplit() at white space: runs count as one, none at the ends.
std::vector<std::string_view> split_at_space(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::pair<size_t, size_t>> words;
  size_t at = 0;
  size_t begin = std::string_view::npos;
  while (at < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(at));
    const bool space = is_python_space(step.code_point);
    if (!space && begin == std::string_view::npos) begin = at;
    if (space && begin != std::string_view::npos) {
      words.emplace_back(begin, at);
      begin = std::string_view::npos;
    }
    at += step.length;
  }
  if (begin != std::string_view::npos) words.emplace_back(begin, text.size());
  std::vector<std::string_view> parts;
  const auto limit = most < 0 ? words.size() : std::min(words.size(), static_cast<size_t>(most));
  if (limit == words.size()) {
    for (const auto& [from, to] : words) parts.push_back(text.substr(from, to - from));
  } else if (from_right) {
    // The rest keeps the white space before it, and loses that after it.
    const size_t kept = words.size() - limit;
    parts.push_back(text.substr(0, words[kept - 1].second));
    for (size_t i = kept; i < words.size(); ++i) {
      parts.push_back(text.substr(words[i].first, words[i].second - words[i].first));
    }
  } else {
    for (size_t i = 0; i < limit; ++i) {
      parts.push_back(text.substr(words[i].first, words[i].second - words[i].first));
    }
    parts.push_back(text.substr(words[limit].first));
  }
  return parts;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator,
                                       int64_t most, bool from_right) {
  std::vector<std::string_view> parts;
  size_t left = most < 0 ? std::numeric_limits<size_t>::max() : static_cast<size_t>(most);
  if (from_right) {
    for (; left > 0; --left) {
      const size_t at = text.rfind(separator);
      if (at == std::string_view::npos) break;
      parts.push_back(text.substr(at + separator.size()));
      text = text.substr(0, at);
    }
    parts.push_back(text);
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  for (; left > 0; --left) {
    const size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  parts.push_back(text);
  return parts;
}

Value split_method(Interpreter& in, const Value& self, const Arguments& arguments,
                   bool from_right) {
  const BoundArguments bound(from_right ? "rsplit" : "split", arguments, {"sep", "maxsplit"});
  const int64_t most = bound.integer(1, -1);
  const Value* separator = bound.find(0);
  std::vector<std::string_view> parts;
  if (separator == nullptr || separator->is_none()) {
    parts = split_at_space(self.as_string(), most, from_right);
  } else {
    const std::string& text = bound.require_string(0);
    if (text.empty()) throw_invalid("split: empty separator");
    charge_search(in, self.as_string(), text);
    parts = split_at(self.as_string(), text, most, from_right);
  }
  in.charge(parts.size() * 4);  // each part becomes a value of some 100 bytes
  return make_list(std::move(parts));
}

Value str_split(Interpreter& in, const Value& self, const Arguments& arguments) {
  return split_method(in, self, arguments, false);
}
Value str_rsplit(Interpreter& in, const Value& self, const Arguments& arguments) {
  return split_method(in, self, arguments, true);
}

template <StripSide side>
Value str_strip(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("strip", arguments, {"chars"});
  const bool given = bound.find(0) != nullptr && !bound.find(0)->is_none();
  return Value::string(strip(self.as_string(), given ? &bound.require_string(0) : nullptr, side));
}

// startswith and endswith: one string, or a tuple of alternatives.
Value affix(const Value& self, const Arguments& arguments, bool at_end) {
  const BoundArguments bound(at_end ? "endswith" : "startswith", arguments, {"affix"});
  const std::string& text = self.as_string();
  const auto matches = [&](const std::string& candidate) {
    return at_end ? text.ends_with(candidate) : text.starts_with(candidate);
  };
  if (bound.require(0).is_tuple()) {
    const Values& candidates = bound.require(0).items();
    return Value(std::any_of(candidates.begin(), candidates.end(), [&](const Value& candidate) {
      return candidate.is_string() && matches(candidate.as_string());
    }));
  }
  return Value(matches(bound.require_string(0)));
}

Value str_startswith(Interpreter&, const Value& self, const Arguments& arguments) {
  return affix(self, arguments, false);
}
Value str_endswith(Interpreter&, const Value& self, const Arguments& arguments) {
  return affix(self, arguments, true);
}

Value str_removeprefix(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("removeprefix", arguments, {"prefix"});
  std::string_view text = self.as_string();
  if (text.starts_with(bound.require_string(0))) text.remove_prefix(bound.require_string(0).size());
  return Value::string(std::string(text));
}

Value str_removesuffix(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("removesuffix", arguments, {"suffix"});
  std::string_view text = self.as_string();
  if (text.ends_with(bound.require_string(0))) text.remove_suffix(bound.require_string(0).size());
  return Value::string(std::string(text));
}

Value str_replace(Interpreter& in, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("replace", arguments, {"old", "new", "count"});
  return Value::string(replace(in, self.as_string(), bound.require_string(0),
                               bound.require_string(1), bound.integer(2, -1)));
}

Value str_upper(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("upper", arguments, {});
  return Value::string(to_upper(self.as_string()));
}
Value str_lower(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("lower", arguments, {});
  return Value::string(to_lower(self.as_string()));
}
Value str_title(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("title", arguments, {});
  return Value::string(to_title(self.as_string()));
}
Value str_capitalize(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("capitalize", arguments, {});
  return Value::string(to_capitalized(self.as_string()));
}

// Where the needle is, in characters; -1 if it is not there.
int64_t find_in(Interpreter& in, std::string_view name, const Value& self,
                const Arguments& arguments, bool from_right) {
  const BoundArguments bound(name, arguments, {"sub"});
  const std::string& text = self.as_string();
  charge_search(in, text, bound.require_string(0));
  const size_t at =
      from_right ? text.rfind(bound.require_string(0)) : text.find(bound.require_string(0));
  if (at == std::string::npos) return -1;
  return static_cast<int64_t>(count_code_points(std::string_view(text).substr(0, at)));
}

Value str_find(Interpreter& in, const Value& self, const Arguments& arguments) {
  return Value(find_in(in, "find", self, arguments, false));
}
Value str_rfind(Interpreter& in, const Value& self, const Arguments& arguments) {
  return Value(find_in(in, "rfind", self, arguments, true));
}
Value str_index(Interpreter& in, const Value& self, const Arguments& arguments) {
  const int64_t at = find_in(in, "index", self, arguments, false);
  if (at < 0) throw_invalid("index: substring not found");
  return Value(at);
}

Value str_count(Interpreter& in, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("count", arguments, {"sub"});
  const std::string& needle = bound.require_string(0);
  charge_search(in, self.as_string(), needle);
  if (needle.empty()) return Value(static_cast<int64_t>(count_code_points(self.as_string())) + 1);
  int64_t count = 0;
  for (size_t at = self.as_string().find(needle); at != std::string::npos;
       at = self.as_string().find(needle, at + needle.size())) {
    ++count;
  }
  return Value(count);
}

Value str_join(Interpreter& in, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("join", arguments, {"iterable"});
  const Value items = in.iterate(bound.require(0));
  Writer out;
  for (size_t i = 0; i < items.items().size(); ++i) {
    const Value& item = items.items()[i];
    item.require_defined();
    if (!item.is_string()) throw_invalid("join: item {} is {}, not a string", i, item.type_name());
    in.charge(item);
    if (i > 0) out.append(self.as_string());
    out.append(item.as_string());
  }
  return Value::string(out.take());
}

Value str_splitlines(Interpreter& in, const Value& self, const Arguments& arguments) {
  BoundArguments("splitlines", arguments, {});
  auto lines = split_lines(self.as_string());
  in.charge(lines.size() * 4);
  return make_list(std::move(lines));
}

Value partition(Interpreter& in, const Value& self, const Arguments& arguments, bool from_right) {
  const BoundArguments bound(from_right ? "rpartition" : "partition", arguments, {"sep"});
  const std::string& separator = bound.require_string(0);
  if (separator.empty()) throw_invalid("partition: empty separator");
  const std::string& text = self.as_string();
  charge_search(in, text, separator);
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos) {
    const Value empty = Value::string("");
    return from_right ? Value::tuple({empty, empty, self}) : Value::tuple({self, empty, empty});
  }
  return Value::tuple({Value::string(text.substr(0, at)), Value::string(separator),
                       Value::string(text.substr(at + separator.size()))});
}

Value str_partition(Interpreter& in, const Value& self, const Arguments& arguments) {
  return partition(in, self, arguments, false);
}
Value str_rpartition(Interpreter& in, const Value& self, const Arguments& arguments) {
  return partition(in, self, arguments, true);
}

Value str_format(Interpreter& in, const Value& self, const Arguments& arguments) {
  for (const Value& value : arguments.positional) in.charge(value);
  return Value::string(format_braces(self.as_string(), arguments));
}

// Every character satisfies `holds`, and there is one.
template <typename Predicate>
Value all_characters(const Value& self, const Arguments& arguments, std::string_view name,
                     const Predicate& holds) {
  BoundArguments(name, arguments, {});
  std::string_view rest = self.as_string();
  if (rest.empty()) return Value(false);
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    if (!holds(step.code_point)) return Value(false);
    rest.remove_prefix(step.length);
  }
  return Value(true);
}

Value str_isdigit(Interpreter&, const Value& self, const Arguments& arguments) {
  return all_characters(self, arguments, "isdigit", is_decimal_digit);
}
Value str_isnumeric(Interpreter&, const Value& self, const Arguments& arguments) {
  return all_characters(self, arguments, "isnumeric", is_numeric);
}
Value str_isalpha(Interpreter&, const Value& self, const Arguments& arguments) {
  return all_characters(self, arguments, "isalpha", is_letter);
}
Value str_isalnum(Interpreter&, const Value& self, const Arguments& arguments) {
  return all_characters(self, arguments, "isalnum",
                        [](char32_t c) { return is_letter(c) || is_numeric(c); });
}
Value str_isspace(Interpreter&, const Value& self, const Arguments& arguments) {
  return all_characters(self, arguments, "isspace", is_python_space);
}
Value str_isupper(Interpreter& in, const Value& self, const Arguments& arguments) {
  BoundArguments("isupper", arguments, {});
  return Value(in.test("upper", self, {}));
}
Value str_islower(Interpreter& in, const Value& self, const Arguments& arguments) {
  BoundArguments("islower", arguments, {});
  return Value(in.test("lower", self, {}));
}

Value dict_items_method(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("items", arguments, {});
  return dict_items(self);
}

Value dict_keys(Interpreter& in, const Value& self, const Arguments& arguments) {
  BoundArguments("keys", arguments, {});
  return in.iterate(self);
}

Value dict_values(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("values", arguments, {});
  Values values;
  for (const auto& [key, value] : self.mapping().items) values.push_back(value);
  return Value::list(std::move(values));
}

Value dict_get(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("get", arguments, {"key", "default"});
  if (const Value* value = self.mapping().find(bound.require(0))) return *value;
  return bound.find(1) != nullptr ? *bound.find(1) : Value::none();
}

Value copy_method(Interpreter&, const Value& self, const Arguments& arguments) {
  BoundArguments("copy", arguments, {});
  return self;  // values never change
}

Value list_index(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("index", arguments, {"value"});
  const Values& items = self.items();
  const auto it = std::find_if(items.begin(), items.end(),
                               [&](const Value& item) { return item.equals(bound.require(0)); });
  if (it == items.end()) throw_invalid("index: the value is not in the list");
  return Value(static_cast<int64_t>(it - items.begin()));
}

Value list_count(Interpreter&, const Value& self, const Arguments& arguments) {
  const BoundArguments bound("count", arguments, {"value"});
  const Values& items = self.items();
  return Value(
      static_cast<int64_t>(std::count_if(items.begin(), items.end(), [&](const Value& item) {
        return item.equals(bound.require(0));
      })));
}

Value loop_cycle(Interpreter&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.keyword.empty()) {
    throw_invalid("loop.cycle needs values to cycle through");
  }
  return arguments.positional[self.loop().index % arguments.positional.size()];
}

const Methods& string_methods() {
  static const Methods table = {
      {"split", str_split},
      {"rsplit", str_rsplit},
      {"strip", str_strip<StripSide::kBoth>},
      {"lstrip", str_strip<StripSide::kLeft>},
      {"rstrip", str_strip<StripSide::kRight>},
      {"startswith", str_startswith},
      {"endswith", str_endswith},
      {"removeprefix", str_removeprefix},
      {"removesuffix", str_removesuffix},
      {"replace", str_replace},
      {"upper", str_upper},
      {"lower", str_lower},
      {"title", str_title},
      {"capitalize", str_capitalize},
      {"find", str_find},
      {"rfind", str_rfind},
      {"index", str_index},
      {"count", str_count},
      {"join", str_join},
      {"splitlines", str_splitlines},
      {"partition", str_partition},
      {"rpartition", str_rpartition},
      {"format", str_format},
      {"isdigit", str_isdigit},
      {"isdecimal", str_isdigit},
      {"isnumeric", str_isnumeric},
      {"isalpha", str_isalpha},
      {"isalnum", str_isalnum},
      {"isspace", str_isspace},
      {"isupper", str_isupper},
      {"islower", str_islower},
  };
  return table;
}

const Methods& dict_methods() {
  static const Methods table = {
      {"items", dict_items_method}, {"keys", dict_keys}, {"values", dict_values}, {"get", dict_get},
      {"copy", copy_method},
  };
  return table;
}

const Methods& sequence_methods() {
  static const Methods table = {
      {"index", list_index}, {"count", list_count}, {"copy", copy_method}};
  return table;
}

const Methods& loop_methods() {
  static const Methods table = {{"cycle", loop_cycle}};
  return table;
}

}  // namespace

Method find_method(const Value& self, std::string_view name) {
  const Methods* methods = self.is_string()     ? &string_methods()
                           : self.is_dict()     ? &dict_methods()
                           : self.is_sequence() ? &sequence_methods()
                           : self.is_loop()     ? &loop_methods()
                                                : nullptr;
  if (methods == nullptr) return nullptr;
  const auto it = methods->find(name);
  return it == methods->end() ? nullptr : it->second;
}

}  // namespace shoal::jinja

// The global functions of chat templates.
#include <array>
#include <ctime>
#include <limits>
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

// The bound of Jinja's sandbox.
constexpr uint64_t kMaxRange = 100'000;

Value range_function(Interpreter& in, const Arguments& arguments) {
  const BoundArguments bound("range", arguments, {"start", "stop", "step"});
  int64_t start = 0;
  int64_t stop = bound.integer(0, 0);
  bound.require(0);
  if (bound.find(1) != nullptr) {
    start = stop;
    stop = bound.integer(1, 0);
  }
  const int64_t step = bound.integer(2, 1);
  if (step == 0) throw_invalid("range: step must not be 0");
  // Unsigned: the distance of two 64-bit integers may need 64 bits of its own.
  const uint64_t distance =
      step > 0 ? (stop > start ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start) : 0)
               : (start > stop ? static_cast<uint64_t>(start) - static_cast<uint64_t>(stop) : 0);
  const uint64_t stride =
      step > 0 ? static_cast<uint64_t>(step) : uint64_t{0} - static_cast<uint64_t>(step);
  const uint64_t count = distance / stride + (distance % stride != 0 ? 1 : 0);
  if (count > kMaxRange) throw_invalid("range: {} items; at most {} are allowed", count, kMaxRange);
  in.charge(count);
  Values items;
  items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    items.emplace_back(
        static_cast<int64_t>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(step)));
  }
  return Value::list(std::move(items));
}

// The items of the dict that dict() and namespace() start from, and the named ones.
std::vector<std::pair<Value, Value>> dict_arguments(std::string_view name,
                                                    const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (arguments.positional.size() > 1) throw_invalid("{} takes at most one dict", name);
  if (!arguments.positional.empty()) {
    arguments.positional[0].require_defined();
    if (!arguments.positional[0].is_dict()) throw_invalid("{} needs a dict", name);
    items = arguments.positional[0].mapping().items;
  }
  for (const auto& [key, value] : arguments.keyword) items.emplace_back(Value::string(key), value);
  return items;
}

Value dict_function(Interpreter&, const Arguments& arguments) {
  return Value::dict(dict_arguments("dict", arguments));
}

Value namespace_function(Interpreter& in, const Arguments& arguments) {
  Namespace* created = in.new_namespace();
  for (auto& [key, value] : dict_arguments("namespace", arguments)) {
    if (!key.is_string() || key.as_string().starts_with('_')) {
      throw_invalid("names of attributes must be strings that do not begin with '_'");
    }
    created->attributes[key.as_string()] = std::move(value);
  }
  return Value(created);
}

Value raise_exception_function(Interpreter&, const Arguments& arguments) {
  const BoundArguments bound("raise_exception", arguments, {"message"});
  throw InvalidInput(to_text(bound.require(0)));
}

Value strftime_now_function(Interpreter& in, const Arguments& arguments) {
  const BoundArguments bound("strftime_now", arguments, {"format"});
  const std::string& format = bound.require_string(0);
  const std::time_t now = in.now();
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 4096> buffer;
  if (format.size() > buffer.size() / 16) throw_invalid("strftime_now: the format is too long");
  const size_t length = std::strftime(buffer.data(), buffer.size(), format.c_str(), &local);
  return Value::string(replace_invalid_utf8(std::string_view(buffer.data(), length)));
}

const std::unordered_map<std::string_view, Global>& globals() {
  static const std::unordered_map<std::string_view, Global> table = {
      {"range", range_function},
      {"dict", dict_function},
      {"namespace", namespace_function},
      {"raise_exception", raise_exception_function},
      {"strftime_now", strftime_now_function},
  };
  return table;
}

}  // namespace

Global find_global(std::string_view name) {
  const auto it = globals().find(name);
  return it == globals().end() ? nullptr : it->second;
}

}  // namespace shoal::jinja

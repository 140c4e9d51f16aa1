// The tests: value is name(arguments).
#include <unordered_map>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

using Test = bool (*)(Interpreter& in, const Value& value, const Value& argument);

struct Entry {
  Test test;
  bool takes_argument = false;
};

int64_t require_integer(const Value& value) {
  value.require_defined();
  if (!value.is_integral()) throw_invalid("{} is not an integer", value.type_name());
  return value.as_int();
}

// All cased letters are upper (or lower) case, and there is one.
bool all_cased(const std::string& text, bool upper) {
  bool any = false;
  std::string_view rest = text;
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    rest.remove_prefix(step.length);
    if (!is_cased(step.code_point)) continue;
    if (is_upper(step.code_point) != upper) return false;
    any = true;
  }
  return any;
}

template <Operator op>
bool compare_test(Interpreter& in, const Value& value, const Value& argument) {
  return compare(in, op, value, argument);
}

bool is_same(const Value& a, const Value& b) {
  return a.type_name() == b.type_name() && a.equals(b);
}

const std::unordered_map<std::string_view, Entry>& tests() {
  using V = const Value&;
  static const std::unordered_map<std::string_view, Entry> table = {
      {"defined", {[](Interpreter&, V v, V) { return !v.is_undefined(); }}},
      {"undefined", {[](Interpreter&, V v, V) { return v.is_undefined(); }}},
      {"none", {[](Interpreter&, V v, V) { return v.is_none(); }}},
      {"boolean", {[](Interpreter&, V v, V) { return v.is_bool(); }}},
      {"true", {[](Interpreter&, V v, V) { return v.is_bool() && v.as_bool(); }}},
      {"false", {[](Interpreter&, V v, V) { return v.is_bool() && !v.as_bool(); }}},
      {"integer", {[](Interpreter&, V v, V) { return v.is_int(); }}},
      {"float", {[](Interpreter&, V v, V) { return v.is_float(); }}},
      {"number", {[](Interpreter&, V v, V) { return v.is_number(); }}},
      {"string", {[](Interpreter&, V v, V) { return v.is_string(); }}},
      {"mapping", {[](Interpreter&, V v, V) { return v.is_dict(); }}},
      {"sequence", {[](Interpreter&, V v, V) {
         return v.is_string() || v.is_sequence() || v.is_dict() || v.is_undefined();
       }}},
      {"iterable", {[](Interpreter&, V v, V) {
         return v.is_string() || v.is_sequence() || v.is_dict() || v.is_undefined();
       }}},
      {"callable", {[](Interpreter&, V v, V) { return v.is_callable(); }}},
      {"lower", {[](Interpreter&, V v, V) { return all_cased(to_text(v), false); }}},
      {"upper", {[](Interpreter&, V v, V) { return all_cased(to_text(v), true); }}},
      {"odd", {[](Interpreter&, V v, V) { return require_integer(v) % 2 != 0; }}},
      {"even", {[](Interpreter&, V v, V) { return require_integer(v) % 2 == 0; }}},
      {"divisibleby",
       {[](Interpreter& in, V v, V by) {
          return !binary_operation(in, Operator::kMod, v, by).truthy();
        },
        true}},
      {"sameas", {[](Interpreter&, V v, V other) { return is_same(v, other); }, true}},
      {"in", {compare_test<Operator::kIn>, true}},
      {"eq", {compare_test<Operator::kEqual>, true}},
      {"equalto", {compare_test<Operator::kEqual>, true}},
      {"==", {compare_test<Operator::kEqual>, true}},
      {"ne", {compare_test<Operator::kNotEqual>, true}},
      {"!=", {compare_test<Operator::kNotEqual>, true}},
      {"lt", {compare_test<Operator::kLess>, true}},
      {"lessthan", {compare_test<Operator::kLess>, true}},
      {"<", {compare_test<Operator::kLess>, true}},
      {"le", {compare_test<Operator::kLessEqual>, true}},
      {"<=", {compare_test<Operator::kLessEqual>, true}},
      {"gt", {compare_test<Operator::kGreater>, true}},
      {"greaterthan", {compare_test<Operator::kGreater>, true}},
      {">", {compare_test<Operator::kGreater>, true}},
      {"ge", {compare_test<Operator::kGreaterEqual>, true}},
      {">=", {compare_test<Operator::kGreaterEqual>, true}},
  };
  return table;
}

}  // namespace

bool Interpreter::test(std::string_view name, const Value& input, const Arguments& arguments) {
  const auto it = tests().find(name);
  if (it == tests().end()) throw_invalid("the test '{}' is not supported", name);
  const size_t expected = it->second.takes_argument ? 1 : 0;
  if (arguments.positional.size() != expected || !arguments.keyword.empty()) {
    throw_invalid("the test '{}' takes {} arguments", name, expected);
  }
  charge(input);
  return it->second.test(*this, input, expected == 1 ? arguments.positional[0] : Value::none());
}

}  // namespace shoal::jinja

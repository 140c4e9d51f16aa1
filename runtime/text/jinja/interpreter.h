// Runs a parsed template. One render, one thread; bounded in steps, output, values and recursion.
#pragma once

#include <cstdint>
#include <ctime>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/text/jinja/ast.h"
#include "runtime/text/jinja/callable.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

// Variables by name; a look-up goes on in the scope around.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::unordered_map<std::string, Value> variables;
};

struct RenderLimits {
  // A step is one node of the tree, or 32 bytes of text worked on. A long conversation takes some
  // 10^5, so this is far above any use and ends a hostile template within about a second.
  uint64_t max_steps = 20'000'000;
  // Nested evaluations: the tree and the macros that call each other. A frame takes under 1 KiB of
  // stack (4 KiB under a sanitizer).
  int max_depth = 500;
};

class Interpreter {
 public:
  Interpreter(const RenderLimits& limits, std::time_t now) : limits_(limits), now_(now) {}

  // Throws InvalidInput with the line. Call once.
  std::string run(const Block& block, std::vector<std::pair<std::string, Value>> variables);

  // For the built-in functions:
  // Counts work against the limit.
  void charge(uint64_t steps);
  void charge(const Value& value) { charge(value.weight()); }
  // obj.name and obj[key]; undefined if there is none. Throws for an undefined object.
  Value attribute(const Value& object, std::string_view name);
  Value item(const Value& object, const Value& key);
  // A dotted path such as "function.name" or "0.role".
  Value path(const Value& object, const Value& path);
  // What a for loop goes over, as a list. Throws for what cannot be iterated.
  Value iterate(const Value& value);
  Value filter(std::string_view name, const Value& input, const Arguments& arguments);
  bool test(std::string_view name, const Value& input, const Arguments& arguments);
  std::time_t now() const { return now_; }
  Namespace* new_namespace();

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  // Counts the nesting and remembers the line for messages.
  class Frame;

  Flow run_block(const Block& block);
  Flow run_statement(const Statement& statement);
  Flow run_for(const Statement& statement);
  Flow run_if(const Statement& statement);
  void run_set_block(const Statement& statement);
  void run_call_block(const Statement& statement);
  void run_with(const Statement& statement);
  void define_macro(const Statement& statement);
  Value loop_items(const Statement& statement);

  // The output of a block that runs in a scope of its own.
  Value capture(const Block& block);
  void assign(const Target& target, const Value& value);
  Value lookup(const std::string& name) const;

  Value evaluate(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Value evaluate_compare(const Expression& expression);
  Value evaluate_concat(const Expression& expression);
  Value evaluate_slice(const Expression& expression);
  Value evaluate_dict(const Expression& expression);
  Values evaluate_all(const std::vector<ExpressionPtr>& expressions);
  Arguments evaluate_arguments(const CallArguments& arguments);
  // Filters of a block, around `input` where the expression has no child.
  Value evaluate_filters(const Expression& expression, const Value& input);
  bool evaluate_test(const Expression& expression);

  Value call(const Value& callee, const Arguments& arguments);
  Value call_macro(const Callable& macro, const Arguments& arguments);

  const RenderLimits limits_;
  const std::time_t now_;
  uint64_t steps_ = 0;
  int depth_ = 0;
  int line_ = 1;
  std::shared_ptr<Scope> scope_;
  Writer* out_ = nullptr;
  std::deque<Namespace> namespaces_;  // values point into it
};

// The built-in functions, each in a file of its own.
using Method = Value (*)(Interpreter& interpreter, const Value& self, const Arguments& arguments);
// Null if a value of this type has no such method.
Method find_method(const Value& self, std::string_view name);
// Global functions: range, namespace, dict, raise_exception, strftime_now. Null if there is none.
using Global = Value (*)(Interpreter& interpreter, const Arguments& arguments);
Global find_global(std::string_view name);

// Operators (operators.cpp).
Value binary_operation(Interpreter& interpreter, Operator op, const Value& left,
                       const Value& right);
bool compare(Interpreter& interpreter, Operator op, const Value& left, const Value& right);
Value negate(const Value& value);
// Python's value[start:stop:step]; an absent bound is none.
Value slice(const Value& value, const Value& start, const Value& stop, const Value& step);
// The element at `index`, negative from the end; nothing if there is none. For sequences and
// strings.
std::optional<Value> element(const Value& value, int64_t index);
// The characters of a string, each a string.
Values characters(std::string_view text);

}  // namespace shoal::jinja

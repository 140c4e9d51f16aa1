// What a template can call: a macro of its own, a method of a value, or a global function.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

struct Statement;
struct Scope;

struct Callable {
  enum class Kind { kGlobal, kMethod, kMacro };
  Kind kind = Kind::kGlobal;
  std::string name;
  Value self;                        // kMethod: what it is a method of
  const Statement* macro = nullptr;  // kMacro: its definition, owned by the template
  // kMacro: where it was defined. Weak, because the scope holds the macro.
  std::weak_ptr<Scope> scope;
};

// The evaluated arguments of a call.
struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

// Binds arguments to parameter names as Python does. Throws InvalidInput, naming the function, for
// too many, unknown or doubled ones.
class BoundArguments {
 public:
  BoundArguments(std::string_view function, const Arguments& arguments,
                 std::initializer_list<std::string_view> parameters);

  const Value* find(size_t index) const { return bound_[index]; }
  const Value& require(size_t index) const;
  std::string string(size_t index, std::string_view fallback) const;
  const std::string& require_string(size_t index) const;
  int64_t integer(size_t index, int64_t fallback) const;
  bool boolean(size_t index, bool fallback) const;

 private:
  std::string_view function_;
  std::vector<std::string_view> names_;
  std::vector<const Value*> bound_;
};

}  // namespace shoal::jinja

// The values of the template language: Python's, as far as chat templates use them.
// Strings, lists and dicts are immutable and shared, so that copying a Value is cheap and two
// threads may read the same one. Nesting is bounded at construction, so every recursive walk is
// shallow. Errors are InvalidInput without a place; the interpreter adds the line.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace shoal::jinja {

class Value;
using Values = std::vector<Value>;

// Deeper than the JSON of any request may be (kMaxJsonDepth), plus what a template wraps around it.
inline constexpr int kMaxValueDepth = 120;

struct Sequence;   // list or tuple
struct Mapping;    // dict, in insertion order
struct Namespace;  // namespace(): the only mutable object; owned by the interpreter
struct Callable;   // macro, bound method or global function
struct LoopState;  // the "loop" of a for

class Value {
 public:
  // Undefined: `why` is the error message of an attempt to use it.
  static Value undefined(std::string why);
  static Value none() { return Value(); }
  static Value string(std::string text);
  static Value list(Values items);
  static Value tuple(Values items);
  static Value dict(std::vector<std::pair<Value, Value>> items);
  static Value from_json(const nlohmann::ordered_json& json);

  Value() = default;  // None
  explicit Value(bool value) : data_(value) {}
  explicit Value(int64_t value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  explicit Value(Namespace* value) : data_(value) {}
  explicit Value(std::shared_ptr<const Callable> value) : data_(std::move(value)) {}
  explicit Value(std::shared_ptr<const LoopState> value) : data_(std::move(value)) {}

  bool is_undefined() const { return holds<Undefined>(); }
  bool is_none() const { return holds<std::monostate>(); }
  bool is_bool() const { return holds<bool>(); }
  bool is_int() const { return holds<int64_t>(); }  // bool not included
  bool is_float() const { return holds<double>(); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }
  bool is_string() const { return holds<std::shared_ptr<const std::string>>(); }
  bool is_sequence() const { return holds<std::shared_ptr<const Sequence>>(); }
  bool is_list() const;
  bool is_tuple() const;
  bool is_dict() const { return holds<std::shared_ptr<const Mapping>>(); }
  bool is_namespace() const { return holds<Namespace*>(); }
  bool is_callable() const { return holds<std::shared_ptr<const Callable>>(); }
  bool is_loop() const { return holds<std::shared_ptr<const LoopState>>(); }

  // Each requires the kind that it names.
  bool as_bool() const { return std::get<bool>(data_); }
  int64_t as_int() const;    // of an integral value
  double as_double() const;  // of a number
  const std::string& as_string() const {
    return *std::get<std::shared_ptr<const std::string>>(data_);
  }
  const Values& items() const;  // of a list or tuple
  const Mapping& mapping() const { return *std::get<std::shared_ptr<const Mapping>>(data_); }
  Namespace& as_namespace() const { return *std::get<Namespace*>(data_); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data_); }
  const LoopState& loop() const { return *std::get<std::shared_ptr<const LoopState>>(data_); }

  // Python's name of the type, for messages: "str", "dict", ...
  std::string_view type_name() const;
  // Throws the message of an undefined value; does nothing for others.
  void require_defined() const;

  bool truthy() const;
  int depth() const;  // 0 for scalars
  // What a walk over it costs: about one for each scalar and each 32 bytes of text. A value that is
  // shared counts as often as it is reached, so this bounds every recursive walk.
  size_t weight() const;

  bool equals(const Value& other) const;
  // Python's <. Throws for kinds that have no order.
  bool less(const Value& other) const;
  // Python's "in": substring, element or key.
  bool contains(const Value& member) const;

 private:
  struct Undefined {
    std::shared_ptr<const std::string> why;
  };
  template <typename T>
  bool holds() const {
    return std::holds_alternative<T>(data_);
  }

  std::variant<std::monostate, Undefined, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const Sequence>, std::shared_ptr<const Mapping>, Namespace*,
               std::shared_ptr<const Callable>, std::shared_ptr<const LoopState>>
      data_;
};

struct Sequence {
  Values items;
  bool is_tuple = false;
  int depth = 1;
  size_t weight = 1;
};

struct Mapping {
  std::vector<std::pair<Value, Value>> items;
  std::unordered_map<std::string_view, size_t> by_string;  // string keys -> place in items
  int depth = 1;
  size_t weight = 1;

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
};

struct Namespace {
  std::unordered_map<std::string, Value> attributes;
};

struct LoopState {
  Value items;  // the whole list that is looped over
  size_t index = 0;
};

// The limit on one string or list; builders check it before they grow.
inline constexpr size_t kMaxStringBytes = size_t{32} << 20;
inline constexpr size_t kMaxListItems = size_t{1} << 20;
// A list that holds itself doubled a few dozen times is small in memory and endless to walk.
inline constexpr size_t kMaxWeight = size_t{1} << 24;

// A string under construction.
class Writer {
 public:
  // Throws InvalidInput past the limit.
  void append(std::string_view text);
  void append(size_t count, char c);
  std::string take() { return std::move(text_); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace shoal::jinja

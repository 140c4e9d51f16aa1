#include "runtime/text/jinja/interpreter.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"

namespace shoal::jinja {
namespace {

// Swaps a member for the life of a block; restored also when an error passes through.
template <typename T>
class Swap {
 public:
  Swap(T* place, T value) : place_(place), old_(std::exchange(*place, std::move(value))) {}
  ~Swap() { *place_ = std::move(old_); }
  Swap(const Swap&) = delete;
  Swap& operator=(const Swap&) = delete;

 private:
  T* place_;
  T old_;
};

std::shared_ptr<Scope> inner_scope(std::shared_ptr<Scope> parent) {
  auto scope = std::make_shared<Scope>();
  scope->parent = std::move(parent);
  return scope;
}

}  // namespace

class Interpreter::Frame {
 public:
  Frame(Interpreter* interpreter, int line) : interpreter_(interpreter) {
    interpreter_->line_ = line;
    interpreter_->charge(1);
    if (interpreter_->depth_ >= interpreter_->limits_.max_depth) {
      throw_invalid("nested deeper than {} levels", interpreter_->limits_.max_depth);
    }
    ++interpreter_->depth_;
  }
  ~Frame() { --interpreter_->depth_; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

 private:
  Interpreter* interpreter_;
};

std::string Interpreter::run(const Block& block,
                             std::vector<std::pair<std::string, Value>> variables) {
  Writer out;
  out_ = &out;
  scope_ = std::make_shared<Scope>();
  for (auto& [name, value] : variables) scope_->variables[name] = std::move(value);
  try {
    run_block(block);
  } catch (const InvalidInput& error) {
    throw_invalid("line {}: {}", line_, error.what());
  }
  return out.take();
}

void Interpreter::charge(uint64_t steps) {
  steps_ += std::min(steps, limits_.max_steps + 1);
  if (steps_ > limits_.max_steps) throw_invalid("more than {} steps", limits_.max_steps);
}

Namespace* Interpreter::new_namespace() { return &namespaces_.emplace_back(); }

Interpreter::Flow Interpreter::run_block(const Block& block) {
  for (const Statement& statement : block) {
    const Flow flow = run_statement(statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  const Frame frame(this, statement.line);
  switch (statement.kind) {
    case Statement::Kind::kText:
      out_->append(statement.text);
      break;
    case Statement::Kind::kPrint: {
      const Value value = evaluate(*statement.expression);
      charge(value);
      append_text(value, out_);
      break;
    }
    case Statement::Kind::kFor:
      return run_for(statement);
    case Statement::Kind::kIf:
      return run_if(statement);
    case Statement::Kind::kSet:
      assign(statement.target, evaluate(*statement.expression));
      break;
    case Statement::Kind::kSetBlock:
      run_set_block(statement);
      break;
    case Statement::Kind::kMacro:
      define_macro(statement);
      break;
    case Statement::Kind::kCallBlock:
      run_call_block(statement);
      break;
    case Statement::Kind::kFilterBlock:
      append_text(evaluate_filters(*statement.expression, capture(statement.body)), out_);
      break;
    case Statement::Kind::kWith:
      run_with(statement);
      break;
    case Statement::Kind::kGeneration:
      append_text(capture(statement.body), out_);
      break;
    case Statement::Kind::kBreak:
      return Flow::kBreak;
    case Statement::Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Value Interpreter::loop_items(const Statement& statement) {
  const Value all = iterate(evaluate(*statement.expression));
  if (!statement.condition) return all;
  Values kept;
  for (const Value& candidate : all.items()) {
    const Swap<std::shared_ptr<Scope>> inner(&scope_, inner_scope(scope_));
    assign(statement.target, candidate);
    if (evaluate(*statement.condition).truthy()) kept.push_back(candidate);
  }
  return Value::list(std::move(kept));
}

Interpreter::Flow Interpreter::run_for(const Statement& statement) {
  auto state = std::make_shared<LoopState>();
  state->items = loop_items(statement);
  const Values& items = state->items.items();
  const Value loop{std::shared_ptr<const LoopState>(state)};
  bool completed = false;
  for (size_t i = 0; i < items.size(); ++i) {
    state->index = i;
    const Swap<std::shared_ptr<Scope>> inner(&scope_, inner_scope(scope_));
    charge(1);
    scope_->variables["loop"] = loop;
    assign(statement.target, items[i]);
    const Flow flow = run_block(statement.body);
    if (flow == Flow::kBreak) break;
    completed |= flow == Flow::kNormal;
  }
  // As in Jinja, the else also runs when a break or continue cut every round short.
  if (completed || statement.otherwise.empty()) return Flow::kNormal;
  const Swap<std::shared_ptr<Scope>> inner(&scope_, inner_scope(scope_));
  return run_block(statement.otherwise);
}

Interpreter::Flow Interpreter::run_if(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (condition == nullptr || evaluate(*condition).truthy()) return run_block(body);
  }
  return Flow::kNormal;
}

Value Interpreter::capture(const Block& block) {
  Writer text;
  {
    const Swap<Writer*> out(&out_, &text);
    const Swap<std::shared_ptr<Scope>> inner(&scope_, inner_scope(scope_));
    run_block(block);
  }
  charge(text.text().size() / 32);
  return Value::string(text.take());
}

void Interpreter::run_set_block(const Statement& statement) {
  Value value = capture(statement.body);
  if (statement.expression) value = evaluate_filters(*statement.expression, value);
  assign(statement.target, value);
}

void Interpreter::run_with(const Statement& statement) {
  auto scope = inner_scope(scope_);
  Values values;
  for (const auto& [target, expression] : statement.assignments) {
    values.push_back(evaluate(*expression));
  }
  const Swap<std::shared_ptr<Scope>> inner(&scope_, std::move(scope));
  for (size_t i = 0; i < values.size(); ++i) assign(statement.assignments[i].first, values[i]);
  run_block(statement.body);
}

void Interpreter::define_macro(const Statement& statement) {
  auto macro = std::make_shared<Callable>();
  macro->kind = Callable::Kind::kMacro;
  macro->name = statement.text;
  macro->macro = &statement;
  macro->scope = scope_;
  scope_->variables[statement.text] = Value(std::shared_ptr<const Callable>(std::move(macro)));
}

void Interpreter::run_call_block(const Statement& statement) {
  auto caller = std::make_shared<Callable>();
  caller->kind = Callable::Kind::kMacro;
  caller->name = "caller";
  caller->macro = &statement;
  caller->scope = scope_;
  const Expression& expression = *statement.expression;
  const Value callee = evaluate(*expression.children[0]);
  Arguments arguments = evaluate_arguments(expression.arguments);
  arguments.keyword.emplace_back("caller", Value(std::shared_ptr<const Callable>(caller)));
  append_text(call(callee, arguments), out_);
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (!target.items.empty()) {
    const Value parts = iterate(value);
    if (parts.items().size() != target.items.size()) {
      throw_invalid("{} values for {} names", parts.items().size(), target.items.size());
    }
    for (size_t i = 0; i < target.items.size(); ++i) assign(target.items[i], parts.items()[i]);
  } else if (target.attribute.empty()) {
    scope_->variables[target.name] = value;
  } else {
    const Value object = lookup(target.name);
    object.require_defined();
    if (!object.is_namespace()) {
      throw_invalid("cannot set an attribute of '{}', which is not a namespace", target.name);
    }
    if (target.attribute.starts_with('_')) {
      throw_invalid("names of attributes must not begin with '_'");
    }
    object.as_namespace().attributes[target.attribute] = value;
  }
}

Value Interpreter::lookup(const std::string& name) const {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    const auto it = scope->variables.find(name);
    if (it != scope->variables.end()) return it->second;
  }
  if (find_global(name) != nullptr) {
    auto global = std::make_shared<Callable>();
    global->name = name;
    return Value(std::shared_ptr<const Callable>(std::move(global)));
  }
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Value Interpreter::evaluate(const Expression& e) {
  using Kind = Expression::Kind;
  const Frame frame(this, e.line);
  switch (e.kind) {
    case Kind::kConstant:
      return e.constant;
    case Kind::kName:
      return lookup(e.name);
    case Kind::kAttribute:
      return attribute(evaluate(*e.children[0]), e.name);
    case Kind::kItem: {
      const Value object = evaluate(*e.children[0]);
      return item(object, evaluate(*e.children[1]));
    }
    case Kind::kSlice:
      return evaluate_slice(e);
    case Kind::kCall:
      return evaluate_call(e);
    case Kind::kFilter:
      return evaluate_filters(e, Value::none());
    case Kind::kTest:
      return Value(evaluate_test(e));
    case Kind::kNot:
      return Value(!evaluate(*e.children[0]).truthy());
    case Kind::kNegate:
      return negate(evaluate(*e.children[0]));
    case Kind::kPlus:
      return negate(negate(evaluate(*e.children[0])));
    case Kind::kBinary: {
      const Value left = evaluate(*e.children[0]);
      return binary_operation(*this, e.op, left, evaluate(*e.children[1]));
    }
    case Kind::kAnd: {
      Value left = evaluate(*e.children[0]);
      return left.truthy() ? evaluate(*e.children[1]) : left;
    }
    case Kind::kOr: {
      Value left = evaluate(*e.children[0]);
      return left.truthy() ? left : evaluate(*e.children[1]);
    }
    case Kind::kCompare:
      return evaluate_compare(e);
    case Kind::kConcat:
      return evaluate_concat(e);
    case Kind::kCondition:
      if (evaluate(*e.children[0]).truthy()) return evaluate(*e.children[1]);
      if (e.children[2]) return evaluate(*e.children[2]);
      return Value::undefined("an inline if without else was false and has no value");
    case Kind::kList:
      return Value::list(evaluate_all(e.children));
    case Kind::kTuple:
      return Value::tuple(evaluate_all(e.children));
    case Kind::kDict:
      return evaluate_dict(e);
  }
  return Value::none();
}

Values Interpreter::evaluate_all(const std::vector<ExpressionPtr>& expressions) {
  Values values;
  values.reserve(expressions.size());
  for (const auto& expression : expressions) values.push_back(evaluate(*expression));
  return values;
}

Value Interpreter::evaluate_dict(const Expression& e) {
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i + 1 < e.children.size(); i += 2) {
    Value key = evaluate(*e.children[i]);
    items.emplace_back(std::move(key), evaluate(*e.children[i + 1]));
  }
  return Value::dict(std::move(items));
}

Value Interpreter::evaluate_slice(const Expression& e) {
  const Value object = evaluate(*e.children[0]);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (e.children[i + 1]) bounds[i] = evaluate(*e.children[i + 1]);
  }
  object.require_defined();
  charge(object);
  return slice(object, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::evaluate_compare(const Expression& e) {
  Value left = evaluate(*e.children[0]);
  for (size_t i = 0; i < e.operators.size(); ++i) {
    Value right = evaluate(*e.children[i + 1]);
    if (!compare(*this, e.operators[i], left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::evaluate_concat(const Expression& e) {
  Writer text;
  for (const auto& child : e.children) {
    const Value value = evaluate(*child);
    charge(value);
    append_text(value, &text);
  }
  return Value::string(text.take());
}

Arguments Interpreter::evaluate_arguments(const CallArguments& arguments) {
  Arguments values;
  values.positional = evaluate_all(arguments.positional);
  if (arguments.star) {
    const Value more = iterate(evaluate(*arguments.star));
    values.positional.insert(values.positional.end(), more.items().begin(), more.items().end());
  }
  for (const auto& [name, expression] : arguments.keyword) {
    values.keyword.emplace_back(name, evaluate(*expression));
  }
  if (arguments.double_star) {
    const Value more = evaluate(*arguments.double_star);
    more.require_defined();
    if (!more.is_dict()) throw_invalid("** needs a dict, not {}", more.type_name());
    for (const auto& [key, value] : more.mapping().items) {
      if (!key.is_string()) throw_invalid("** needs a dict with strings as keys");
      values.keyword.emplace_back(key.as_string(), value);
    }
  }
  return values;
}

Value Interpreter::evaluate_filters(const Expression& e, const Value& input) {
  const Frame frame(this, e.line);
  const Expression* child = e.children[0].get();
  Value value = input;
  if (child != nullptr) {
    value = child->kind == Expression::Kind::kFilter ? evaluate_filters(*child, input)
                                                     : evaluate(*child);
  }
  return filter(e.name, value, evaluate_arguments(e.arguments));
}

bool Interpreter::evaluate_test(const Expression& e) {
  const Value value = evaluate(*e.children[0]);
  return test(e.name, value, evaluate_arguments(e.arguments));
}

Value Interpreter::evaluate_call(const Expression& e) {
  const Expression& callee = *e.children[0];
  if (callee.kind == Expression::Kind::kAttribute) {
    const Value object = evaluate(*callee.children[0]);
    if (const Method method = find_method(object, callee.name)) {
      charge(object);
      Value result = method(*this, object, evaluate_arguments(e.arguments));
      charge(result);
      return result;
    }
    const Value function = attribute(object, callee.name);
    return call(function, evaluate_arguments(e.arguments));
  }
  const Value function = evaluate(callee);
  return call(function, evaluate_arguments(e.arguments));
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  callee.require_defined();
  if (!callee.is_callable())
    throw_invalid("a value of type {} cannot be called", callee.type_name());
  const Callable& function = callee.callable();
  switch (function.kind) {
    case Callable::Kind::kMacro:
      return call_macro(function, arguments);
    case Callable::Kind::kMethod: {
      const Method method = find_method(function.self, function.name);
      SHOAL_CHECK(method != nullptr);
      charge(function.self);
      Value result = method(*this, function.self, arguments);
      charge(result);
      return result;
    }
    case Callable::Kind::kGlobal:
      break;
  }
  Value result = find_global(function.name)(*this, arguments);
  charge(result);
  return result;
}

Value Interpreter::call_macro(const Callable& macro, const Arguments& arguments) {
  const auto outer = macro.scope.lock();
  if (!outer) throw_invalid("the macro {} is called outside the block that defines it", macro.name);
  const Statement& definition = *macro.macro;
  const auto& parameters = definition.parameters;
  if (arguments.positional.size() > parameters.size()) {
    throw_invalid("macro {} takes at most {} arguments, {} given", macro.name, parameters.size(),
                  arguments.positional.size());
  }
  const Swap<std::shared_ptr<Scope>> inner(&scope_, inner_scope(outer));
  auto& variables = scope_->variables;
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    variables[parameters[i]] = arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.keyword) {
    const bool known = name == "caller" ||
                       std::find(parameters.begin(), parameters.end(), name) != parameters.end();
    if (!known) throw_invalid("macro {} has no parameter {}", macro.name, name);
    if (!variables.emplace(name, value).second) {
      throw_invalid("macro {}: argument {} given twice", macro.name, name);
    }
  }
  const size_t required = parameters.size() - definition.defaults.size();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (variables.contains(parameters[i])) continue;
    Value value =
        i < required
            ? Value::undefined(fmt::format("parameter '{}' was not provided", parameters[i]))
            : evaluate(*definition.defaults[i - required]);
    variables[parameters[i]] = std::move(value);
  }
  return capture(definition.body);
}

Value Interpreter::attribute(const Value& object, std::string_view name) {
  object.require_defined();
  if (object.is_namespace()) {
    const auto& attributes = object.as_namespace().attributes;
    const auto it = attributes.find(std::string(name));
    if (it != attributes.end()) return it->second;
  } else if (find_method(object, name) != nullptr) {
    auto method = std::make_shared<Callable>();
    method->kind = Callable::Kind::kMethod;
    method->name = name;
    method->self = object;
    return Value(std::shared_ptr<const Callable>(std::move(method)));
  } else if (object.is_dict()) {
    if (const Value* value = object.mapping().find(name)) return *value;
  } else if (object.is_loop()) {
    const LoopState& loop = object.loop();
    const auto index = static_cast<int64_t>(loop.index);
    const Values& items = loop.items.items();
    const auto length = static_cast<int64_t>(items.size());
    if (name == "index") return Value(index + 1);
    if (name == "index0") return Value(index);
    if (name == "revindex") return Value(length - index);
    if (name == "revindex0") return Value(length - index - 1);
    if (name == "first") return Value(index == 0);
    if (name == "last") return Value(index + 1 >= length);
    if (name == "length") return Value(length);
    if (name == "depth") return Value(int64_t{1});  // recursive loops are refused
    if (name == "depth0") return Value(int64_t{0});
    if (name == "previtem" && index > 0) return items[loop.index - 1];
    if (name == "nextitem" && index + 1 < length) return items[loop.index + 1];
  }
  return Value::undefined(
      fmt::format("a value of type {} has no attribute '{}'", object.type_name(), name));
}

Value Interpreter::item(const Value& object, const Value& key) {
  object.require_defined();
  if (object.is_dict()) {
    if (const Value* value = object.mapping().find(key)) return *value;
  } else if ((object.is_sequence() || object.is_string()) && key.is_integral()) {
    if (object.is_string()) charge(object);
    if (auto value = element(object, key.as_int())) return *std::move(value);
    return Value::undefined(fmt::format("there is no item {}", key.as_int()));
  }
  if (key.is_string()) return attribute(object, key.as_string());
  return Value::undefined(fmt::format("a value of type {} has no item of type {}",
                                      object.type_name(), key.type_name()));
}

Value Interpreter::path(const Value& object, const Value& path) {
  if (!path.is_string()) return item(object, path);
  Value value = object;
  std::string_view rest = path.as_string();
  while (true) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string part(rest.substr(0, dot));
    const bool numeric = !part.empty() && part.size() < 10 &&
                         part.find_first_not_of("0123456789") == std::string::npos;
    value = item(value, numeric ? Value(int64_t{std::stol(part)}) : Value::string(part));
    if (dot == rest.size()) return value;
    rest.remove_prefix(dot + 1);
  }
}

Value Interpreter::iterate(const Value& value) {
  if (value.is_undefined()) return Value::list({});
  if (value.is_sequence()) return value;
  charge(value);
  if (value.is_dict()) {
    Values keys;
    for (const auto& [key, item] : value.mapping().items) keys.push_back(key);
    return Value::list(std::move(keys));
  }
  if (value.is_string()) {
    // Each character becomes a value of its own, of about 100 bytes.
    charge(value.as_string().size() * 4);
    return Value::list(characters(value.as_string()));
  }
  throw_invalid("a value of type {} cannot be iterated", value.type_name());
}

}  // namespace shoal::jinja

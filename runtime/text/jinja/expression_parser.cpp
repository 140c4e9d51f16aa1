#include "runtime/text/jinja/expression_parser.h"

#include <algorithm>
#include <optional>

#include "kernels/base/error.h"

namespace shoal::jinja {
namespace {

using Kind = Expression::Kind;

std::optional<Operator> compare_operator(const Token& token) {
  if (token.kind != TokenKind::kOperator) return std::nullopt;
  if (token.text == "==") return Operator::kEqual;
  if (token.text == "!=") return Operator::kNotEqual;
  if (token.text == "<") return Operator::kLess;
  if (token.text == "<=") return Operator::kLessEqual;
  if (token.text == ">") return Operator::kGreater;
  if (token.text == ">=") return Operator::kGreaterEqual;
  return std::nullopt;
}

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "the end of the template";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kPrintEnd:
      return "'}}'";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return "a number";
    default:
      return "'" + token.text + "'";
  }
}

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser* parser) : parser_(parser) {
  if (++parser_->nesting_ > kMaxTreeDepth) {
    --parser_->nesting_;
    parser_->fail(fmt::format("nested deeper than {} levels", kMaxTreeDepth));
  }
}

const Token& ExpressionParser::peek() const {
  return tokens_[std::min(position_ + 1, tokens_.size() - 1)];
}

Token ExpressionParser::next() {
  Token token = current();
  if (position_ + 1 < tokens_.size()) ++position_;  // the end token stays
  return token;
}

bool ExpressionParser::at_name(std::string_view name) const {
  return at(TokenKind::kName) && current().text == name;
}

bool ExpressionParser::at_operator(std::string_view op) const {
  return at(TokenKind::kOperator) && current().text == op;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_operator(std::string_view op) {
  if (!at_operator(op)) return false;
  next();
  return true;
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail_unexpected(fmt::format("'{}'", op));
}

void ExpressionParser::expect(TokenKind kind, std::string_view what) {
  if (!at(kind)) fail_unexpected(what);
  next();
}

std::string ExpressionParser::expect_name(std::string_view what) {
  if (!at(TokenKind::kName)) fail_unexpected(what);
  return next().text;
}

void ExpressionParser::fail(std::string_view message) const {
  throw_invalid("line {}: {}", current().line, message);
}

void ExpressionParser::fail_unexpected(std::string_view expected) const {
  fail(fmt::format("expected {}, got {}", expected, describe(current())));
}

template <typename... Children>
ExpressionPtr ExpressionParser::make(Kind kind, int line, Children... children) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  (node->children.push_back(std::move(children)), ...);
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::finish(ExpressionPtr node) const {
  const auto include = [&](const ExpressionPtr& child) {
    if (child) node->depth = std::max(node->depth, child->depth + 1);
  };
  for (const auto& child : node->children) include(child);
  for (const auto& argument : node->arguments.positional) include(argument);
  for (const auto& [name, argument] : node->arguments.keyword) include(argument);
  include(node->arguments.star);
  include(node->arguments.double_star);
  if (node->depth > kMaxTreeDepth) {
    fail(fmt::format("an expression of more than {} levels", kMaxTreeDepth));
  }
  return node;
}

bool ExpressionParser::at_tuple_end(std::string_view end_name) const {
  return at(TokenKind::kPrintEnd) || at(TokenKind::kBlockEnd) || at_operator(")") ||
         (!end_name.empty() && at_name(end_name));
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_condition, std::string_view end_name) {
  const int line = current().line;
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (!at_tuple_end(end_name)) {
    items.push_back(parse_expression(with_condition));
    if (!skip_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (items.empty()) fail_unexpected("an expression");
    return std::move(items[0]);
  }
  auto node = make(Kind::kTuple, line);
  node->children = std::move(items);
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_expression(bool with_condition) {
  const Nesting nesting(this);
  return with_condition ? parse_condition() : parse_or();
}

ExpressionPtr ExpressionParser::parse_condition() {
  auto value = parse_or();
  while (at_name("if")) {
    const int line = next().line;
    auto condition = parse_or();
    ExpressionPtr otherwise;
    if (skip_name("else")) otherwise = parse_expression();
    value =
        make(Kind::kCondition, line, std::move(condition), std::move(value), std::move(otherwise));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  auto left = parse_and();
  while (at_name("or")) {
    const int line = next().line;
    left = make(Kind::kOr, line, std::move(left), parse_and());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  auto left = parse_not();
  while (at_name("and")) {
    const int line = next().line;
    left = make(Kind::kAnd, line, std::move(left), parse_not());
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(this);
  const int line = next().line;
  return make(Kind::kNot, line, parse_not());
}

ExpressionPtr ExpressionParser::parse_compare() {
  const int line = current().line;
  auto first = parse_sum();
  std::vector<Operator> operators;
  std::vector<ExpressionPtr> operands;
  while (true) {
    if (const auto op = compare_operator(current())) {
      next();
      operators.push_back(*op);
    } else if (skip_name("in")) {
      operators.push_back(Operator::kIn);
    } else if (at_name("not") && peek().kind == TokenKind::kName && peek().text == "in") {
      next();
      next();
      operators.push_back(Operator::kNotIn);
    } else {
      break;
    }
    operands.push_back(parse_sum());
  }
  if (operators.empty()) return first;
  auto node = make(Kind::kCompare, line, std::move(first));
  node->operators = std::move(operators);
  for (auto& operand : operands) node->children.push_back(std::move(operand));
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_sum() {
  auto left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const Token token = next();
    left = make(Kind::kBinary, token.line, std::move(left), parse_concat());
    left->op = token.text == "+" ? Operator::kAdd : Operator::kSub;
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_concat() {
  auto first = parse_product();
  if (!at_operator("~")) return first;
  auto node = make(Kind::kConcat, current().line, std::move(first));
  while (skip_operator("~")) node->children.push_back(parse_product());
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_product() {
  auto left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    const Token token = next();
    left = make(Kind::kBinary, token.line, std::move(left), parse_power());
    left->op = token.text == "*"    ? Operator::kMul
               : token.text == "/"  ? Operator::kDiv
               : token.text == "//" ? Operator::kFloorDiv
                                    : Operator::kMod;
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_power() {
  auto left = parse_unary();
  while (at_operator("**")) {
    const int line = next().line;
    left = make(Kind::kBinary, line, std::move(left), parse_unary());
    left->op = Operator::kPow;
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filter) {
  ExpressionPtr node;
  if (at_operator("-") || at_operator("+")) {
    const Nesting nesting(this);
    const Token token = next();
    node = make(token.text == "-" ? Kind::kNegate : Kind::kPlus, token.line, parse_unary(false));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filter ? parse_filters_and_tests(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::parse_primary() {
  const int line = current().line;
  const auto constant = [&](Value value) {
    auto node = make(Kind::kConstant, line);
    node->constant = std::move(value);
    return node;
  };
  switch (current().kind) {
    case TokenKind::kName: {
      const std::string name = next().text;
      if (name == "true" || name == "True") return constant(Value(true));
      if (name == "false" || name == "False") return constant(Value(false));
      if (name == "none" || name == "None") return constant(Value::none());
      auto node = make(Kind::kName, line);
      node->name = name;
      return node;
    }
    case TokenKind::kString: {
      std::string text;
      while (at(TokenKind::kString)) text += next().text;
      return constant(Value::string(std::move(text)));
    }
    case TokenKind::kInteger:
      return constant(Value(next().integer));
    case TokenKind::kFloat:
      return constant(Value(next().number));
    default:
      break;
  }
  if (skip_operator("(")) {
    if (skip_operator(")")) return make(Kind::kTuple, line);
    auto node = parse_tuple(true);
    expect_operator(")");
    return node;
  }
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  fail_unexpected("an expression");
}

ExpressionPtr ExpressionParser::parse_list() {
  auto node = make(Kind::kList, next().line);
  while (!skip_operator("]")) {
    if (!node->children.empty()) {
      expect_operator(",");
      if (skip_operator("]")) break;
    }
    node->children.push_back(parse_expression());
  }
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto node = make(Kind::kDict, next().line);
  while (!skip_operator("}")) {
    if (!node->children.empty()) {
      expect_operator(",");
      if (skip_operator("}")) break;
    }
    node->children.push_back(parse_expression());
    expect_operator(":");
    node->children.push_back(parse_expression());
  }
  return finish(std::move(node));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (at_operator(".") || at_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_filters_and_tests(ExpressionPtr node) {
  while (true) {
    if (skip_operator("|")) {
      node = parse_filter_name(std::move(node));
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr node) {
  const Token token = next();
  if (token.text == ".") {
    if (at(TokenKind::kInteger)) {
      auto index = make(Kind::kConstant, token.line);
      index->constant = Value(next().integer);
      return make(Kind::kItem, token.line, std::move(node), std::move(index));
    }
    auto attribute = make(Kind::kAttribute, token.line, std::move(node));
    attribute->name = expect_name("a name or number after '.'");
    return attribute;
  }
  ExpressionPtr parts[3];
  bool is_slice = false;
  for (auto& part : parts) {
    if (!at_operator(":") && !at_operator("]")) part = parse_expression();
    if (!skip_operator(":")) break;
    is_slice = true;
  }
  if (!is_slice && !parts[0]) fail_unexpected("an index");
  expect_operator("]");
  if (!is_slice) return make(Kind::kItem, token.line, std::move(node), std::move(parts[0]));
  return make(Kind::kSlice, token.line, std::move(node), std::move(parts[0]), std::move(parts[1]),
              std::move(parts[2]));
}

CallArguments ExpressionParser::parse_call_arguments() {
  CallArguments arguments;
  expect_operator("(");
  bool first = true;
  while (!skip_operator(")")) {
    if (!first) {
      expect_operator(",");
      if (skip_operator(")")) break;
    }
    first = false;
    if (skip_operator("**")) {
      if (arguments.double_star) fail("more than one ** in a call");
      arguments.double_star = parse_expression();
    } else if (arguments.double_star) {
      fail("an argument after ** in a call");
    } else if (skip_operator("*")) {
      if (arguments.star) fail("more than one * in a call");
      arguments.star = parse_expression();
    } else if (at(TokenKind::kName) && peek().kind == TokenKind::kOperator && peek().text == "=") {
      std::string name = next().text;
      next();
      arguments.keyword.emplace_back(std::move(name), parse_expression());
    } else if (arguments.star || !arguments.keyword.empty()) {
      fail("a positional argument after a named one");
    } else {
      arguments.positional.push_back(parse_expression());
    }
  }
  return arguments;
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr node) {
  auto call = make(Kind::kCall, current().line, std::move(node));
  call->arguments = parse_call_arguments();
  return finish(std::move(call));
}

std::string ExpressionParser::parse_dotted_name(std::string_view what) {
  std::string name = expect_name(what);
  while (skip_operator(".")) name += "." + expect_name(what);
  return name;
}

ExpressionPtr ExpressionParser::parse_filter_name(ExpressionPtr node) {
  auto filter = make(Kind::kFilter, current().line, std::move(node));
  filter->name = parse_dotted_name("the name of a filter");
  if (at_operator("(")) filter->arguments = parse_call_arguments();
  return finish(std::move(filter));
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr node) {
  while (skip_operator("|")) node = parse_filter_name(std::move(node));
  return node;
}

bool ExpressionParser::at_test_argument() const {
  switch (current().kind) {
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return true;
    case TokenKind::kName:
      return !at_name("else") && !at_name("or") && !at_name("and");
    default:
      return at_operator("[") || at_operator("{");
  }
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr node) {
  const int line = next().line;
  const bool negated = skip_name("not");
  auto test = make(Kind::kTest, line, std::move(node));
  test->name = parse_dotted_name("the name of a test");
  if (at_operator("(")) {
    test->arguments = parse_call_arguments();
  } else if (at_test_argument()) {
    if (at_name("is")) fail("tests with 'is' cannot be chained");
    test->arguments.positional.push_back(parse_postfix(parse_primary()));
  }
  test = finish(std::move(test));
  return negated ? make(Kind::kNot, line, std::move(test)) : std::move(test);
}

}  // namespace shoal::jinja

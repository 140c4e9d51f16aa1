// The expressions of the template language, by recursive descent. Internal to the parser.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja/ast.h"
#include "runtime/text/jinja/lexer.h"

namespace shoal::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  // One expression, or a tuple of several with commas between. `with_condition` allows "a if b".
  ExpressionPtr parse_tuple(bool with_condition, std::string_view end_name = "");
  ExpressionPtr parse_expression(bool with_condition = true);
  // The filters from here on, applied to `node` (null: to what a block gives).
  ExpressionPtr parse_filters(ExpressionPtr node);
  // One filter, without the "|" before it.
  ExpressionPtr parse_filter_name(ExpressionPtr node);

  const Token& current() const { return tokens_[position_]; }
  const Token& peek() const;
  Token next();
  bool at(TokenKind kind) const { return current().kind == kind; }
  bool at_name(std::string_view name) const;
  bool at_operator(std::string_view op) const;
  bool skip_name(std::string_view name);
  bool skip_operator(std::string_view op);
  void expect_operator(std::string_view op);
  void expect(TokenKind kind, std::string_view what);
  std::string expect_name(std::string_view what);
  [[noreturn]] void fail(std::string_view message) const;
  [[noreturn]] void fail_unexpected(std::string_view expected) const;

  // Counts the nesting of the recursive descent.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser* parser);
    ~Nesting() { --parser_->nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser* parser_;
  };

 private:
  CallArguments parse_call_arguments();
  ExpressionPtr parse_primary();
  ExpressionPtr parse_condition();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filter = true);
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_filters_and_tests(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_call(ExpressionPtr node);
  ExpressionPtr parse_test(ExpressionPtr node);
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  std::string parse_dotted_name(std::string_view what);
  bool at_tuple_end(std::string_view end_name) const;
  bool at_test_argument() const;

  template <typename... Children>
  ExpressionPtr make(Expression::Kind kind, int line, Children... children);
  // Sets and bounds the depth of a node whose children are all there.
  ExpressionPtr finish(ExpressionPtr node) const;

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int nesting_ = 0;
};

}  // namespace shoal::jinja

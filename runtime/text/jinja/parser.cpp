#include "runtime/text/jinja/parser.h"

#include <algorithm>
#include <array>

#include "kernels/base/error.h"
#include "runtime/text/jinja/expression_parser.h"
#include "runtime/text/jinja/lexer.h"

namespace shoal::jinja {
namespace {

using Kind = Statement::Kind;

class TemplateParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() {
    Block block = parse_block({});
    SHOAL_CHECK(at(TokenKind::kEnd));
    return block;
  }

 private:
  using EndNames = std::initializer_list<std::string_view>;

  // Statements up to a tag that is named in `ends`; the name of that tag is then current. Without
  // `ends`, up to the end of the template.
  Block parse_block(EndNames ends) {
    const Nesting nesting(this);
    const int opened = current().line;
    Block block;
    while (!at(TokenKind::kEnd)) {
      const int line = current().line;
      if (at(TokenKind::kText)) {
        block.push_back(make(Kind::kText, line));
        block.back().text = next().text;
      } else if (at(TokenKind::kPrintBegin)) {
        next();
        block.push_back(make(Kind::kPrint, line));
        block.back().expression = parse_tuple(true);
        expect(TokenKind::kPrintEnd, "'}}'");
      } else {
        expect(TokenKind::kBlockBegin, "a tag");
        if (!at(TokenKind::kName)) fail_unexpected("the name of a tag");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return block;
        parse_statement(&block);
      }
    }
    if (ends.size() > 0) {
      throw_invalid("line {}: no {{% {} %}} for the tag that ends here", opened, *(ends.end() - 1));
    }
    return block;
  }

  // The end of the opening tag, the body, and the closing tag.
  Block parse_body(std::string_view end) {
    skip_operator(":");
    end_tag();
    Block block = parse_block({end});
    next();
    end_tag();
    return block;
  }

  static Statement make(Kind kind, int line) {
    Statement statement{};
    statement.kind = kind;
    statement.line = line;
    return statement;
  }

  void end_tag() { expect(TokenKind::kBlockEnd, "'%}'"); }

  void parse_statement(Block* block) {
    const int line = current().line;
    const std::string tag = next().text;
    if (tag == "for") {
      block->push_back(parse_for(line));
    } else if (tag == "if") {
      block->push_back(parse_if(line));
    } else if (tag == "set") {
      block->push_back(parse_set(line));
    } else if (tag == "macro") {
      block->push_back(parse_macro(line));
    } else if (tag == "call") {
      block->push_back(parse_call_block(line));
    } else if (tag == "filter") {
      block->push_back(parse_filter_block(line));
    } else if (tag == "with") {
      block->push_back(parse_with(line));
    } else if (tag == "print") {
      parse_print(line, block);
    } else if (tag == "generation") {
      block->push_back(make(Kind::kGeneration, line));
      block->back().body = parse_outside_loop("endgeneration");
    } else if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail(fmt::format("'{}' outside a loop", tag));
      block->push_back(make(tag == "break" ? Kind::kBreak : Kind::kContinue, line));
      end_tag();
    } else if (std::find(kUnsupported.begin(), kUnsupported.end(), tag) != kUnsupported.end()) {
      throw_invalid("line {}: the tag '{}' is not supported", line, tag);
    } else {
      throw_invalid("line {}: unknown tag '{}'", line, tag);
    }
  }

  // A body that becomes a function of its own: a break inside cannot reach the loop around it.
  Block parse_outside_loop(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Block block = parse_body(end);
    loops_ = loops;
    return block;
  }

  Statement parse_for(int line) {
    Statement statement = make(Kind::kFor, line);
    statement.target = parse_target("in", false);
    if (!skip_name("in")) fail_unexpected("'in'");
    statement.expression = parse_tuple(false, "recursive");
    if (skip_name("if")) statement.condition = parse_expression();
    if (at_name("recursive")) fail("a recursive loop is not supported");
    skip_operator(":");
    end_tag();
    ++loops_;
    statement.body = parse_block({"endfor", "else"});
    --loops_;
    if (next().text == "else") {
      statement.otherwise = parse_body("endfor");
    } else {
      end_tag();
    }
    return statement;
  }

  Statement parse_if(int line) {
    Statement statement = make(Kind::kIf, line);
    while (true) {
      auto condition = parse_tuple(false);
      skip_operator(":");
      end_tag();
      Block body = parse_block({"elif", "else", "endif"});
      statement.branches.emplace_back(std::move(condition), std::move(body));
      const std::string tag = next().text;
      if (tag == "elif") continue;
      if (tag == "else") {
        statement.branches.emplace_back(nullptr, parse_body("endif"));
      } else {
        end_tag();
      }
      return statement;
    }
  }

  Statement parse_set(int line) {
    Statement statement = make(Kind::kSet, line);
    statement.target = parse_target("", true);
    if (skip_operator("=")) {
      statement.expression = parse_tuple(true);
      end_tag();
      return statement;
    }
    statement.kind = Kind::kSetBlock;
    statement.expression = parse_filters(nullptr);
    statement.body = parse_body("endset");
    return statement;
  }

  Statement parse_macro(int line) {
    Statement statement = make(Kind::kMacro, line);
    statement.text = expect_name("the name of the macro");
    parse_signature(&statement);
    statement.body = parse_outside_loop("endmacro");
    return statement;
  }

  void parse_signature(Statement* statement) {
    expect_operator("(");
    while (!skip_operator(")")) {
      if (!statement->parameters.empty()) {
        expect_operator(",");
        if (skip_operator(")")) break;
      }
      statement->parameters.push_back(expect_name("the name of a parameter"));
      if (skip_operator("=")) {
        statement->defaults.push_back(parse_expression());
      } else if (!statement->defaults.empty()) {
        fail("a parameter without a default after one with a default");
      }
    }
  }

  Statement parse_call_block(int line) {
    Statement statement = make(Kind::kCallBlock, line);
    if (at_operator("(")) parse_signature(&statement);
    statement.expression = parse_expression();
    if (statement.expression->kind != Expression::Kind::kCall) fail_unexpected("a call");
    statement.body = parse_outside_loop("endcall");
    return statement;
  }

  Statement parse_filter_block(int line) {
    Statement statement = make(Kind::kFilterBlock, line);
    statement.expression = parse_filters(parse_filter_name(nullptr));
    statement.body = parse_outside_loop("endfilter");
    return statement;
  }

  Statement parse_with(int line) {
    Statement statement = make(Kind::kWith, line);
    while (!at(TokenKind::kBlockEnd)) {
      if (!statement.assignments.empty()) expect_operator(",");
      Target target = parse_target("", false);
      expect_operator("=");
      statement.assignments.emplace_back(std::move(target), parse_expression());
    }
    statement.body = parse_body("endwith");
    return statement;
  }

  void parse_print(int line, Block* block) {
    for (bool first = true; !at(TokenKind::kBlockEnd); first = false) {
      if (!first) expect_operator(",");
      block->push_back(make(Kind::kPrint, line));
      block->back().expression = parse_expression();
    }
    end_tag();
  }

  // Up to the name `end`, which may be empty.
  Target parse_target(std::string_view end, bool with_attribute) {
    Target tuple;
    tuple.line = current().line;
    bool is_tuple = false;
    while (!at(TokenKind::kBlockEnd) && !at_operator("=") && !at_operator(")") &&
           (end.empty() || !at_name(end))) {
      tuple.items.push_back(parse_single_target(end, with_attribute));
      if (!skip_operator(",")) break;
      is_tuple = true;
    }
    if (tuple.items.empty()) fail_unexpected("a name to assign to");
    if (is_tuple) return tuple;
    Target single = std::move(tuple.items[0]);
    return single;
  }

  Target parse_single_target(std::string_view end, bool with_attribute) {
    const Nesting nesting(this);
    Target target;
    target.line = current().line;
    if (skip_operator("(")) {
      target = parse_target(end, with_attribute);
      expect_operator(")");
      return target;
    }
    target.name = expect_name("a name to assign to");
    static constexpr std::array<std::string_view, 7> kReserved = {"true",  "false", "none", "True",
                                                                  "False", "None",  "loop"};
    if (std::find(kReserved.begin(), kReserved.end(), target.name) != kReserved.end()) {
      fail(fmt::format("cannot assign to '{}'", target.name));
    }
    if (with_attribute && skip_operator(".")) target.attribute = expect_name("an attribute");
    return target;
  }

  static constexpr std::array<std::string_view, 8> kUnsupported = {
      "block", "extends", "include", "import", "from", "autoescape", "do", "trans"};

  int loops_ = 0;  // loops around the current statement that a break could leave
};

}  // namespace

Block parse_template(std::string_view source) {
  return TemplateParser(tokenize_template(source)).run();
}

}  // namespace shoal::jinja

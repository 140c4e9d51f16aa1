// The syntax tree of a template. Built once by the parser, then only read.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

// Bounds the recursion of everything that walks a tree, its destructor included. The deepest
// published templates nest some twenty levels.
inline constexpr int kMaxTreeDepth = 200;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keyword;
  ExpressionPtr star;         // *args
  ExpressionPtr double_star;  // **kwargs
};

enum class Operator {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expression {
  enum class Kind {
    kConstant,   // constant
    kName,       // name
    kAttribute,  // children[0] . name
    kItem,       // children[0] [ children[1] ]
    kSlice,   // children[0] [ children[1] : children[2] : children[3] ], each of 1 to 3 may be null
    kCall,    // children[0] ( arguments )
    kFilter,  // children[0] | name ( arguments ); the child is null in a filter or set block
    kTest,    // children[0] is name ( arguments )
    kNot,
    kNegate,
    kPlus,
    kBinary,  // children[0] op children[1]
    kAnd,
    kOr,
    kCompare,    // children[0] operators[0] children[1] operators[1] children[2] ...
    kConcat,     // children joined by ~
    kCondition,  // children[1] if children[0] else children[2]; the last may be null
    kList,
    kTuple,
    kDict,  // key, value, key, value, ...
  };
  Kind kind;
  int line;
  int depth = 1;
  std::string name;
  Value constant;
  Operator op{};
  std::vector<Operator> operators;
  std::vector<ExpressionPtr> children;
  CallArguments arguments;
};

// What can be assigned to: a name, an attribute of a namespace, or a tuple of these.
struct Target {
  std::string name;
  std::string attribute;      // empty: the name itself
  std::vector<Target> items;  // not empty: a tuple
  int line = 0;
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    kText,         // text
    kPrint,        // expression
    kFor,          // for target in expression if condition: body, otherwise
    kIf,           // branches; the condition of an else is null
    kSet,          // target = expression
    kSetBlock,     // target = body, through the filters of expression if there are any
    kMacro,        // text is the name; parameters, defaults, body
    kCallBlock,    // expression is the call; the body is its caller(), with parameters and defaults
    kFilterBlock,  // body through the filters of expression
    kWith,         // targets, values, body
    kGeneration,   // body; marks what the assistant wrote, which is of no use to a server
    kBreak,
    kContinue,
  };
  Kind kind;
  int line;
  std::string text;
  ExpressionPtr expression;
  ExpressionPtr condition;
  Target target;
  Block body;
  Block otherwise;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::string> parameters;  // of macros; the last defaults.size() have a default
  std::vector<ExpressionPtr> defaults;
  std::vector<std::pair<Target, ExpressionPtr>> assignments;  // kWith
};

}  // namespace shoal::jinja

// The operators of the template language, with the meaning of Python's.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "runtime/text/jinja/format.h"
#include "runtime/text/jinja/interpreter.h"
#include "runtime/text/unicode.h"

namespace shoal::jinja {
namespace {

constexpr std::string_view kOverflow = "an integer does not fit 64 bits";

std::string_view symbol(Operator op) {
  switch (op) {
    case Operator::kAdd:
      return "+";
    case Operator::kSub:
      return "-";
    case Operator::kMul:
      return "*";
    case Operator::kDiv:
      return "/";
    case Operator::kFloorDiv:
      return "//";
    case Operator::kMod:
      return "%";
    case Operator::kPow:
      return "**";
    default:
      return "a comparison";
  }
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      throw InvalidInput(std::string(kOverflow));
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      throw InvalidInput(std::string(kOverflow));
    }
  }
  return result;
}

Value integer_operation(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case Operator::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::kSub:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::kMul:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Operator::kDiv:
      if (b == 0) throw_invalid("division by zero");
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kFloorDiv:
    case Operator::kMod: {
      if (b == 0) throw_invalid("division by zero");
      // Also the one quotient that overflows, INT64_MIN / -1.
      if (b == -1) {
        if (op == Operator::kMod) return Value(int64_t{0});
        overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
        break;
      }
      // Python rounds towards minus infinity.
      const int64_t remainder = a % b;
      const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
      result = op == Operator::kMod ? remainder + (adjust ? b : 0) : a / b - (adjust ? 1 : 0);
      break;
    }
    default:
      if (b < 0) return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
      return Value(integer_power(a, b));
  }
  if (overflow) throw InvalidInput(std::string(kOverflow));
  return Value(result);
}

Value float_operation(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value(a + b);
    case Operator::kSub:
      return Value(a - b);
    case Operator::kMul:
      return Value(a * b);
    case Operator::kPow:
      return Value(std::pow(a, b));
    default:
      break;
  }
  if (b == 0) throw_invalid("division by zero");
  if (op == Operator::kDiv) return Value(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == Operator::kMod) return Value(remainder);
  return Value(std::floor((a - remainder) / b + 0.5));
}

Value repeat(const Value& value, int64_t count) {
  const auto times = static_cast<size_t>(std::max<int64_t>(count, 0));
  if (value.is_string()) {
    const std::string& text = value.as_string();
    if (text.empty() || times == 0) return Value::string("");
    if (times > kMaxStringBytes / text.size()) {
      throw_invalid("more than {} bytes of text", kMaxStringBytes);
    }
    std::string out;
    out.reserve(text.size() * times);
    for (size_t i = 0; i < times; ++i) out += text;
    return Value::string(std::move(out));
  }
  const Values& items = value.items();
  if (!items.empty() && times > kMaxListItems / items.size()) {
    throw_invalid("a list of more than {} items", kMaxListItems);
  }
  Values out;
  for (size_t i = 0; i < times && !items.empty(); ++i) {
    out.insert(out.end(), items.begin(), items.end());
  }
  return value.is_tuple() ? Value::tuple(std::move(out)) : Value::list(std::move(out));
}

Value concatenate(const Value& left, const Value& right) {
  Values items = left.items();
  items.insert(items.end(), right.items().begin(), right.items().end());
  return left.is_tuple() ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

// Where each character of `text` begins, and its end.
std::vector<size_t> character_offsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<uint8_t>(text[i]) & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(text.size());
  return offsets;
}

// A bound of a slice, moved into [low, high].
int64_t slice_bound(const Value& bound, int64_t absent, int64_t length, int64_t low, int64_t high) {
  if (bound.is_none()) return absent;
  bound.require_defined();
  if (!bound.is_integral()) throw_invalid("the bounds of a slice must be integers");
  int64_t index = bound.as_int();
  if (index < 0) index += length;
  return std::clamp(index, low, high);
}

}  // namespace

Value binary_operation(Interpreter& interpreter, Operator op, const Value& left,
                       const Value& right) {
  left.require_defined();
  if (op == Operator::kMod && left.is_string()) {
    interpreter.charge(left.weight() + right.weight());
    return Value::string(format_percent(left.as_string(), right));
  }
  right.require_defined();
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) {
      return integer_operation(op, left.as_int(), right.as_int());
    }
    return float_operation(op, left.as_double(), right.as_double());
  }
  Value result;
  if (op == Operator::kAdd && left.is_string() && right.is_string()) {
    result = Value::string(left.as_string() + right.as_string());
  } else if (op == Operator::kAdd && left.is_sequence() && right.is_sequence() &&
             left.is_tuple() == right.is_tuple()) {
    result = concatenate(left, right);
  } else if (op == Operator::kMul && (left.is_string() || left.is_sequence()) &&
             right.is_integral()) {
    result = repeat(left, right.as_int());
  } else if (op == Operator::kMul && (right.is_string() || right.is_sequence()) &&
             left.is_integral()) {
    result = repeat(right, left.as_int());
  } else {
    throw_invalid("{} does not go with {} and {}", symbol(op), left.type_name(), right.type_name());
  }
  interpreter.charge(result);
  return result;
}

bool compare(Interpreter& interpreter, Operator op, const Value& left, const Value& right) {
  interpreter.charge(left.weight() + right.weight());
  switch (op) {
    case Operator::kEqual:
      return left.equals(right);
    case Operator::kNotEqual:
      return !left.equals(right);
    case Operator::kLess:
      return left.less(right);
    case Operator::kGreater:
      return right.less(left);
    case Operator::kLessEqual:
      return left.less(right) || left.equals(right);
    case Operator::kGreaterEqual:
      return right.less(left) || left.equals(right);
    case Operator::kIn:
    case Operator::kNotIn:
      // Comparing every element with the member, or finding a string, takes up to their product.
      interpreter.charge(left.weight() / 16 * right.weight());
      return right.contains(left) == (op == Operator::kIn);
    default:
      break;
  }
  SHOAL_CHECK(false, "not a comparison");
  return false;
}

Value negate(const Value& value) {
  value.require_defined();
  if (value.is_integral()) return integer_operation(Operator::kSub, 0, value.as_int());
  if (value.is_float()) return Value(-value.as_double());
  throw_invalid("a value of type {} has no sign", value.type_name());
}

Value slice(const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (!value.is_string() && !value.is_sequence()) {
    return Value::undefined(fmt::format("a value of type {} has no slices", value.type_name()));
  }
  const int64_t stride = step.is_none() ? 1 : step.is_integral() ? step.as_int() : 0;
  if (stride == 0) throw_invalid("the step of a slice must be an integer other than 0");
  std::vector<size_t> offsets;
  if (value.is_string()) offsets = character_offsets(value.as_string());
  const auto length =
      static_cast<int64_t>(value.is_string() ? offsets.size() - 1 : value.items().size());
  const bool forward = stride > 0;
  const int64_t low = forward ? 0 : -1;
  const int64_t high = forward ? length : length - 1;
  int64_t index = slice_bound(start, forward ? low : high, length, low, high);
  const int64_t end = slice_bound(stop, forward ? high : low, length, low, high);
  std::string text;
  Values items;
  while (forward ? index < end : index > end) {
    const auto at = static_cast<size_t>(index);
    if (value.is_string()) {
      text.append(value.as_string(), offsets[at], offsets[at + 1] - offsets[at]);
    } else {
      items.push_back(value.items()[at]);
    }
    // A stride past the end would overflow if it were added.
    if (forward ? stride >= end - index : stride <= end - index) break;
    index += stride;
  }
  if (value.is_string()) return Value::string(std::move(text));
  return value.is_tuple() ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

std::optional<Value> element(const Value& value, int64_t index) {
  std::vector<size_t> offsets;
  if (value.is_string()) offsets = character_offsets(value.as_string());
  const auto length =
      static_cast<int64_t>(value.is_string() ? offsets.size() - 1 : value.items().size());
  if (index < 0) index += length;
  if (index < 0 || index >= length) return std::nullopt;
  const auto at = static_cast<size_t>(index);
  if (!value.is_string()) return value.items()[at];
  return Value::string(value.as_string().substr(offsets[at], offsets[at + 1] - offsets[at]));
}

Values characters(std::string_view text) {
  const std::vector<size_t> offsets = character_offsets(text);
  if (offsets.size() - 1 > kMaxListItems) {
    throw_invalid("a list of more than {} characters", kMaxListItems);
  }
  Values out;
  out.reserve(offsets.size() - 1);
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    out.push_back(Value::string(std::string(text.substr(offsets[i], offsets[i + 1] - offsets[i]))));
  }
  return out;
}

}  // namespace shoal::jinja

#include "runtime/text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "runtime/text/jinja/callable.h"

namespace shoal::jinja {
namespace {

void check_size(int depth, size_t weight) {
  if (depth > kMaxValueDepth) throw_invalid("values nested deeper than {} levels", kMaxValueDepth);
  if (weight > kMaxWeight) throw_invalid("a list or dict that is too large");
}

std::shared_ptr<const Sequence> make_sequence(Values items, bool is_tuple) {
  if (items.size() > kMaxListItems) {
    throw_invalid("a list of {} items; at most {} are supported", items.size(), kMaxListItems);
  }
  auto sequence = std::make_shared<Sequence>();
  for (const Value& item : items) {
    sequence->depth = std::max(sequence->depth, item.depth() + 1);
    sequence->weight += item.weight();  // at most kMaxListItems * kMaxWeight: no overflow
  }
  check_size(sequence->depth, sequence->weight);
  sequence->items = std::move(items);
  sequence->is_tuple = is_tuple;
  return sequence;
}

bool equal_sequences(const Sequence& a, const Sequence& b) {
  return a.is_tuple == b.is_tuple && a.items.size() == b.items.size() &&
         std::equal(a.items.begin(), a.items.end(), b.items.begin(),
                    [](const Value& x, const Value& y) { return x.equals(y); });
}

bool equal_mappings(const Mapping& a, const Mapping& b) {
  return a.items.size() == b.items.size() &&
         std::all_of(a.items.begin(), a.items.end(), [&](const auto& item) {
           const Value* other = b.find(item.first);
           return other != nullptr && item.second.equals(*other);
         });
}

}  // namespace

Value Value::undefined(std::string why) {
  Value value;
  value.data_ = Undefined{std::make_shared<const std::string>(std::move(why))};
  return value;
}

Value Value::string(std::string text) {
  if (text.size() > kMaxStringBytes) {
    throw_invalid("a string of {} bytes; at most {} are supported", text.size(), kMaxStringBytes);
  }
  Value value;
  value.data_ = std::make_shared<const std::string>(std::move(text));
  return value;
}

Value Value::list(Values items) {
  Value value;
  value.data_ = make_sequence(std::move(items), false);
  return value;
}

Value Value::tuple(Values items) {
  Value value;
  value.data_ = make_sequence(std::move(items), true);
  return value;
}

Value Value::dict(std::vector<std::pair<Value, Value>> items) {
  auto mapping = std::make_shared<Mapping>();
  mapping->items.reserve(items.size());  // the keys of by_string point into it
  for (auto& [key, value] : items) {
    if (!key.is_string() && !key.is_number() && !key.is_none()) {
      throw_invalid("{} cannot be the key of a dict", key.type_name());
    }
    mapping->depth = std::max(mapping->depth, value.depth() + 1);
    mapping->weight += key.weight() + value.weight();
    // A key that comes again keeps its place and takes the new value.
    if (const Value* old = mapping->find(key)) {
      const_cast<Value&>(*old) = std::move(value);
      continue;
    }
    mapping->items.emplace_back(std::move(key), std::move(value));
    const Value& stored = mapping->items.back().first;
    if (stored.is_string())
      mapping->by_string.emplace(stored.as_string(), mapping->items.size() - 1);
  }
  check_size(mapping->depth, mapping->weight);
  Value value;
  value.data_ = std::shared_ptr<const Mapping>(std::move(mapping));
  return value;
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        throw_invalid("the integer {} does not fit 64 bits", json.get<uint64_t>());
      }
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return Value::string(json.get_ref<const std::string&>());
    case nlohmann::ordered_json::value_t::array: {
      Values items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item));
      return Value::list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        items.emplace_back(Value::string(key), from_json(item));
      }
      return Value::dict(std::move(items));
    }
    default:
      return Value::none();
  }
}

bool Value::is_list() const {
  return is_sequence() && !std::get<std::shared_ptr<const Sequence>>(data_)->is_tuple;
}

bool Value::is_tuple() const {
  return is_sequence() && std::get<std::shared_ptr<const Sequence>>(data_)->is_tuple;
}

int64_t Value::as_int() const { return is_bool() ? (as_bool() ? 1 : 0) : std::get<int64_t>(data_); }

double Value::as_double() const {
  return is_float() ? std::get<double>(data_) : static_cast<double>(as_int());
}

const Values& Value::items() const {
  return std::get<std::shared_ptr<const Sequence>>(data_)->items;
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "none";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (is_sequence()) return is_tuple() ? "tuple" : "list";
  if (is_dict()) return "dict";
  if (is_namespace()) return "namespace";
  return is_loop() ? "loop" : "function";
}

void Value::require_defined() const {
  if (is_undefined()) throw InvalidInput(*std::get<Undefined>(data_).why);
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_bool()) return as_bool();
  if (is_int()) return as_int() != 0;
  if (is_float()) return as_double() != 0;
  if (is_string()) return !as_string().empty();
  if (is_sequence()) return !items().empty();
  if (is_dict()) return !mapping().items.empty();
  return true;
}

int Value::depth() const {
  if (is_sequence()) return std::get<std::shared_ptr<const Sequence>>(data_)->depth;
  if (is_dict()) return mapping().depth;
  if (is_callable()) return callable().self.depth() + 1;
  if (is_loop()) return loop().items.depth() + 1;
  return 0;  // a namespace is owned elsewhere, so walks end at it
}

size_t Value::weight() const {
  if (is_string()) return 1 + as_string().size() / 32;
  if (is_sequence()) return std::get<std::shared_ptr<const Sequence>>(data_)->weight;
  if (is_dict()) return mapping().weight;
  if (is_callable()) return callable().self.weight();
  if (is_loop()) return loop().items.weight();
  return 1;
}

bool Value::equals(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_integral() && other.is_integral()) return as_int() == other.as_int();
    return as_double() == other.as_double();
  }
  if (data_.index() != other.data_.index()) return false;
  if (is_string()) return as_string() == other.as_string();
  if (is_sequence()) {
    return equal_sequences(*std::get<std::shared_ptr<const Sequence>>(data_),
                           *std::get<std::shared_ptr<const Sequence>>(other.data_));
  }
  if (is_dict()) return equal_mappings(mapping(), other.mapping());
  if (is_namespace()) return &as_namespace() == &other.as_namespace();
  if (is_callable()) return &callable() == &other.callable();
  if (is_loop()) return &loop() == &other.loop();
  return true;  // none and none, undefined and undefined
}

bool Value::less(const Value& other) const {
  require_defined();
  other.require_defined();
  if (is_number() && other.is_number()) {
    if (is_integral() && other.is_integral()) return as_int() < other.as_int();
    return as_double() < other.as_double();
  }
  // UTF-8 sorts by bytes as by code points, which is Python's order.
  if (is_string() && other.is_string()) return as_string() < other.as_string();
  if (is_sequence() && other.is_sequence() && is_tuple() == other.is_tuple()) {
    const Values& a = items();
    const Values& b = other.items();
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!a[i].equals(b[i])) return a[i].less(b[i]);
    }
    return a.size() < b.size();
  }
  throw_invalid("{} and {} have no order", type_name(), other.type_name());
}

bool Value::contains(const Value& member) const {
  if (is_undefined()) return false;
  if (is_string()) {
    member.require_defined();
    if (!member.is_string()) throw_invalid("{} cannot be in a string", member.type_name());
    return as_string().find(member.as_string()) != std::string::npos;
  }
  if (is_sequence()) {
    return std::any_of(items().begin(), items().end(),
                       [&](const Value& item) { return item.equals(member); });
  }
  if (is_dict()) return mapping().find(member) != nullptr;
  throw_invalid("nothing can be in a value of type {}", type_name());
}

const Value* Mapping::find(std::string_view key) const {
  const auto it = by_string.find(key);
  return it == by_string.end() ? nullptr : &items[it->second].second;
}

const Value* Mapping::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.as_string()));
  if (by_string.size() == items.size()) return nullptr;
  for (const auto& item : items) {
    if (item.first.equals(key)) return &item.second;
  }
  return nullptr;
}

void Writer::append(std::string_view text) {
  if (text.size() > kMaxStringBytes - text_.size()) {
    throw_invalid("more than {} bytes of text", kMaxStringBytes);
  }
  text_ += text;
}

void Writer::append(size_t count, char c) {
  if (count > kMaxStringBytes - text_.size()) {
    throw_invalid("more than {} bytes of text", kMaxStringBytes);
  }
  text_.append(count, c);
}

}  // namespace shoal::jinja

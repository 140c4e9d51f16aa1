#include "runtime/text/jinja/callable.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace shoal::jinja {

BoundArguments::BoundArguments(std::string_view function, const Arguments& arguments,
                               std::initializer_list<std::string_view> parameters)
    : function_(function), names_(parameters), bound_(parameters.size(), nullptr) {
  if (arguments.positional.size() > names_.size()) {
    throw_invalid("{} takes at most {} arguments, {} given", function, names_.size(),
                  arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keyword) {
    const auto it = std::find(names_.begin(), names_.end(), name);
    if (it == names_.end()) throw_invalid("{} has no argument {}", function, name);
    auto& slot = bound_[static_cast<size_t>(it - names_.begin())];
    if (slot != nullptr) throw_invalid("{}: argument {} given twice", function, name);
    slot = &value;
  }
}

const Value& BoundArguments::require(size_t index) const {
  if (bound_[index] == nullptr) throw_invalid("{} needs an argument {}", function_, names_[index]);
  return *bound_[index];
}

std::string BoundArguments::string(size_t index, std::string_view fallback) const {
  return bound_[index] == nullptr ? std::string(fallback) : require_string(index);
}

const std::string& BoundArguments::require_string(size_t index) const {
  const Value& value = require(index);
  value.require_defined();
  if (!value.is_string()) {
    throw_invalid("{}: {} is {}, should be a string", function_, names_[index], value.type_name());
  }
  return value.as_string();
}

int64_t BoundArguments::integer(size_t index, int64_t fallback) const {
  if (bound_[index] == nullptr) return fallback;
  bound_[index]->require_defined();
  if (!bound_[index]->is_integral()) {
    throw_invalid("{}: {} is {}, should be an integer", function_, names_[index],
                  bound_[index]->type_name());
  }
  return bound_[index]->as_int();
}

bool BoundArguments::boolean(size_t index, bool fallback) const {
  return bound_[index] == nullptr ? fallback : bound_[index]->truthy();
}

}  // namespace shoal::jinja

#pragma once

#include <string_view>

#include "runtime/text/jinja/ast.h"

namespace shoal::jinja {

// Throws InvalidInput with the line for what is malformed, nested too deep or not supported.
Block parse_template(std::string_view source);

}  // namespace shoal::jinja

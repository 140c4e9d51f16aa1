#include "runtime/text/jinja.h"

#include "kernels/base/error.h"
#include "runtime/text/jinja/parser.h"

namespace shoal::jinja {
namespace {

// The largest published templates have some 50 KB.
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

}  // namespace

Template::Template(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    throw_invalid("a template of {} bytes; at most {} are supported", source.size(),
                  kMaxTemplateBytes);
  }
  block_ = std::make_shared<const Block>(parse_template(source));
}

std::string Template::render(const Variables& variables, std::time_t now,
                             const RenderLimits& limits) const {
  std::vector<std::pair<std::string, Value>> values;
  values.reserve(variables.size());
  for (const auto& [name, json] : variables) values.emplace_back(name, Value::from_json(json));
  return Interpreter(limits, now).run(*block_, std::move(values));
}

}  // namespace shoal::jinja
